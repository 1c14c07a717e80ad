"""Federations whose clients afford different ranks, layer by layer."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tests.closeness import assert_near
from tests.contract.federation import (
    LR,
    ON,
    WIDE,
    Federation,
    ZeroNoise,
    apart,
    dense,
    mean,
    unlike,
)
from tests.oracle import averaging

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import WireError
from aulait.core.factors import FactorName
from aulait.core.types import Adapter, TrainRequest
from aulait.methods import METHODS, fedplora
from aulait.methods.contract import Server
from aulait.privacy import clipping
from aulait.privacy.noise import SystemNoise
from aulait.training.trainer import Trained

RANKS = {"ann": {"one": 1, "two": 3}, "bob": {"one": 2, "two": 2}, "cat": 3}  # dan and the proxies afford all of R = 4
CLIENTS = ("ann", "bob", "cat", "dan")
NESTED = {"cores": "R", "fedavg": "AB", "fedit": "AB", "fedprox": "AB", "fedrot": "AB", "lalora": "AB", "scaffold": "AB",
           "ffa": "B", "fedsa": "A", "rolora": "BA", "fdlora": "AB"}  # rolora: B in odd rounds, A in even ones
FOLDING = ("flora", "fedex", "hsplitlora")  # exactly; florist cuts, fedplora folds columns
RELEASING = [m for m in METHODS.names() if (t := METHODS.find(m).TRAITS).private and t.unit == "client" and m != "alone"]
PLAIN = {"server": "plain", "server_lr": 1.0}


def federation(method: str, **more) -> Federation:
    options = PLAIN if "server" in METHODS.find(method).Config.model_fields else {}
    return Federation(method, **{"shapes": WIDE, "clients": CLIENTS, "rank": 4, "ranks": RANKS, "options": options} | more)


# -- nested columns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NESTED)
@pytest.mark.parametrize("private", [False, True])
def test_every_column_is_averaged_over_those_who_own_it(method, private):
    privacy = {"privacy": ON} if private else {}
    run = federation(method, proxies=("proxy-000",), stands=2.5, options=PLAIN | {"local_weight": 0.5}, **privacy)
    state = run.start()
    for number in (1, 2):
        run.updates = []
        after, _ = run.round(state)
        letters = NESTED[method] if method != "rolora" else NESTED[method][number - 1]
        weights = dict.fromkeys(CLIENTS, 0.5) | {"proxy-000": 2.5}
        for layer, letter in itertools.product(WIDE, letters):
            name = f"{layer}.{letter}"
            terms = [(weights[r.client], r.tensors[name].numpy()) for r in run.updates]
            owners = [(weight, run.context.rank_of(client)(layer)) for client, weight in weights.items()]
            wanted = averaging.nested(tuple(state.tensors[name].shape), letter, terms, owners)
            assert_near(after.tensors[name] - state.tensors[name], wanted, 1e-5, what=name)
        state = after


@pytest.mark.parametrize("method", [*NESTED, "safedlora", "fedex"])
def test_a_column_that_nobody_owns_stays_as_it_is(method):
    run = federation(method)
    state = run.start()
    after, _ = run.round(state, clients=("ann", "bob"))
    for layer, most in (("one", 2), ("two", 3)):
        for letter in "AB":
            if f"{layer}.{letter}" in state.tensors:
                before, now = state.tensors[f"{layer}.{letter}"], after.tensors[f"{layer}.{letter}"]
                rest = slice(most, None) if letter == "A" else (slice(None), slice(most, None))
                assert_near(now[rest], before[rest], 1e-6)


@pytest.mark.parametrize("options", [{}, {"partition": True}, {"mass": "symmetric"}])
def test_flexlora_can_still_learn_in_columns_that_a_small_cohort_left_empty(options):
    """The merge of two small clients has rank 3 at most: the fourth column must not become zero in A and in B for good."""
    run = federation("flexlora", options=options)
    state, _ = run.round(run.start(), clients=("ann",))
    for layer in WIDE:
        a, b = state.tensors[f"{layer}.A"], state.tensors[f"{layer}.B"]
        assert bool((a.any(1) | b.any(0)).all())
    wanted = mean({"ann": run.held(1)["ann"]})
    assert_near(dense(run.result(state)), wanted, 1e-5)


def test_flexlora_with_partition_keeps_what_only_absent_clients_own():
    run = federation("flexlora", options={"partition": True})
    state = run.rounds(2)
    sent = dense(run.result(state))

    def unmoved(requests):
        return [replace(r, tensors={n: torch.zeros_like(t) for n, t in r.tensors.items()}) for r in run.ask(requests)]

    after, _ = run.round(state, ask=unmoved, clients=("ann", "bob"))
    assert_near(dense(run.result(after)), sent, 1e-5)


# -- exact in weight space -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["flexlora", *FOLDING])
@pytest.mark.parametrize("weights", ["uniform", "size"])
def test_exact_methods_equal_the_mean_of_what_clients_really_hold_round_after_round(method, weights):
    """Base fold and adapter together, at every client's own ranks; rank 9 is all that FlexLoRA's layers have."""
    rank = 9 if method == "flexlora" else 4
    sizes = {"ann": 9, "bob": 2, "cat": 5, "dan": 3}
    run = federation(method, rank=rank, options={"weights": weights, "local_weight": 0.5}, proxies=("proxy-000",), sizes=sizes)
    middle = sum(sizes.values()) / 4
    counts = {n: 0.5 * (size / middle if weights == "size" else 1.0) for n, size in sizes.items()} | {"proxy-000": 2.0}
    state = run.start()
    for _ in range(4):
        state, _ = run.round(state)
        wanted = mean(run.held(), counts)
        assert max(float(t.abs().max()) for t in wanted.values()) > 1e-2
        assert_near(dense(run.result(state)), wanted, 1e-5)


@pytest.mark.parametrize("method", ["flexlora", *FOLDING])
def test_exact_methods_stay_exact_when_other_clients_take_part_in_every_round(method):
    run = federation(method, rank=9 if method == "flexlora" else 4)
    state = run.start()
    for clients in (("ann", "bob"), ("cat",), ("ann", "dan"), CLIENTS):
        state, _ = run.round(state, clients=clients)
        assert_near(dense(run.result(state)), mean(run.held(len(clients))), 1e-5)


def test_fedex_clients_of_every_rank_begin_a_round_from_the_total_update():
    """A client's fold and the adapter it is sent make G, whatever its ranks."""
    run = federation("fedex")
    state = run.start()
    for _ in range(3):
        whole = dense(run.result(state))
        run.learner.works.clear()
        state, _ = run.round(state)
        assert [work.start.factors["one"][0].shape[0] for work in run.learner.works] == [1, 2, 3, 4]
        for work in run.learner.works:
            folded = work.fold or {layer: torch.zeros(shape) for layer, shape in WIDE.items()}
            start = dense(work.start)
            found = {layer: folded[layer].double() + start[layer] for layer in WIDE}
            assert_near(found, whole, 1e-5)


