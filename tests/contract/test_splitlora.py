"""What every method must do, for the one whose clients and server each hold a half: it needs a real model and asks many times a round."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.closeness import assert_learnt_alike, assert_near
from tests.contract.federation import LR, ON, PROXIES, Federation, apart, dense, distance, unlike
from tests.tiny_bases import records, tiny

from aulait.core import lora
from aulait.core.errors import PrivacyError, WireError
from aulait.core.factors import Trainable
from aulait.core.types import nbytes
from aulait.engines.inline import LocalClients
from aulait.methods import splitlora
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.runfolder.run_folder import RunFolder
from aulait.runs.progress import Progress
from aulait.training import split_model
from aulait.training.split_trainer import travelled
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

SERVER = splitlora.SERVER
KINDS = ["llama", "gpt2", "t5"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return cache(lambda kind: tiny(folder, kind))


@pytest.fixture(scope="module")
def make(bases):
    """A federation on a tiny base cut at its first possible place."""
    def build(kind: str = "llama", train: dict | None = None, options: dict | None = None, plans: dict | None = None, **more) -> Federation:
        base = bases(kind)
        run = Federation("splitlora", learner=Learner(base, TrainConfig(**train or {})), shapes=dict(loading.targets(base, AdapterConfig())),
                         options={"cut": split_model.possible_cuts(base)[0]} | (options or {}), **more)
        for name, own in run.sites.items():
            texts = records(len(own.train), ord(name[0]) + ord(name[-1]), kind == "t5")
            run.sites[name] = replace(own, train=texts, plan=replace(own.plan, **(plans or {}).get(name, {})))
        return run

    return build


def work(run: Federation, name: str, state, round: int = 1) -> LocalTraining:
    """What this client does in a round, as one that trains whole."""
    site = run.sites[name]
    return LocalTraining(run.result(state), site.train, Trainable.AB, site.plan.steps, site.plan.batch, LR / round, run.context.seeds.integer("batches", round, name))


# -- what is computed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [{"max_grad_norm": 0.05}, {"max_grad_norm": 0.0, "optimizer": "sgd"}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("kind", KINDS)
def test_one_client_is_plain_lora_training(make, kind, train):
    run = make(kind, train, clients=("ann",), plans={"ann": {"steps": 3}})
    before = run.start()
    after, info = run.round(before)
    (done,) = run.learner.train([work(run, "ann", before)])
    wanted = lora.to_tensors(done.adapter)
    if train.get("optimizer") == "sgd":
        assert_near(after.tensors, wanted, 1e-5)
    assert_learnt_alike(after.tensors, wanted, 2e-3, start=before.tensors)
    assert apart(after, replace(before, round=1)) > 1e-4
    assert info["train_loss"] == pytest.approx(done.loss, rel=1e-5)
    assert info["train_tokens"] == done.tokens


def test_moments_are_kept_over_rounds_or_fresh_as_the_settings_say(make):
    """One client: two rounds with fresh moments are two trainings, and with kept ones something else."""
    fresh, kept = (make(clients=("ann",), options={"moments": how}) for how in ("fresh", "keep"))
    one = fresh.rounds(1)
    two = fresh.rounds(1, one)
    (done,) = fresh.learner.train([work(fresh, "ann", one, round=2)])
    assert_learnt_alike(two.tensors, lora.to_tensors(done.adapter), 2e-3, start=one.tensors)
    same = kept.rounds(1)
    assert apart(same, one) == 0.0
    assert apart(kept.rounds(1, same), two) > 1e-4
    assert [float(kept.sites[name].memory["kept"]["after"]["t"]) for name in ("ann", SERVER)] == [4.0, 4.0]
    assert [float(fresh.sites[name].memory["kept"]["after"]["t"]) for name in ("ann", SERVER)] == [2.0, 2.0]


def test_every_client_is_sent_the_gradient_of_its_own_loss_and_the_server_steps_once_a_step(make):
    run = make(sizes={"ann": 6})
    run.round(run.start())
    at = {SERVER: [o for o in run.requests if o.client == SERVER], "ann": [o for o in run.requests if o.client == "ann"]}
    assert len(at[SERVER]) == len(at["ann"]) == 3  # two steps, and an end
    assert float(run.sites[SERVER].memory["kept"]["after"]["t"]) == 2.0
    alone = make(clients=("ann",), sizes={"ann": 6})
    alone.round(alone.start())
    first = next(o for o in alone.requests if o.client == "ann" and o.settings["step"] == 2)
    assert_near(at["ann"][1].tensors["data"], first.tensors["data"], 1e-5)


def test_clients_of_unequal_steps_leave_one_by_one(make):
    run = make(plans={"bob": {"steps": 1}, "cat": {"steps": 3, "batch": 1}})
    after, info = run.round(run.start())
    asked = [[o.client for o in run.requests if o.client != SERVER and o.settings["step"] == number] for number in (1, 2, 3, 4, 5)]
    assert asked == [["ann", "bob", "cat"], ["ann", "bob", "cat"], ["ann", "cat"], ["cat"], []]
    assert info["refused"] == 0
    lasts = [r.tensors for r in run.updates if r.client != SERVER and "labels" not in r.tensors]
    for name in lasts[0].keys() - {"square"}:
        assert_near(after.tensors[name], sum(own[name] for own in lasts) / 3, 1e-6, what=name)


def test_nobody_is_sent_more_than_its_rank(make):
    run = make(ranks={"bob": 1})
    after = run.rounds(2)
    for request in run.requests:
        most = 2 if request.client == SERVER else run.context.rank_of(request.client)("any") if request.client != "bob" else 1
        for name, tensor in request.tensors.items():
            assert not name.endswith((".A", ".B")) or tensor.shape["BA".index(name[-1]) ^ 1] <= most
    assert all(bool(torch.isfinite(t).all()) and t.dtype == torch.float32 for t in after.tensors.values())


# -- determinism -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_result_and_the_order_of_clients_is_irrelevant(make):
    one, two, other = make(), make(), make(seed=4)
    left, right = one.rounds(2), two.rounds(2)
    assert apart(left, right) == 0.0
    assert unlike(one.memory(), two.memory()) == ""
    assert apart(left, other.rounds(2)) > 1e-4
    turned, state = make(clients=("cat", "ann", "bob")), None
    state = turned.start()
    for _ in range(2):
        state, _ = turned.round(state, ask=lambda orders: turned.ask(orders[::-1]) if len(orders) > 1 else turned.ask(orders))
    assert_learnt_alike(state.tensors, left.tensors, 2e-3, start=turned.start().tensors)


def test_an_answer_alone_equals_the_answer_among_many_also_when_asked_twice(make):
    run, undisturbed = make(ranks={"bob": 1}), make(ranks={"bob": 1})
    state = run.start()

    def twice(requests):
        updates = run.ask(requests)
        for request, update in zip(requests, updates, strict=True):
            (again,) = run.module.answer([request], [run.sites[request.client]], run.context, run.learner)
            assert again.tensors.keys() == update.tensors.keys()
            assert_learnt_alike(again.tensors, update.tensors, 2e-3)
        return updates

    for _ in range(2):
        state, _ = run.round(state, ask=twice)
    wanted = undisturbed.rounds(2)
    assert_learnt_alike(state.tensors, wanted.tensors, 2e-3, start=run.start().tensors)
    first = next(order for order in run.requests if order.client == "ann")
    with pytest.raises(WireError, match="a step that is past"):
        run.module.answer([first], [run.sites["ann"]], run.context, run.learner)


@pytest.mark.parametrize("moments", ["keep", "fresh"])
def test_stop_and_resume_equals_no_stop(make, moments, tmp_path):
    def some(run, state, count):
        for _ in range(count):
            state, _ = run.round(state, clients=("ann", "cat") if state.round == 1 else None)
        return state

    whole, half, resumed = (make(options={"moments": moments}, ranks={"bob": 1}) for _ in range(3))
    wanted = some(whole, whole.start(), 3)
    progress = Progress()
    progress.bind(half.sites)
    progress.state = some(half, half.start(), 2)
    progress.save(RunFolder(tmp_path))
    loaded = Progress.load(RunFolder(tmp_path))
    loaded.bind(resumed.sites)
    assert apart(some(resumed, loaded.state, 1), wanted) == 0.0
    assert unlike(resumed.memory(), whole.memory()) == ""


def test_through_the_engine_with_split_sites_it_is_the_same(make):
    run, wanted = make(plans={n: {"placement": "split", "cut": 1} for n in ("ann", "bob", "cat")}), make().rounds(2)
    ask, state = LocalClients(run.sites, run.module, run.context, run.learner, private=False).ask, run.start()
    for _ in range(2):
        state, _ = run.round(state, ask=ask)
    assert apart(state, wanted) == 0.0


# -- bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_factors_and_of_the_steps(make, kind, wire):
    run = make(kind, options={"wire": wire}, ranks={"bob": 1}, plans={"cat": {"steps": 3}})
    state = run.start()
    for number in (1, 2):
        run.requests, run.updates = [], []
        works = [work(run, name, state, number) for name in run.clients]
        foretold = travelled(run.learner, works, run.config.cut, wire)
        state, info = run.round(state)
        for name, (up, down) in zip(run.clients, foretold, strict=True):
            ups, downs = run.module.travels(run.config, run.context, number, name, run.clients)
            assert sum(nbytes(r.tensors) for r in run.updates if r.client == name) == up + ups
            assert sum(nbytes(o.tensors) for o in run.requests if o.client == name) == down + downs
        assert info["up_bytes"] == sum(nbytes(r.tensors) for r in run.updates if r.client != SERVER)
        assert info["down_bytes"] == sum(nbytes(o.tensors) for o in run.requests if o.client != SERVER)


@pytest.mark.parametrize(("wire", "slack"), [("float16", 2e-3), ("int8", 0.05)])
def test_a_narrow_wire_learns_nearly_the_same(make, wire, slack):
    whole, narrow = (make(train={"optimizer": "sgd"}, options={"wire": w}, planned_rounds=2) for w in ("float32", wire))
    start, left, right = whole.start().tensors, whole.rounds(2).tensors, narrow.rounds(2).tensors
    flat = [torch.cat([(after[n] - start[n]).flatten() for n in sorted(start)]) for after in (left, right)]
    assert 0 < float((flat[0] - flat[1]).norm() / flat[0].norm()) < slack


# -- privacy ---------------------------------------------------------------------------------------------------


def test_under_privacy_it_is_refused_before_anybody_is_asked(make):
    run = make(privacy=ON)
    with pytest.raises(PrivacyError, match=r"'splitlora' reads single updates.*use 'fedit'"):
        run.rounds(1)
    assert not run.requests
    assert run.ledger.lines == ()
    assert "activations of single records leave the site" in splitlora.TRAITS.privacy


def test_without_privacy_the_ledger_stays_empty(make):
    run = make()
    run.rounds(1)
    assert run.ledger.lines == ()


# -- bad and missing messages ----------------------------------------------------------------------------------


def spoilt(share, kind: str):
    first = sorted(n for n in share if n not in ("labels", "square"))[0]
    if kind == "nan":
        return share | {first: torch.full_like(share[first], math.nan)}
    if kind == "huge":
        return share | {first: torch.full_like(share[first], 1e9)}
    if kind == "width":
        return share | {first: share[first][..., :-1].contiguous()}
    if kind == "vocabulary":
        return share | {"labels": torch.full_like(share["labels"], 10**6)} if "labels" in share else share | {first: share[first][:-1]}
    if kind == "extra":
        return share | {"other": torch.ones(2)}
    if kind == "norm":
        return share | {"square": torch.full((1,), -1.0)}
    return {}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("kind", ["nan", "huge", "width", "vocabulary", "extra", "norm", "empty"])
def test_a_bad_message_is_left_out_and_the_round_goes_on_without_its_sender(make, kind, number):
    """In the first step, in a later one, and at the end: as if the client had fallen silent there."""
    run, clean = make(), make()

    def spoil(requests):
        return [replace(r, tensors=spoilt(r.tensors, kind)) if r.client == "bob" and o.settings["step"] == number else r
                for o, r in zip(requests, run.ask(requests), strict=True)]

    def hush(requests):
        updates = clean.ask(requests)
        return [r for o, r in zip(requests, updates, strict=True) if r.client != "bob" or o.settings["step"] != number]

    after, info = run.round(run.start(), spoil)
    without, quiet = clean.round(clean.start(), hush)
    assert quiet["refused"] == 0
    assert info["refused"] == 1
    assert info["refused_clients"][0].startswith("bob: ")
    assert all(bool(torch.isfinite(t).all()) for t in after.tensors.values())
    # the norm of a step that the server has seen is told by neither; what was taken of bob before stays
    assert_learnt_alike(after.tensors, without.tensors, 2e-3, start=run.start().tensors)
    _, info = run.round(after)  # and the refused client is welcome again
    assert info["refused"] == 0
    assert [r.client for r in run.updates[-4:]] == ["ann", "bob", "cat", SERVER]


def test_strangers_twins_and_proxies_are_not_counted(make):
    wanted = make().rounds(1)
    for twist, told in ((lambda r: [r, replace(r, client=f"{r.client}-s twin")], "was not asked"), (lambda r: [r, r], "replied twice")):
        run = make()
        found, info = run.round(run.start(), lambda requests, run=run, twist=twist: [
            x for r in run.ask(requests) for x in (twist(r) if r.client != SERVER else [r])])
        assert apart(found, wanted) == 0.0
        assert {text.partition(": ")[2] for text in info["refused_clients"]} == {told}
    assert sorted(PROXIES)[0] == "proxy-000"
    run = make()
    found, info = run.round(run.start(), lambda requests: [replace(r, client="proxy-000") if r.client == "bob" else r for r in run.ask(requests)])
    without = make()
    wanted, _ = without.round(without.start(), clients=("ann", "cat"))
    assert_learnt_alike(found.tensors, wanted.tensors, 2e-3, start=without.start().tensors)
    assert info["refused_clients"] == ["proxy-000: is a proxy"]


@pytest.mark.parametrize("clients", [(), None])
def test_a_round_that_nobody_answers_changes_nothing(make, clients):
    run = make()
    before = run.start()
    after, info = run.round(before, clients=clients, ask=lambda requests: [r for r in run.ask(requests) if r.client == SERVER])
    assert after.round == 1
    assert distance(after.tensors, before.tensors) == 0.0
    assert info["up_bytes"] == 0
    assert distance(dense(run.result(run.rounds(1, after))), dense(run.result(before))) > 1e-4


def test_proxies_take_no_part(make):
    run = make(proxies=("proxy-000",))
    _, info = run.round(run.start())
    assert info["proxies"] == 0
    assert {request.client for request in run.requests} == {"ann", "bob", "cat", SERVER}


def test_label_smoothing_mixes_the_loss_with_that_of_uniform_targets(make):
    """(1 - e) · loss + e · uniform: linear in e, while nothing moves."""
    plain, some, more = (
        run.round(run.start(), lr=1e-30)[1]["train_loss"]
        for run in (make(options={"label_smoothing": part}) for part in (0.0, 0.1, 0.2)))
    assert some != plain
    assert more - plain == pytest.approx(2 * (some - plain), rel=0.05)
    moved, smooth = (run.rounds(1) for run in (make(), make(options={"label_smoothing": 0.5})))
    assert apart(moved, smooth) > 0
