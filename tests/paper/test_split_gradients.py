"""Property 6 of SplitLoRA: split gradients are whole gradients, averaging weights sum to 1, each client counts once, the bytes of a step."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.closeness import assert_near
from tests.contract.federation import LR, Federation
from tests.tiny_bases import filled, tiny

from aulait.core.factors import FactorName, Trainable
from aulait.core.lora import from_tensors, to_tensors
from aulait.core.types import Record, nbytes
from aulait.methods.contract import State
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.training import split_model
from aulait.training.batches import collate
from aulait.training.split_trainer import ClientHalf, ModelCut, ServerHalf, SplitLearner
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner, LocalTraining, TrainConfig, draws

SGD = {"optimizer": "sgd", "max_grad_norm": 0.0}
SIZES = {"ann": 8, "bob": 2, "cat": 4}
WIDTH = 16
RATE = 1e3  # a step so large that the rounding of the factors it moves is nothing beside it


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return cache(lambda kind: tiny(folder, kind))


def federation(base, train, **more) -> Federation:
    """Records of one length, so that every client's mean loss is a mean over equally many tokens."""
    run = Federation("splitlora", learner=Learner(base, TrainConfig(**train)), shapes=dict(loading.targets(base, AdapterConfig())),
                     sizes=SIZES, **{"options": {"cut": split_model.possible_cuts(base)[0]}} | more)
    for name, site in run.sites.items():
        letters = [chr(97 + (ord(name[0]) * 7 + 3 * i) % 26) for i in range(len(site.train) * 9)]
        texts = ["".join(letters[9 * i : 9 * i + 9]) for i in range(len(site.train))]
        prompt = base.config.kind == "seq2seq"
        run.sites[name] = replace(site, train=tuple(Record(t, prompt=t[::-1] if prompt else None) for t in texts), plan=replace(site.plan, steps=1))
    return run


def begun(run: Federation) -> State:
    """A state whose B is not zero, so that both factors have gradients."""
    return State(0, to_tensors(filled(run.shapes, run.rank, run.alpha)))


def batches(run: Federation) -> dict[str, list[Record]]:
    """What every client reads in the one step of the first round."""
    found = {}
    for name in run.clients:
        site = run.sites[name]
        plan = draws(LocalTraining(None, site.train, Trainable.AB, 1, 2, LR, run.context.seeds.integer("batches", 1, name)),
                     [len(run.learner.encode(r)[0]) for r in site.train])
        found[name] = [site.train[i] for i in plan[0]]
    return found


def gradient(run: Federation, state: State, records: list[Record]) -> dict[str, torch.Tensor]:
    """Of the mean loss over all tokens of these records, by the whole model."""
    start = from_tensors(state.tensors, run.alpha)
    stack = Stack.of([start], Trainable.AB, run.learner.base.device)
    loss, _ = run.learner.losses(collate(run.learner.base, run.learner.encode, records), stack, 1)
    loss.sum().backward()
    return {f"{n}.{letter}": stack.factors[n][i].grad[0] for n in stack.factors for i, letter in enumerate("AB")}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_6_split_gradients_equal_whole_gradients(bases, kind):
    """One client, the same batch, no dropout: every factor on both sides of the cut, to the rounding of float32."""
    base = bases(kind)
    run = federation(base, SGD, clients=("ann",))
    state, after = begun(run), split_model.possible_cuts(base)[0]
    start, (records,) = from_tensors(state.tensors, run.alpha), batches(run).values()
    work = LocalTraining(start, tuple(records), Trainable.AB, 1, 2, RATE, 0)
    front = ClientHalf(run.learner, [work], ModelCut(after, "float32"))
    back = ServerHalf(base, run.learner.config, [start], work, ModelCut(after, "float32"), True)
    returned, _, _ = back.backward(front.forward(0))
    found = {str(name): leaf.grad[0].clone() for name, leaf in zip(back.names, back.stack.leaves, strict=True)}
    front.backward(returned)  # a step of SGD, so that the gradient is what was taken away
    found |= {name: (state.tensors[name] - t) / RATE for name, t in to_tensors(front.stack.take(0)).items()}
    wanted = gradient(run, state, records)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_near(found[name], value, 1e-5, what=name)
        assert float(value.abs().max()) > 1e-7


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_6_one_step_of_sgd_is_the_centralised_step_on_all_batches_together(bases, kind):
    run = federation(bases(kind), SGD)
    before = begun(run)
    after, _ = run.round(before, lr=RATE)
    wanted = gradient(run, before, [record for own in batches(run).values() for record in own])
    taken = {name: (before.tensors[name] - after.tensors[name]) / RATE for name in wanted}
    for name, value in wanted.items():
        assert_near(taken[name], value, 1e-5, what=name)


@pytest.mark.parametrize("weights", ["uniform", "size"])
def test_6_the_step_is_the_weighted_mean_of_the_clients_gradients_with_weights_that_sum_to_one(bases, weights):
    base = bases("llama")
    run = federation(base, SGD, options={"cut": 1, "weights": weights})
    before = begun(run)
    after, _ = run.round(before, lr=RATE)
    share = {name: (SIZES[name] if weights == "size" else 1) / (14 if weights == "size" else 3) for name in run.clients}
    assert sum(share.values()) == pytest.approx(1.0)
    gradients = {name: gradient(run, before, own) for name, own in batches(run).items()}
    wanted = {n: t - RATE * sum(share[k] * gradients[k][n] for k in share) for n, t in before.tensors.items()}
    assert_near(after.tensors, wanted, 1e-5)


def test_6_each_client_counts_once_after_its_last_update(bases):
    """The authors' code took four snapshots of three clients, each before its step. Here the average is of what everybody ended with."""
    run = federation(bases("llama"), {})
    run.sites = {name: replace(site, plan=replace(site.plan, steps=3)) for name, site in run.sites.items()}
    after, _ = run.round(begun(run))
    ended = [update.tensors for update in run.updates if update.client in run.clients and "labels" not in update.tensors]
    assert len(ended) == 3
    for name, value in after.tensors.items():
        if split_model.in_client_half(FactorName.parse(name).layer, 1):
            assert_near(value, sum(own[name] for own in ended) / 3, 1e-6, what=name)
    kept = {name: run.sites[name].memory["kept"]["after"] for name in run.clients}
    assert all(torch.equal(kept[name][n], own[n]) for name, own in zip(run.clients, ended, strict=True) for n in own if n != "square")
    assert {float(own["t"]) for own in kept.values()} == {3.0}


def test_6_the_bytes_of_a_step_are_batch_times_tokens_times_width_times_four_and_labels(bases):
    base = bases("llama")
    run = federation(base, {})
    state, _ = run.round(begun(run))
    tokens = 9 + 2  # bytes of a text between <s> and </s>
    factors = run.module.travels(run.config, run.context, 1, "ann", run.clients)[0]
    for name in run.clients:
        up = [nbytes(r.tensors) for r in run.updates if r.client == name]
        down = [nbytes(o.tensors) for o in run.requests if o.client == name]
        assert up == [2 * tokens * WIDTH * 4 + 2 * tokens * 4, factors + 4]
        assert down == [factors, 2 * tokens * WIDTH * 4 + 4]
    (done,) = SplitLearner(run.learner, 1, private=False).train([LocalTraining(from_tensors(state.tensors, 4.0), run.sites["ann"].train, Trainable.AB, 1, 2, LR, 0)])
    assert (done.up_bytes, done.down_bytes) == (2 * tokens * (WIDTH + 1) * 4 + 4, 2 * tokens * WIDTH * 4 + 4)
