"""What stays with a client: adapters of its own, and the memory of its site."""

from __future__ import annotations

import json

import pytest
import torch
from tests.closeness import assert_learnt_alike
from tests.contract.federation import LR, ON, WIDE, Federation, dense, distance, real, unlike
from tests.tiny_bases import filled, records, tiny

from aulait.core import lora
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, Plan, Site, TrainRequest
from aulait.evaluation.losses import EvaluateConfig, evaluate
from aulait.methods import METHODS, fdlora
from aulait.methods.shared import client_update, fusion
from aulait.methods.shared.fusion import FusionSearch
from aulait.runs import client_state

PERSONAL = [name for name in METHODS.names() if METHODS.find(name).TRAITS.personal]
REMEMBERING = [*PERSONAL, "flora", "fedex", "hsplitlora"]
RANKS = {"ann": {"one": 1, "two": 3}, "bob": 2}
each = pytest.mark.parametrize("method", PERSONAL)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


def bits(site: Site) -> dict:
    """A copy of a site's memory that later rounds cannot change."""
    tensors, plain = client_state.packed({site.name: site.memory})
    return client_state.unpacked({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(plain))).get(site.name, {})


def empty(name: str = "ann") -> Site:
    return Site(name, Plan("t", "local", 1, 1, 1), ())


# -- what a site remembers -------------------------------------------------------------------------------------


def test_there_are_personal_methods():
    assert {"alone", "fedsa", "fdlora"} <= set(PERSONAL)


def test_a_site_recalls_its_state_before_a_round_even_after_it():
    site = empty()
    first, second = {"x": torch.ones(1)}, {"x": torch.full((1,), 2.0)}
    assert client_update.recall(site, 1) == {}
    client_update.keep(site, 1, first)
    assert client_update.recall(site, 1) == {}  # before round 1 there was nothing
    assert client_update.recall(site, 2) is first
    client_update.keep(site, 2, second)
    assert client_update.recall(site, 2) is first
    client_update.keep(site, 2, second)  # the same order twice
    assert client_update.recall(site, 2) is first
    assert client_update.recall(site, 3) is client_update.recall(site, 9) is second  # also after rounds it missed


@pytest.mark.parametrize("method", REMEMBERING)
def test_the_same_order_gets_the_same_reply_and_leaves_the_same_memory(method):
    run = Federation(method, shapes=WIDE, rank=4, ranks=RANKS)
    state = run.start()
    for _ in range(3):
        run.requests, run.updates = [], []
        state, _ = run.round(state)
        had = {name: bits(site) for name, site in run.sites.items()}
        for request, update in [*zip(run.requests, run.updates, strict=True)] * 2:
            (again,) = run.module.answer([request], [run.sites[request.client]], run.context, run.learner)
            assert unlike(again.tensors, update.tensors) == ""
        assert unlike({name: bits(site) for name, site in run.sites.items()}, had) == ""


@pytest.mark.parametrize("method", REMEMBERING)
def test_an_order_changes_the_memory_of_its_own_site_only(method):
    """Bit for bit: what bob keeps is the same before and after a round of ann and cat."""
    run = Federation(method, shapes=WIDE, rank=4, ranks=RANKS)
    state = run.rounds(2)
    before = bits(run.sites["bob"])
    assert before
    for _ in range(2):
        state, _ = run.round(state, clients=("ann", "cat"))
        assert unlike(bits(run.sites["bob"]), before) == ""
    state, _ = run.round(state)
    assert unlike(bits(run.sites["bob"]), before) != ""


@each
def test_what_is_kept_is_no_view_of_what_was_sent(method):
    """Overwriting the order and the update afterwards must not reach into a site."""
    run = Federation(method, shapes=WIDE, rank=4, ranks=RANKS)
    run.rounds(2)
    before = {name: bits(site) for name, site in run.sites.items()}
    for thing in (*run.requests, *run.updates):
        for tensor in thing.tensors.values():
            tensor.zero_()
    assert unlike({name: bits(site) for name, site in run.sites.items()}, before) == ""


# -- personal adapters -----------------------------------------------------------------------------------------


