"""Cores in a public basis against what anybody would write: dense gradients and full decompositions, a bare model whose weights are
W + s U R V, one client after the other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.closeness import assert_near
from tests.contract.federation import OFF, ON, Federation, ZeroNoise, dense
from tests.oracle.plain_training import _row
from tests.tiny_bases import records, tiny, write
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from aulait.core import lora
from aulait.core.errors import DataError
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.methods import METHODS
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.privacy.noise import SeededNoise
from aulait.training.private_learner import PrivateLearner
from aulait.training.public_basis import gradient_basis, random_basis, weight_basis
from aulait.training.record_gradients import batches
from aulait.training.trainer import Learner, TrainConfig, draws

PUBLIC = (*records(9, 5), *records(2, 6, prompt=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def pieces(folder, kind="llama", rank=2, **more):
    base = tiny(folder, kind)
    shapes = dict(loading.targets(base, AdapterConfig(targets="all-linear")))
    return Federation("cores", learner=Learner(base, TrainConfig(rows_at_once=4)), shapes=shapes, rank=rank, **more)


def plain_gradients(folder, kind, layers, texts):
    """Layer -> the gradient (M, N) of the loss, summed over all scored tokens, by autograd on the weights of a bare model in float64."""
    path = str(write(folder, kind))
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(path, dtype=torch.float64).eval(), AutoTokenizer.from_pretrained(path)
    for record in texts:
        if kind == "t5":
            given = {"input_ids": torch.tensor([tokenizer(record.prompt)["input_ids"]])}
            labels = torch.tensor([tokenizer(record.text)["input_ids"] + [2]])
            count = labels.shape[1]
        else:
            ids, prompt = _row(tokenizer, record)
            given, labels = {"input_ids": torch.tensor([ids])}, torch.tensor([[-100] * prompt + ids[prompt:]])
            count = int((labels[:, 1:] != -100).sum())
        (model(**given, labels=labels).loss * count).backward()
    found = {}
    for name in layers:
        module = model.get_submodule(name)
        found[name] = (module.weight.grad.T if type(module).__name__ == "Conv1D" else module.weight.grad).numpy()
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_the_basis_is_that_of_a_full_decomposition_of_the_gradient(folder, kind):
    run = pieces(folder, kind)
    texts = PUBLIC if kind != "t5" else records(9, 5, prompt=True)
    found = gradient_basis(run.learner, run.shapes, 3, texts, Seeds(1))
    for name, gradient in plain_gradients(folder, kind, run.shapes, texts).items():
        u, values, v = np.linalg.svd(gradient)
        assert values[0] > 1e-6
        own_v, own_u = (t.double().numpy() for t in found[name])
        assert np.allclose(own_v @ own_v.T, np.eye(3), atol=1e-5)
        assert np.allclose(own_u.T @ own_u, np.eye(3), atol=1e-5)
        best, kept = values[:3], np.linalg.norm(own_u.T @ gradient @ own_v.T)
        assert kept == pytest.approx(np.linalg.norm(best), rel=1e-3), name
        for i in range(3):  # vectors are told apart where values are
            if i == 0 or values[i - 1] > 1.2 * values[i] > 1.2 * 1.2 * values[i + 1]:
                assert abs(own_v[i] @ v[i]) == pytest.approx(1.0, abs=5e-3), (name, i)
                assert abs(own_u[:, i] @ u[:, i]) == pytest.approx(1.0, abs=5e-3), (name, i)


def test_a_basis_is_found_again_and_does_not_depend_on_how_texts_are_batched(folder):
    run = pieces(folder)
    one, two = (gradient_basis(run.learner, run.shapes, 2, PUBLIC, Seeds(1)) for _ in range(2))
    other = gradient_basis(Learner(run.learner.base, TrainConfig(rows_at_once=2)), run.shapes, 2, PUBLIC[::-1], Seeds(1))
    for name in one:
        for side in (0, 1):
            assert torch.equal(one[name][side], two[name][side])
        for left, right in zip(one[name], other[name], strict=True):  # the same spans
            cross = left @ right.T if left.shape[0] == 2 else left.T @ right
            assert torch.linalg.svdvals(cross).min() > 0.99


def test_the_basis_of_the_weights_is_their_own_decomposition(folder):
    for kind in ("llama", "gpt2"):
        run = pieces(folder, kind)
        base = run.learner.base
        for name, (v_RN, u_MR) in weight_basis(base, run.shapes, 3).items():
            weight = base.slots[name].inner.weight.double()
            whole = (weight.T if kind == "gpt2" else weight).numpy()
            values = np.linalg.svd(whole, compute_uv=False)
            assert np.linalg.norm(u_MR.double().numpy().T @ whole @ v_RN.double().numpy().T) == pytest.approx(np.linalg.norm(values[:3]), rel=1e-4)
            assert np.allclose(u_MR.T @ u_MR, np.eye(3), atol=1e-4)


def test_a_random_basis_is_orthonormal_and_beyond_the_sides_of_a_layer_there_is_nothing():
    (v_RN, u_MR) = random_basis({"one": (4, 3)}, 5, Seeds(0))["one"]
    assert torch.allclose(v_RN[:3] @ v_RN[:3].T, torch.eye(3), atol=1e-5)
    assert torch.allclose(u_MR[:, :3].T @ u_MR[:, :3], torch.eye(3), atol=1e-5)
    assert not v_RN[3:].any()
    assert not u_MR[:, 3:].any()


def test_text_without_a_scored_token_gives_no_basis(folder):
    run = pieces(folder)
    with pytest.raises(DataError, match="no gradient"):
        gradient_basis(run.learner, run.shapes, 2, [], Seeds(0))


def slow_core(folder, run, batch_lists, state, lr, kind="sgd"):
    """R of every layer after a step on each batch: a bare model with weights W + s U R V, autograd on R."""
    path = str(write(folder, "llama"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    plain = dict(model.named_parameters())
    basis = {layer: (state.tensors[f"basis/{layer}.A"], state.tensors[f"basis/{layer}.B"]) for layer in run.shapes}
    scale = run.alpha / run.rank
    cores = {layer: state.tensors[f"{layer}.R"].clone().requires_grad_(True) for layer in run.shapes}
    optimizer = (torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)(list(cores.values()), lr=lr, weight_decay=0.0)

    def mean_loss(batch):
        weights = {f"{layer}.weight": plain[f"{layer}.weight"].detach() + scale * u @ cores[layer] @ v for layer, (v, u) in basis.items()}
        total, count = 0.0, 0
        for record in batch:
            ids, given = _row(tokenizer, record)
            out = functional_call(model, weights, (torch.tensor([ids]),)).logits[0, :-1]
            target = torch.tensor([-100] * (given - 1) + ids[given:]) if given else torch.tensor(ids[1:])
            total = total + torch.nn.functional.cross_entropy(out, target, ignore_index=-100, reduction="sum")
            count += int((target != -100).sum())
        return total / count

    return cores, optimizer, mean_loss, batch_lists


def after_plain_steps(folder, run, state, site, lr):
    work = run.learner_works[site]
    lengths = [len(run.learner.encode(record)[0]) for record in work.records]
    cores, optimizer, mean_loss, steps = slow_core(folder, run, draws(work, lengths), state, lr, "adamw")
    for step in steps:
        mean_loss([work.records[i] for i in step]).backward()
        torch.nn.utils.clip_grad_norm_(list(cores.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {layer: core.detach() for layer, core in cores.items()}


def test_many_clients_in_one_pass_train_as_each_alone_in_a_slow_loop(folder):
    run = pieces(folder, clients=("ann", "bob", "cat"), sizes={"ann": 7, "bob": 4, "cat": 5})
    state = run.module.look(run.config, run.context, run.start(), run.learner, PUBLIC)
    seen, train = [], run.learner.train
    run.learner.train = lambda works, advance=None: (seen.extend(works), train(works, advance))[1]
    after, _ = run.round(state, lr=0.05)
    run.learner_works = {name: work for name, work in zip(run.clients, seen, strict=True)}
    assert len({id(work.basis) for work in seen}) == 1, "one basis in memory for all"
    each = [after_plain_steps(folder, run, state, name, 0.05) for name in run.clients]
    for layer in run.shapes:
        wanted = sum(own[layer] for own in each) / 3
        assert float(wanted.abs().max()) > 0.01
        assert_near(after.tensors[f"{layer}.R"], wanted, 2e-3, what=layer)
    adapter = dense(run.result(after))
    for layer in run.shapes:
        u, v = state.tensors[f"basis/{layer}.B"].double(), state.tensors[f"basis/{layer}.A"].double()
        assert_near(adapter[layer], run.alpha / run.rank * u @ after.tensors[f"{layer}.R"].double() @ v, 1e-5)


def test_a_record_s_gradient_is_clipped_and_noised_as_a_slow_loop_does_it(folder):
    privacy = ON.model_copy(update={"unit": "record", "relation": "zero-out", "clip": 0.2, "noise_multiplier": 0.7, "noise_seed": 5})
    run = pieces(folder, privacy=privacy, clients=("ann",), sizes={"ann": 7})
    run.learner = Learner(run.learner.base, TrainConfig(optimizer="sgd"))
    state = run.module.look(run.config, run.context, run.start(), run.learner, PUBLIC)
    after, _ = run.round(state, lr=0.3)
    site = run.sites["ann"]
    learner = PrivateLearner(run.learner, run.site_noise, [site])
    from aulait.core.factors import Trainable
    from aulait.core.types import Adapter
    from aulait.training.trainer import LocalTraining
    asked = LocalTraining(Adapter({}, 1.0), site.train, Trainable.B, site.plan.steps, site.plan.batch, 0.3,
                          run.context.seeds.integer("batches", 1, "ann"))
    work = learner._work(asked, site.train)
    source = SeededNoise(work.noise_seed)
    cores, optimizer, mean_loss, steps = slow_core(folder, run, batches(work), state, 0.3)
    cores = dict(sorted(cores.items()))  # the order in which noise is drawn
    for step in steps:
        total = {layer: torch.zeros_like(core) for layer, core in cores.items()}
        for unit in step:
            found = torch.autograd.grad(mean_loss(unit), list(cores.values()))
            length = math.sqrt(sum(float(g.double().square().sum()) for g in found))
            for layer, g in zip(cores, found, strict=True):
                total[layer] += g * min(1.0, 0.2 / length)
        noise = source.gaussian((sum(core.numel() for core in cores.values()),), work.sigma)
        for layer, core in cores.items():
            own, noise = noise[: core.numel()].view_as(core), noise[core.numel():]
            core.grad = ((total[layer] + own) / work.expected).float()
        optimizer.step()
    for layer, core in cores.items():
        assert_near(after.tensors[f"{layer}.R"], core.detach(), 1e-3, what=layer)


# -- renewal ---------------------------------------------------------------------------------------------------


def rounds(run, state, count, texts=PUBLIC):
    for _ in range(count):
        state = run.module.look(run.config, run.context, state, run.learner, texts)
        state, _ = run.round(state, lr=0.05)
    return state


def test_a_renewed_basis_keeps_what_was_trained_and_goes_on_from_there(folder):
    run = pieces(folder, options={"renew": 2}, ranks={"bob": 1})
    state = rounds(run, run.start(), 2)
    before = dense(run.result(state))
    renewed = run.module.look(run.config, run.context, state, run.learner, PUBLIC)
    assert renewed.round == 2
    assert_near(dense(run.result(renewed)), before, 1e-5)
    assert all(not renewed.tensors[f"{layer}.R"].any() for layer in run.shapes)
    with loading.folded(run.learner.base, {layer: t.float() for layer, t in before.items()}):
        wanted = gradient_basis(run.learner, run.shapes, 2, PUBLIC, run.context.seeds)
    layer = max(run.shapes)
    assert_near(renewed.tensors[f"basis/{layer}.A"], wanted[layer][0], 1e-3)
    run.requests = []
    after, _ = run.round(renewed, lr=0.05)
    assert {a.shape[0] for a, _ in run.result(after).factors.values()} == {4}
    for work_update in run.updates[-3:]:
        assert set(work_update.tensors) == {f"{layer}.R" for layer in run.shapes}
    for request in run.requests:  # everybody is sent all of what was trained, and the basis at its own rank
        own = 1 if request.client == "bob" else 2
        assert {t.shape[0] for n, t in request.kept.items() if n.startswith("basis/") and n.endswith(".A")} == {own}
        assert {t.shape[0] for n, t in request.kept.items() if n.startswith("past/") and n.endswith(".A")} == {2}
    assert run.module.look(run.config, run.context, after, run.learner, PUBLIC) is after
    third = rounds(run, after, 2)
    assert {a.shape[0] for a, _ in run.result(third).factors.values()} == {6}
    assert all(bool(torch.isfinite(t).all()) for t in third.tensors.values())


def test_a_site_trains_on_top_of_what_was_trained_in_older_bases(folder):
    """The same round from a base that holds the old update in its weights."""
    run = pieces(folder, options={"renew": 1}, clients=("ann",))
    state = run.module.look(run.config, run.context, rounds(run, run.start(), 1), run.learner, PUBLIC)
    after, _ = run.round(state, lr=0.05)
    bare = replace(state, tensors={n: t for n, t in state.tensors.items() if not n.startswith("past/")})
    held = {layer: t.float() for layer, t in dense(run.result(state)).items()}
    with loading.folded(run.learner.base, held):
        other, _ = run.round(bare, lr=0.05)
    for layer in run.shapes:
        assert_near(after.tensors[f"{layer}.R"], other.tensors[f"{layer}.R"], 1e-3)


@pytest.mark.parametrize("options", [{}, {"server": "adam", "server_lr": 0.1}, {"server": "momentum"}])
def test_the_bytes_that_travel_once_are_those_of_the_formula(folder, options):
    run = pieces(folder, options={"renew": 2, **options}, ranks={"bob": 1}, planned_rounds=5)
    state, kept = run.start(), {}
    for _ in range(5):
        run.requests = []
        state = rounds(run, state, 1)
        for request in run.requests:
            kept.setdefault(request.client, {})[id(request.kept)] = request.kept
    for name in run.clients:
        sizes, seen = 0, []
        for tensors in kept[name].values():
            if not any(all(torch.equal(a, b) for a, b in zip(tensors.values(), other.values(), strict=True))
                       if tensors.keys() == other.keys() and all(tensors[n].shape == other[n].shape for n in tensors) else False for other in seen):
                seen.append(tensors)
                sizes += 4 * sum(t.numel() for t in tensors.values())
        assert len(seen) == 3
        assert run.module.kept_bytes(run.config, run.context, name) == sizes


def test_what_a_method_wants_to_read_and_when():
    module = METHODS.find("cores")
    run = Federation("cores")
    for options, wanted in [({}, [("auto",), (), ()]), ({"renew": 2}, [("auto",), (), ("auto",)]), ({"basis": "random"}, [(), (), ()]),
                            ({"basis": "weights"}, [(), (), ()]), ({"basis_text": ["public", "released"]}, [("public", "released"), (), ()])]:
        config = module.Config(**options)
        assert [module.wants(config, run.context, replace(run.start(), round=done)) for done in (0, 1, 2)] == wanted


def test_no_client_s_text_is_within_reach_of_the_basis(folder, monkeypatch):
    """``look`` is given public text alone, and a request's fixed tensors do not depend on who takes part."""
    one, two = pieces(folder), pieces(folder, sizes={"ann": 9})
    two.sites = {name: replace(site, train=(Record("other text altogether"),) * 3) for name, site in two.sites.items()}
    kept = []
    for run in (one, two):
        state = run.module.look(run.config, run.context, run.start(), run.learner, PUBLIC)
        run.round(state, lr=0.05)
        kept.append(run.requests[0].kept)
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


@pytest.mark.parametrize("private", [False, True])
def test_the_mean_of_cores_is_the_core_of_the_mean(private):
    """Linear: what the server adds is the mean of the clients' dense updates, whatever the basis."""
    run = Federation("cores", ON if private else OFF, shapes={"one": (9, 7), "two": (6, 8)}, rank=3, noise=ZeroNoise())
    state = run.start()
    for _ in range(3):
        state, _ = run.round(state)
        wanted = {layer: sum(held[layer] for held in run.held().values()) / 3 for layer in run.shapes}
        assert_near(dense(run.result(state)), wanted, 1e-5)
    assert lora.norm(run.result(state)) > 1e-2