def test_fedex_clients_of_equal_ranks_share_one_base_in_memory():
    run = federation("fedex", clients=("ann", "bob", "cat", "dan"), ranks={"ann": 2, "bob": 2})
    state = run.rounds(1)
    run.learner.works.clear()
    run.round(state)
    folds = {work.start.factors["one"][0].shape[0]: set() for work in run.learner.works}
    for work in run.learner.works:
        folds[work.start.factors["one"][0].shape[0]].add(id(work.fold))
    assert {rank: len(ids) for rank, ids in folds.items()} == {2: 1, 4: 1}


def test_flora_clients_of_all_ranks_share_one_base_in_memory():
    run = federation("flora")
    state = run.rounds(2)
    run.learner.works.clear()
    run.round(state)
    assert len({id(work.fold) for work in run.learner.works}) == 1


# -- who missed a round ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FOLDING)
def test_a_client_that_missed_rounds_is_sent_the_whole_and_stands_where_all_stand(method):
    run = federation(method)
    state = run.start()
    kinds = {}
    for clients in (("ann", "bob", "cat"), ("ann", "cat"), ("ann",), CLIENTS, CLIENTS):
        run.requests, run.learner.works = [], []
        whole = dense(run.result(state))
        state, _ = run.round(state, clients=clients)
        kinds = {o.client: {name.partition("/")[0] for name in o.tensors if "/" in name} for o in run.requests}
        if len(clients) == 4 and state.round == 4:
            assert kinds == {"ann": {"stack"}, "bob": {"whole"}, "cat": {"whole"}, "dan": {"whole"}}
        for work in run.learner.works:
            folded = work.fold or {layer: torch.zeros(shape) for layer, shape in WIDE.items()}
            start = dense(work.start)
            found = {layer: folded[layer].double() + start[layer] for layer in WIDE}
            assert_near(found, whole, 1e-5)
    assert all(kind == {"stack"} for kind in kinds.values())