@each
def test_every_client_has_an_adapter_of_its_own_at_its_own_ranks(method, tiny_base):
    options = {"fusion_l1": 0.0} if method == "fdlora" else {}  # two rounds gain less than the penalty, and the base would be best
    run = real(tiny_base, method, ranks={"bob": 1}, sizes={"ann": 6, "bob": 6, "cat": 6}, options=options)
    own = run.personal(run.rounds(2))
    assert set(own) == set(run.sites)
    for name, adapter in own.items():
        for layer, (a, b) in adapter.factors.items():
            assert a.shape[0] == b.shape[1] == run.context.rank_of(name)(layer)
        assert lora.norm(adapter) > 0
    assert distance(dense(own["ann"]), dense(own["cat"])) > 1e-4


@each
def test_asking_for_personal_adapters_changes_nothing(method, tiny_base):
    run = real(tiny_base, method, clients=("ann", "bob"))
    state = run.rounds(2)
    had = {name: bits(site) for name, site in run.sites.items()}
    one, two = run.personal(state), run.personal(state)
    assert unlike({name: bits(site) for name, site in run.sites.items()}, had) == ""
    assert all(distance(dense(one[n]), dense(two[n])) == 0.0 for n in one)


@pytest.mark.parametrize("method", ["fedit", "fedsa"])
def test_personal_parts_never_travel(method):
    """FedSA's updates and requests hold A alone, whatever B a site keeps."""
    run = Federation(method, privacy=ON)
    run.rounds(2)
    letters = {name[-1] for thing in run.updates for name in thing.tensors} | {name[-1] for thing in run.requests for name in thing.tensors}
    assert letters == ({"A"} if method == "fedsa" else {"A", "B"})


def test_alone_is_training_by_oneself_round_after_round(tiny_base):
    """Three rounds of a client among others are three trainings in a row of that client."""
    run = real(tiny_base, "alone", ranks={"bob": 1})
    own = run.personal(run.rounds(3))
    for name, site in run.sites.items():
        first = lora.to_tensors(lora.initial(run.shapes, 2, run.alpha, Seeds(run.seed)))
        adapter = lora.from_tensors(lora.leading(first, run.context.rank_of(name)), run.alpha, 2)
        for number in (1, 2, 3):
            request = TrainRequest(name, number, {}, {"lr": LR / number})
            training = client_update.local_training([request], [site], run.context, lambda *_, start=adapter: start)
            ((_, done),) = client_update.train([request], training, run.learner)
            adapter = done.adapter
        assert_learnt_alike(dense(own[name]), dense(adapter), 2e-3)


def test_fedsa_joins_the_shared_a_with_the_clients_own_b():
    run = Federation("fedsa", shapes=WIDE, rank=4, ranks=RANKS)
    state = run.rounds(2)
    last = {update.client: done.adapter for update, done in zip(run.updates[-3:], run.learner.done[-3:], strict=True)}
    for name, adapter in run.personal(state).items():
        for layer, (a, b) in adapter.factors.items():
            rank = run.context.rank_of(name)(layer)
            assert torch.equal(a, state.tensors[f"{layer}.A"][:rank])
            assert torch.equal(b, last[name].factors[layer][1])


def test_fedsa_clients_begin_a_round_from_their_own_b():
    run = Federation("fedsa", shapes=WIDE, rank=4, ranks=RANKS)
    state = run.rounds(1)
    last = {update.client: done.adapter for update, done in zip(run.updates, run.learner.done, strict=True)}
    state, _ = run.round(state, clients=("ann",))
    run.learner.works.clear()
    run.round(state, clients=("bob", "cat"))  # who missed a round still has its B
    for name, work in zip(("bob", "cat"), run.learner.works, strict=True):
        for layer, (a, b) in work.start.factors.items():
            assert torch.equal(b, last[name].factors[layer][1])
            assert torch.equal(a, state.tensors[f"{layer}.A"][: a.shape[0]])


# -- FDLoRA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "copies"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (3, [1, 4]), (0, [1])])
def test_fdlora_copies_every_h_rounds_of_stage_two(every, copies):
    """Stage 1 is round 1; t counts the rounds after it, and t % H == 0 copies."""
    run = Federation("fdlora", options={"copy_every": every})
    state, came = run.start(), []
    for number in range(1, 7):
        state, _ = run.round(state)
        kept = client_update.recall(run.sites["ann"], number + 1)
        trained = lora.to_tensors(run.learner.done[-3].adapter)
        if unlike(kept, trained) == "":
            came.append(number)
    assert came == copies