@pytest.mark.parametrize("method", FOLDING)
def test_a_client_whose_reply_was_refused_is_sent_the_whole(method):
    run = federation(method)
    state, info = run.round(run.start(), ask=lambda requests: [
        replace(r, tensors={n: t * math.nan for n, t in r.tensors.items()}) if r.client == "bob" else r for r in run.ask(requests)])
    assert info["refused"] == 1
    run.requests = []
    run.round(state)
    kinds = {o.client: {name.partition("/")[0] for name in o.tensors if "/" in name} for o in run.requests}
    assert kinds == {"ann": {"stack"}, "bob": {"whole"}, "cat": {"stack"}, "dan": {"stack"}}


@pytest.mark.parametrize("method", FOLDING)
def test_the_whole_travels_at_its_own_size(method):
    run = federation(method)
    state, _ = run.round(run.start(), clients=("ann",))
    run.requests = []
    run.round(state, clients=("dan",))
    whole = sum(t.numel() for name, t in run.requests[0].tensors.items() if name.startswith("whole/"))
    assert whole == sum(m * n for m, n in WIDE.values())


@pytest.mark.parametrize("method", FOLDING)
def test_a_stack_that_comes_to_a_site_without_the_rounds_before_is_refused(method):
    """A server that thinks a client is up to date, and a site that lost its memory."""
    run = federation(method)
    state = run.rounds(2)
    seen = []
    run.round(state, ask=lambda requests: seen.extend(requests) or run.ask(requests))
    request = next(o for o in seen if o.client == "bob")
    forgetful = replace(run.sites["bob"], memory={})
    with pytest.raises(WireError, match="send it the whole update"):
        run.module.answer([request], [forgetful], run.context, run.learner)


@pytest.mark.parametrize("method", FOLDING)
def test_sites_in_buildings_of_their_own_hold_the_same_base(method):
    """Orders that went over a wire share no memory; the fold is the same."""
    run, wired = federation(method), federation(method)

    def over_a_wire(requests):
        copies = [TrainRequest(o.client, o.round, {n: t.clone() for n, t in o.tensors.items()}, dict(o.settings)) for o in requests]
        return [update for request in copies for update in wired.ask([request])]

    state = wired.start()
    for clients in (CLIENTS, ("ann", "bob"), CLIENTS):
        state, _ = wired.round(state, ask=over_a_wire, clients=clients)
    wanted = run.start()
    for clients in (CLIENTS, ("ann", "bob"), CLIENTS):
        wanted, _ = run.round(wanted, clients=clients)
    assert apart(state, wanted) == 0.0
    assert unlike(wired.memory(), run.memory()) == ""


# -- privacy with unequal ranks --------------------------------------------------------------------------------


class Listening(ZeroNoise):
    """No noise, but remembers what would have been noised."""

    def __init__(self):
        self.shapes, self.stds = [], []

    def gaussian(self, shape, std):
        self.shapes.append(tuple(shape))
        self.stds.append(std)
        return super().gaussian(shape, std)


@pytest.mark.parametrize("method", RELEASING)
@pytest.mark.parametrize("product", [False, True])
def test_one_client_more_or_less_moves_the_released_sum_by_at_most_the_bound(method, product, monkeypatch):
    if product and method != "flexlora":
        pytest.skip("only FlexLoRA can sum dense changes")
    bound = 0.25
    sums = {}
    for gone in (None, *CLIENTS):
        run = federation(method, privacy=ON.model_copy(update={"clip": bound}), noise=ZeroNoise(),
                         **({"options": {"privacy_noise": "product"}} if product else {}))
        released = []
        release = run.aggregator.release
        monkeypatch.setattr(run.aggregator, "release", lambda *a, release=release, kept=released, **k: (kept.append(release(*a, **k)), kept[-1])[1])
        run.round(run.start(), ask=lambda requests, run=run, gone=gone: [r for r in run.ask(requests) if r.client != gone])
        sums[gone] = released[0].total
        if gone is None:
            assert max(clipping.norm(r.tensors) for r in run.updates) > bound, "the bound must bind for this test to say anything"
    for gone in CLIENTS:
        assert 0 < clipping.norm(lora.subtract(sums[None], sums[gone])) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("method", RELEASING)
def test_under_privacy_every_coordinate_of_all_ranks_gets_noise_even_if_only_small_clients_reply(method):
    noise = Listening()
    run = federation(method, privacy=ON.model_copy(update={"clip": 0.5}), noise=noise)
    run.round(run.start(), clients=("ann",))
    letters = {"cores": "R", "ffa": "B", "fedsvd": "B", "fedsa": "A", "rolora": "B"}.get(method, "AB")
    wanted = [{"A": (4, n), "B": (m, 4), "R": (4, 4)}[letter] for m, n in WIDE.values() for letter in letters]
    assert sorted(noise.shapes) == sorted(wanted)
    assert set(noise.stds) == {0.5}


def test_under_privacy_the_noise_of_an_entry_of_a_core_is_that_of_the_planned_owners():
    """Entry (i, j) of the mean has noise sigma / (planned clients of rank > max(i, j)), whoever replied: here nobody."""
    run = Federation("cores", ON.model_copy(update={"clip": 0.6, "noise_seed": None}), shapes={"one": (300, 200)}, clients=CLIENTS, rank=60,
                     ranks={"ann": 20, "bob": 40}, options=PLAIN, noise=SystemNoise())
    before = run.start()
    after, _ = run.round(before, clients=())
    change = after.tensors["one.R"] - before.tensors["one.R"]
    place = torch.arange(60)
    outer = torch.maximum(place[:, None], place[None])
    for low, high, owners in ((0, 20, 4), (20, 40, 3), (40, 60, 2)):
        own = change[(outer >= low) & (outer < high)]
        assert float(own.std()) == pytest.approx(0.6 / owners, rel=6 / math.sqrt(2 * len(own)))


def test_under_privacy_the_noise_of_a_drawn_column_is_that_of_the_planned_owners():
    """Who draws which column is public, and so is every denominator, whoever replied: here nobody."""
    run = Federation("fedplora", ON.model_copy(update={"clip": 0.6, "noise_seed": None}),
                     shapes={"one": (900, 700)}, clients=CLIENTS, rank=4,
                     ranks={"ann": 1, "bob": 2, "cat": 2}, options=PLAIN, noise=SystemNoise())
    before = run.start()
    after, _ = run.round(before, clients=())
    drawn = [fedplora.columns(run.context, 1, name)["one"] for name in CLIENTS]
    owners = [sum(j in own for own in drawn) for j in range(4)]
    assert min(owners) >= 1, "dan draws all"
    assert len(set(owners)) > 1
    for name in ("one.A", "one.B"):
        change = after.tensors[name] - before.tensors[name]
        columns = change if name.endswith(".A") else change.T
        for j, count in enumerate(owners):
            assert float(columns[j].std()) == pytest.approx(
                0.6 / count, rel=6 / math.sqrt(2 * columns.shape[1]))


OWN_OPTIONS = {"safedlora": {"initiating": 1.0}, "fedsvd": {"svd_every": 0}}


@pytest.mark.parametrize("method", [m for m in RELEASING if m not in ("flexlora", "raflora", "cores", "fedplora")])
def test_under_privacy_the_noise_of_a_column_is_that_of_the_planned_owners(method):
    """Column j of the mean has noise sigma / (planned clients of rank > j), whoever replied: here nobody."""
    shapes = {"one": (300, 200), "two": (250, 310)}
    ranks = {"ann": 1, "bob": {"one": 2, "two": 1}, "cat": 2}
    run = Federation(method, ON.model_copy(update={"clip": 0.6, "noise_seed": None}), shapes=shapes, clients=CLIENTS, rank=3, ranks=ranks,
                     options=OWN_OPTIONS.get(method, PLAIN), noise=SystemNoise())
    before = run.start()
    after, _ = run.round(before, clients=())
    owners = {"one": (4, 3, 1), "two": (4, 2, 1)}
    for name in after.tensors:
        change = after.tensors[name] - before.tensors[name]
        if "/" in name or not change.any():
            continue
        columns = change if name.endswith(".A") else change.T
        for j, count in enumerate(owners[FactorName.parse(name).layer]):
            assert float(columns[j].std()) == pytest.approx(0.6 / count, rel=6 / math.sqrt(2 * columns.shape[1]))