def test_an_fdlora_client_that_missed_stage_one_gets_its_personal_adapter_when_it_comes():
    run = Federation("fdlora", options={"copy_every": 0})
    state, _ = run.round(run.start(), clients=("ann", "cat"))
    assert client_update.recall(run.sites["bob"], 2) == {}
    state, _ = run.round(state)
    assert unlike(client_update.recall(run.sites["bob"], 3), lora.to_tensors(run.learner.done[-2].adapter)) == ""
    before = bits(run.sites["bob"])["kept"]["after"]
    run.round(state)
    assert unlike(client_update.recall(run.sites["bob"], 4), before) == ""


def test_fdlora_stage_one_may_take_steps_of_its_own_and_never_sees_the_shots():
    run = Federation("fdlora", options={"personal_steps": 7, "shots": 2}, sizes={"ann": 9, "bob": 3, "cat": 4})
    run.rounds(2)
    assert [work.steps for work in run.learner.works] == [7, 7, 7, 2, 2, 2]
    for name, work in zip(("ann", "bob", "cat"), run.learner.works, strict=False):
        every = run.sites[name].train
        assert work.records == (every if name == "bob" else every[:-2])  # bob has fewer than twice the shots
        assert fdlora._parted(run.sites[name], 2)[1] == (every if name == "bob" else every[-2:])


def test_fdlora_gives_no_personal_adapters_before_the_end(tiny_base):
    run = real(tiny_base, "fdlora", clients=("ann",))
    assert run.personal(run.rounds(1), final=False) == {}


def loss(learner, adapter, some):
    return evaluate(learner, adapter, {"own": some}, EvaluateConfig(records_per_client=len(some))).loss


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tries", [4, 25])
def test_the_fusion_is_never_worse_than_either_adapter_their_mean_or_the_base(tiny_base, seed, tries):
    run = real(tiny_base, "fdlora", clients=("ann",))
    own, shared = (filled(run.shapes, 2, alpha=4.0, seed=10 * seed + k, size=0.4) for k in (1, 2))
    some = records(4, seed)
    weights = fusion.best_weights(run.learner, own, shared, some, FusionSearch(0.05, 1.5, tries))

    def objective(w):
        return loss(run.learner, fusion.fused(own, shared, w), some) + 0.05 * (abs(w[0]) + abs(w[1])) / 2

    assert all(abs(w) <= 1.5 for w in weights)
    assert objective(weights) <= min(objective(w) for w in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.0, 0.0))) + 1e-9


def test_the_fusion_leaves_the_line_between_the_two_adapters(monkeypatch):
    """The weights need not sum to 1: with a valley at (0.9, 0.6) the search goes there."""
    monkeypatch.setattr(fusion, "fused", lambda own, shared, w: w)
    monkeypatch.setattr(fusion, "evaluate", lambda learner, w, *_: type("E", (), {"loss": (w[0] - 0.9) ** 2 + (w[1] - 0.6) ** 2}))
    found = fusion.best_weights(None, None, None, (1,), FusionSearch(0.0, 1.5, 60))
    assert found == pytest.approx((0.9, 0.6), abs=0.02)
    assert fusion.best_weights(None, None, None, (1,), FusionSearch(10.0, 1.5, 60)) == pytest.approx((0.0, 0.0), abs=0.02)  # a large L1 term gives the base


def test_the_fusion_stays_within_its_bound_and_its_tries(monkeypatch):
    asked = []
    monkeypatch.setattr(fusion, "fused", lambda own, shared, w: w)
    monkeypatch.setattr(fusion, "evaluate", lambda learner, w, *_: asked.append(w) or type("E", (), {"loss": -w[0] - w[1]}))
    found = fusion.best_weights(None, None, None, (1,), FusionSearch(0.0, 0.7, 30))
    assert max(abs(v) for w in asked for v in w) <= 0.7
    assert len(asked) <= 30
    assert found == pytest.approx((0.7, 0.7), abs=0.05)


def test_fusion_is_element_by_element():
    own, shared = (Adapter({"x": (torch.full((2, 3), v), torch.full((4, 2), -v))}, 8.0, 4) for v in (1.0, 10.0))
    made = fusion.fused(own, shared, (2.0, 0.5))
    assert made.scale("x") == shared.scale("x")
    assert torch.equal(made.factors["x"][0], torch.full((2, 3), 7.0))
    assert torch.equal(made.factors["x"][1], torch.full((4, 2), -7.0))