@pytest.mark.parametrize("method", [m for m in RELEASING if m != "flexlora"])
def test_under_privacy_the_denominators_do_not_depend_on_who_replies(method):
    """The same update of one small client, alone or beside a large client that sends zeros, gives the same round."""
    def only(run, *, beside):
        def ask(requests):
            updates = {r.client: r for r in run.ask(requests)}
            zero = replace(updates["dan"], tensors={n: torch.zeros_like(t) for n, t in updates["dan"].tensors.items()})
            return [updates["ann"], zero] if beside else [updates["ann"]]
        return ask

    one, two = (federation(method, privacy=ON) for _ in range(2))
    alone, info = one.round(one.start(), ask=only(one, beside=False))
    beside, alternate_shapes = two.round(two.start(), ask=only(two, beside=True))
    assert apart(alone, beside) == 0.0
    assert info == alternate_shapes


def test_a_cohort_of_unnamed_clients_is_taken_for_clients_of_all_ranks():
    """Where the population is not told the denominator is the planned number in every column."""
    run = federation("fedit", privacy=ON)
    cohort = Cohort(round=1, local=("ann",), proxies={}, planned=4, noise_multiplier=1.0, lr=LR)
    before = run.start()
    after, _ = run.module.step(run.config, run.context, before, cohort, Server(run.ask, run.aggregator))
    (update,) = run.updates
    for name, t in lora.placed(update.tensors, {n: before.tensors[n] for n in update.tensors}).items():
        assert_near(after.tensors[name] - before.tensors[name], t / 4, 1e-5, what=name)


# -- HetLoRA's pruning -----------------------------------------------------------------------------------------


class Shrinking:
    """Learners whose tails shrink: every factor is halved after the first round."""

    def __init__(self):
        self.works, self.done = [], []

    def train(self, works, advance=None):
        done = []
        for work in works:
            empty = not any(b.any() for _, b in work.start.factors.values())
            factors = {n: (a, torch.ones_like(b)) if empty else (a / 2, b / 2) for n, (a, b) in work.start.factors.items()}
            done.append(Trained(Adapter(factors, work.start.alpha, work.start.rank), 1.0, 1, 0.1))
        self.works += works
        self.done += done
        return done


def test_hetlora_clients_prune_themselves_and_are_sent_less_from_then_on():
    run = federation("hetlora", learner=Shrinking(), options={"rank_min": 2, "tail": 0.0})
    state, told = run.start(), []
    for _ in range(4):
        run.requests = []
        state, info = run.round(state)
        assert info["refused"] == 0
        told.append({o.client: tuple(o.tensors[f"{layer}.A"].shape[0] for layer in WIDE) for o in run.requests})
    assert told[0] == told[1] == {"ann": (1, 3), "bob": (2, 2), "cat": (3, 3), "dan": (4, 4)}  # in round 1 the tail grew from nothing
    assert told[2] == {"ann": (1, 2), "bob": (2, 2), "cat": (2, 2), "dan": (3, 3)}
    assert told[3] == {"ann": (1, 2), "bob": (2, 2), "cat": (2, 2), "dan": (2, 2)}


def test_hetlora_counts_a_pruned_reply_once_and_refuses_a_reply_that_was_cut_twice():
    run = federation("hetlora", ranks={})

    def cut(requests, by):
        return [replace(r, tensors=lora.leading(r.tensors, lambda layer: 4 - by)) if r.client == "bob" else r for r in run.ask(requests)]

    after, info = run.round(run.start(), ask=lambda requests: cut(requests, 1))
    assert info["refused"] == 0
    assert info["pruned"] == 1
    assert float(after.tensors["pruned/bob"]) == 1.0
    _, info = run.round(run.start(), ask=lambda requests: cut(requests, 2))
    assert info["refused"] == 1
    assert info["pruned"] == 0


def test_hetlora_never_prunes_below_the_least_rank_and_not_at_all_if_told_so():
    for options, ranks in (({"rank_min": 4}, (4, 4)), ({"prune": False}, (4, 4)), ({"keep": 0.5}, (1, 1))):
        run = federation("hetlora", learner=Shrinking(), ranks={}, options=options | {"tail": 0.0})
        state = run.rounds(6)
        run.requests = []
        run.round(state)
        assert {tuple(o.tensors[f"{layer}.A"].shape[0] for layer in WIDE) for o in run.requests} == {ranks}
