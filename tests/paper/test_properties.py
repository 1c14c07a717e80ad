"""Properties that follow from the papers' formulas, numbered as the list they were taken from.

1 exact merges · 2 FlexLoRA's error · 3 FlexLoRA's rank collapse · 4 HetLoRA's reductions · 5 FedIT's cross terms · 6 averaging
weights, SplitLoRA's gradients · 7 FDLoRA's reductions and differential privacy · 8 isolation of personal state · 9 traffic · 10 SA-FedLoRA's budget.

Fed-SB (in 1 and 9) is no method of this release and is left out here. SplitLoRA's half of 6 needs a real model: test_split_gradients.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.closeness import assert_near, relative_error
from tests.contract.federation import (
    OFF,
    ON,
    Federation,
    StubLearner,
    dense,
    distance,
    mean,
    unlike,
)
from tests.oracle import products

from aulait.core import lora
from aulait.core.lora import changed_b, leading, pad, placed
from aulait.core.types import Adapter, nbytes
from aulait.methods.shared import client_update, fusion
from aulait.models import low_rank
from aulait.privacy import clipping
from aulait.privacy.accounting import Accountant, Event
from aulait.privacy.noise import SeededNoise

SHAPES = {"attention": (24, 20), "feedforward": (36, 20)}
RANKS = {"ann": 1, "bob": {"attention": 2, "feedforward": 3}, "cat": 4}
CLIENTS = ("ann", "bob", "cat", "dan", "eve")
PLAIN = {"server": "plain", "server_lr": 1.0}


def federation(method: str, **more) -> Federation:
    return Federation(method, **{"shapes": SHAPES, "clients": CLIENTS, "rank": 6, "alpha": 9.0} | more)


def still(run: Federation):
    """Clients that train nothing: their changes are zero, their factors those they were sent."""
    run.learner = StubLearner(size=0.0)
    return run


def norms(state, layer: str) -> np.ndarray:
    """Singular values of the merged update, by columns."""
    a, b = state.tensors[f"{layer}.A"].double(), state.tensors[f"{layer}.B"].double()
    return np.linalg.svd((b @ a).numpy(), compute_uv=False)


# -- 1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "ranks"), [("flora", {}), ("flora", RANKS), ("fedex", {}), ("fedex", RANKS), ("ffa", {}), ("rolora", {})])
def test_1_exact_methods_hold_the_ideal_mean_in_weight_space(method, ranks):
    run = federation(method, ranks=ranks, options=PLAIN if method in ("ffa", "rolora") else {})
    state = run.start()
    for _ in range(4):
        state, _ = run.round(state)
        wanted = mean(run.held())
        assert_near(dense(run.result(state)), wanted, 1e-5)
        assert max(float(t.abs().max()) for t in wanted.values()) > 0.05


# -- 2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [{}, RANKS])
@pytest.mark.parametrize("alpha", [9.0, 1.0, 6.0])
def test_2_the_error_of_flexlora_is_the_discarded_singular_energy(ranks, alpha):
    """|| D* - G_R || is what lies beyond the R-th singular value; so for every client at its own rank."""
    run = federation("flexlora", ranks=ranks, alpha=alpha)
    state, _ = run.round(run.start())
    ideal = mean(run.held())
    merged = dense(run.result(state))
    seen = []
    run.round(state, ask=lambda requests: seen.extend(requests) or run.ask(requests))
    for layer, target in ideal.items():
        lost = products.discarded(target.numpy(), 6)
        assert lost > 0.01, "rank 6 of five clients' sum must lose something for this test to say anything"
        assert float((merged[layer] - target).norm()) == pytest.approx(lost, rel=1e-4)
        for request in seen:
            rank = run.context.rank_of(request.client)(layer)
            own = dense(lora.from_tensors(request.tensors, alpha))[layer]
            assert float((own - target).norm()) == pytest.approx(products.discarded(target.numpy(), rank), rel=1e-4)


def test_2_flexlora_loses_nothing_when_the_ranks_suffice():
    for rank, ranks in ((20, {}), (6, {"ann": 1, "bob": 1, "cat": 1, "dan": 1, "eve": 2})):
        run = federation("flexlora", rank=rank, ranks=ranks)
        state, _ = run.round(run.start())
        assert_near(dense(run.result(state)), mean(run.held()), 1e-5)


def test_2_factored_equals_dense(monkeypatch):
    results = []
    for stacked in (0.0, 1e9):  # never stacked; always stacked
        monkeypatch.setattr(low_rank, "STACKED", stacked)
        run = federation("flexlora", ranks=RANKS)
        results.append(dense(run.result(run.rounds(2))))
    assert_near(*results, 1e-5)


def test_2_alpha_changes_nothing_but_the_scale_of_b():
    """Clients with the same updates in weight space, written at another alpha, give the same merge."""
    runs = {}
    for alpha in (6.0, 24.0):
        run = federation("flexlora", alpha=alpha, ranks=RANKS)

        def ask(requests, run=run, alpha=alpha):
            return [replace(r, tensors={n: t * 6.0 / alpha if n.endswith(".B") else t for n, t in r.tensors.items()}) for r in run.ask(requests)]

        runs[alpha] = dense(run.result(run.round(run.start(), ask=ask)[0]))
    # both factors move in the first round from the same A, so the products are the same
    assert_near(runs[6.0], runs[24.0], 1e-5)


# -- 3 ---------------------------------------------------------------------------------------------------------

TIERS = {"ann": 2, "bob": 2, "cat": 4}  # q_j: 1 for j <= 2, 3/5 for 3 and 4, 2/5 for 5 and 6
SHARE = np.array([1, 1, 3 / 5, 3 / 5, 2 / 5, 2 / 5])


def grown(**options) -> tuple[Federation, object]:
    """A state with six singular values that are far apart, and clients that do not train."""
    run = still(federation("flexlora", ranks=TIERS, options=options))
    state = run.start()
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer, (m, n) in SHAPES.items():
        left, _ = torch.linalg.qr(torch.randn(m, 6, generator=generator))
        right, _ = torch.linalg.qr(torch.randn(n, 6, generator=generator))
        tensors[f"{layer}.A"], tensors[f"{layer}.B"] = right.T.contiguous(), left * torch.tensor([32.0, 16, 8, 4, 2, 1])
    return run, replace(state, tensors=tensors)


def test_3_component_j_shrinks_by_the_share_of_those_who_have_it_in_every_round():
    run, state = grown()
    for number in (1, 2, 3):
        state, _ = run.round(state)
        for layer in SHAPES:
            np.testing.assert_allclose(norms(state, layer)[:6], np.array([32, 16, 8, 4, 2, 1]) * SHARE**number, rtol=1e-4)


def test_3_partition_keeps_every_component():
    run, state = grown(partition=True)
    before = dense(run.result(state))
    for _ in range(3):
        state, _ = run.round(state)
    assert_near(dense(run.result(state)), before, 1e-5)


def test_3_partition_changes_nothing_at_equal_ranks():
    results = [dense(run.result(run.rounds(3))) for run in (federation("flexlora", options={"partition": flag}) for flag in (False, True))]
    assert_near(*results, 1e-5)


# -- 4 ---------------------------------------------------------------------------------------------------------


def test_4_hetlora_with_equal_ranks_and_equal_norms_is_fedit():
    """Made-up updates of the same norm; the weights are then uniform."""
    results = []
    for method in ("hetlora", "fedit"):
        run = federation(method, options={"prune": False} if method == "hetlora" else PLAIN)
        before = {n: t for n, t in run.start().tensors.items() if "/" not in n}
        generator = torch.Generator().manual_seed(1)

        def ask(requests, method=method, generator=generator, run=run):
            updates = []
            for request, update in zip(requests, run.ask(requests), strict=True):
                factors = {n: torch.randn(t.shape, generator=generator) for n, t in sorted(request.tensors.items())}
                size = lora.norm(lora.from_tensors(factors, run.alpha, run.rank))
                factors = {n: t / size if n.endswith(".B") else t for n, t in factors.items()}
                updates.append(replace(update, tensors=factors if method == "hetlora" else lora.subtract(factors, request.tensors)))
            return updates

        state, _ = run.round(run.start(), ask=ask)
        results.append({n: state.tensors[n] for n in before})
    assert_near(*results, 1e-5)


def test_4_a_client_of_twice_the_norm_counts_twice():
    run = federation("hetlora", clients=("ann", "bob"), options={"prune": False})
    ones = {}

    def ask(requests):
        updates = run.ask(requests)
        ones.update({n: torch.ones_like(t) for n, t in updates[0].tensors.items()})
        double = {n: 2 * t if n.endswith(".B") else t for n, t in ones.items()}
        return [replace(updates[0], tensors=ones), replace(updates[1], tensors=double)]

    state, _ = run.round(run.start(), ask=ask)
    for name, t in ones.items():
        wanted = t * (1 / 3 + 2 / 3 * 2) if name.endswith(".B") else t
        assert_near(state.tensors[name], wanted, 1e-5, what=name)


def test_4_padding_and_cutting_again_is_the_identity():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(3, 7, generator=generator), torch.randn(5, 3, generator=generator)
    wide = pad(a, b, 8)
    flat = {"x.A": wide[0], "x.B": wide[1]}
    own = leading(flat, lambda _: 3)
    assert torch.equal(own["x.A"], a)
    assert torch.equal(own["x.B"], b)
    assert unlike(placed(own, flat), flat) == ""
    assert_near(wide[1] @ wide[0], b @ a, 1e-6)


# -- 5 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, {"ann": 9, "bob": 1, "cat": 4, "dan": 2, "eve": 6}])
def test_5_the_error_of_fedit_is_its_cross_terms(sizes):
    """sum_ij p_i p_j B_i A_j - sum_k p_k B_k A_k, scaled; it is not zero."""
    run = federation("fedit", sizes=sizes, options=PLAIN | {"weights": "size"})
    state, _ = run.round(run.start())
    counts = {n: sizes.get(n, 3) for n in CLIENTS}
    p = [counts[n] / sum(counts.values()) for n in CLIENTS]
    ideal, found = mean(run.held(), counts), dense(run.result(state))
    for layer in SHAPES:
        pairs = [done.adapter.factors[layer] for done in run.learner.done]
        cross = sum(p[i] * p[j] * pairs[i][1].double() @ pairs[j][0].double() for i in range(5) for j in range(5))
        same = sum(p[k] * pairs[k][1].double() @ pairs[k][0].double() for k in range(5))
        error = run.alpha / run.rank * (cross - same)
        assert_near(found[layer] - ideal[layer], error, 1e-5, what=layer)
        assert float(error.norm()) > 0.05


def test_5_lora_fair_comes_closer_than_fedit_and_fedex_has_no_error():
    distances = {}
    for method, options in (("fedit", PLAIN), ("lorafair", {"correction_decay": 1e-6}), ("fedex", {})):
        run = federation(method, options=options)
        state, _ = run.round(run.start())
        distances[method] = relative_error(dense(run.result(state)), mean(run.held()))
    assert distances["fedex"] < 1e-5
    assert distances["fedex"] < distances["lorafair"] < distances["fedit"]


# -- 6 ---------------------------------------------------------------------------------------------------------
# The gradient equality of split learning belongs to SplitLoRA, which is no method of this release.

COUNTED = [("fedit", PLAIN), ("ffa", PLAIN), ("fedsa", PLAIN), ("rolora", PLAIN), ("fdlora", PLAIN), ("safedlora", {}), ("lorafair", {}),
           ("hetlora", {"prune": False}), ("fedex", {}), ("flora", {}), ("flexlora", {})]


@pytest.mark.parametrize("weights", ["uniform", "size"])
@pytest.mark.parametrize("ranks", [{}, RANKS])
@pytest.mark.parametrize(("method", "options"), COUNTED, ids=[m for m, _ in COUNTED])
def test_6_averaging_weights_sum_to_one(method, options, ranks, weights):
    """If all clients answer the same factors, the merge is those factors, whatever sizes, ranks and proxies."""
    run = federation(method, ranks=ranks, proxies=("proxy-000",), sizes={"ann": 9, "dan": 2}, options=options | {"weights": weights})
    common = {}

    def ask(requests):
        updates = []
        for request, update in zip(requests, run.ask(requests), strict=True):
            own = run.context.rank_of(request.client)
            full = {}
            for layer, (m, n) in SHAPES.items():
                full[f"{layer}.A"] = torch.sin(torch.arange(6 * n, dtype=torch.float32)).view(6, n)
                full[f"{layer}.B"] = torch.cos(torch.arange(6 * m, dtype=torch.float32)).view(m, 6)
            if method in ("flora", "flexlora"):  # the same dense update at every rank: one column, at the client's scale
                full = {n: t * (torch.arange(6) == 0)[:, None] if n.endswith(".A") else t * (torch.arange(6) == 0) for n, t in full.items()}
            common.update(full)
            scale = {layer: own(layer) / 6 if method == "flexlora" else 1.0 for layer in SHAPES}
            share = changed_b({n: t for n, t in leading(full, own).items() if n in update.tensors}, lambda layer, b, scale=scale: b * scale[layer])
            changes = method not in ("flora", "fedex", "lorafair", "hetlora")
            updates.append(replace(update, tensors=lora.subtract(share, request.tensors) if changes else share))
        return updates

    state, info = run.round(run.start(), ask=ask)
    assert info["refused"] == 0
    if method in ("flora", "fedex", "flexlora"):
        wanted = {layer: run.alpha / 6 * common[f"{layer}.B"].double() @ common[f"{layer}.A"].double() for layer in SHAPES}
        if method == "fedex" and ranks:
            wanted = mean({n: {layer: run.alpha / 6 * common[f"{layer}.B"][:, : run.context.rank_of(n)(layer)].double()
                               @ common[f"{layer}.A"][: run.context.rank_of(n)(layer)].double() for layer in SHAPES} for n in run.sites},
                          {n: (2.0 if n == "proxy-000" else len(run.sites[n].train) / 4 if weights == "size" else 1.0) for n in run.sites})
        assert_near(dense(run.result(state)), wanted, 1e-5)
        return
    for name, t in state.tensors.items():
        if "/" in name or (method == "hetlora" and ranks) or (method == "lorafair" and ranks and name.endswith(".B")):
            continue  # zero padding shrinks the columns that few own, and a correction mixes them
        if method == "rolora" and name.endswith(".A"):
            continue  # the first round averages B
        # these factors are nearly singular, so the ridge of LoRA-FAIR shows its rounding
        assert_near(t, common[name], 1e-3 if method == "lorafair" else 1e-5, what=name)


@pytest.mark.parametrize(("method", "options"), COUNTED, ids=[m for m, _ in COUNTED])
def test_6_each_client_counts_once(method, options):
    """A federation of two equal halves merges as one of them: a name more is a client more, a update more is not."""
    one = federation(method, clients=("ann", "bob"), options=options)
    twice = federation(method, clients=("ann", "bob"), options=options)
    wanted, _ = one.round(one.start())
    found, info = twice.round(twice.start(), ask=lambda requests: [*(updates := twice.ask(requests)), *updates, updates[0]])
    assert info["refused"] == 3
    assert unlike(found.tensors, wanted.tensors) == ""


# -- 7 ---------------------------------------------------------------------------------------------------------


def test_7_fdlora_with_outer_rate_one_and_no_momentum_is_fedit():
    fdlora = federation("fdlora", ranks=RANKS, options={"server_lr": 1.0, "momentum": 0.0, "shots": 5})
    fedit = federation("fedit", ranks=RANKS, options=PLAIN)
    one, two = fdlora.rounds(4), fedit.rounds(4)
    assert unlike({n: t for n, t in one.tensors.items() if "/" not in n}, two.tensors) == ""


def test_7_fusion_with_weight_zero_and_one_is_the_global_adapter_and_the_other_way_the_personal_one():
    generator = torch.Generator().manual_seed(3)
    own, shared = (Adapter({"x": (torch.randn(2, 5, generator=generator), torch.randn(4, 2, generator=generator))}, 8.0, 6) for _ in range(2))
    assert distance(dense(fusion.fused(own, shared, (0.0, 1.0))), dense(shared)) == 0.0
    assert distance(dense(fusion.fused(own, shared, (1.0, 0.0))), dense(own)) == 0.0


@pytest.mark.parametrize("valley", [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.8, 0.9), (-0.4, 1.2)])
def test_7_the_fused_adapter_is_never_worse_than_the_personal_or_the_global_one(valley, monkeypatch):
    """On the records it is chosen on, penalty included; here the loss is a valley, and the search finds its floor."""
    def objective(w):
        return (w[0] - valley[0]) ** 2 + 2 * (w[1] - valley[1]) ** 2 + 0.05 * (abs(w[0]) + abs(w[1]))

    monkeypatch.setattr(fusion, "fused", lambda own, shared, w: w)
    monkeypatch.setattr(fusion, "evaluate", lambda learner, w, *_: SimpleNamespace(loss=objective(w) - 0.05 * (abs(w[0]) + abs(w[1]))))
    found = fusion.best_weights(None, None, None, (1,), fusion.FusionSearch(0.05, 1.5, 40))
    assert objective(found) <= min(objective((0.0, 1.0)), objective((1.0, 0.0))) + 1e-12
    assert math.dist(found, valley) < 0.06


def test_7_fdlora_with_h_one_copies_every_round_so_that_the_personal_adapter_is_the_last_upload():
    run = federation("fdlora", options={"copy_every": 1})
    state = run.start()
    for number in (1, 2, 3):
        run.updates = []
        state, _ = run.round(state)
        sent = {request.client: request.tensors for request in run.requests[-5:]}
        for update in run.updates:
            kept = client_update.recall(run.sites[update.client], number + 1)
            wanted = {n: sent[update.client][n] + t for n, t in update.tensors.items()}
            assert_near(kept, wanted, 1e-5)


def test_7_fdlora_uploads_in_stage_one_too_and_that_release_is_charged():
    run = federation("fdlora", privacy=ON)
    _, info = run.round(run.start())
    assert info["up_bytes"] == 5 * nbytes(run.updates[0].tensors) > 0
    assert len(run.ledger.lines) == 1


@pytest.mark.parametrize("method", ["fedit", "ffa", "fedsa", "rolora", "fdlora", "safedlora"])
def test_7_the_noise_has_the_deviation_of_the_ledger_and_the_bound_holds(method):
    """The noise of the very same run without it: the difference of two states is sigma / K of noise and nothing else."""
    shapes = {"one": (90, 70), "two": (60, 110)}
    privacy = ON.model_copy(update={"clip": 0.3})
    noised, silent = (Federation(method, privacy, shapes=shapes, noise=noise, rank=4, options={} if method == "safedlora" else PLAIN)
                      for noise in (SeededNoise(4), None))
    one, two = noised.rounds(1), silent.rounds(1)
    change = torch.cat([(one.tensors[n] - two.tensors[n]).flatten() for n in two.tensors if "/" not in n])
    change = change[change != 0]
    assert float(change.std()) == pytest.approx(0.3 / 3, rel=6 / math.sqrt(2 * len(change)))
    assert abs(float(change.mean())) < 6 * 0.1 / math.sqrt(len(change))
    start = silent.start()
    moved = {n: two.tensors[n] - start.tensors[n] for n in start.tensors if "/" not in n}
    assert clipping.norm(moved) <= 0.3 * (1 + 1e-6)  # a mean of clipped updates


@pytest.mark.parametrize("method", ["fedit", "ffa", "fedsa", "rolora", "fdlora", "safedlora"])
def test_7_runs_without_privacy_and_with_clipping_only_train_on_the_same_batches(method):
    """Arms of a comparison differ in what they are compared for, not in their random numbers."""
    arms = [Federation(method, privacy, noise=noise) for privacy, noise in ((OFF, None), (ON, None), (ON, SeededNoise(1)))]
    for run in arms:
        run.rounds(2)
    works = [[(work.seed, work.lr, work.records) for work in run.learner.works] for run in arms]
    assert works[0] == works[1] == works[2]


def test_7_the_accountant_only_ever_counts_up_and_more_noise_costs_less():
    spent = []
    for z in (0.8, 1.0, 2.0):
        accountant, steps = Accountant(1e-5, {"local": math.inf}), []
        for _ in range(5):
            accountant.add("local", Event(z))
            steps.append(accountant.spent("local"))
        assert all(a < b for a, b in itertools.pairwise(steps))
        spent.append(steps[-1])
    assert spent[0] > spent[1] > spent[2]


# -- 8 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["alone", "fedsa", "fdlora"])
def test_8_what_a_client_keeps_is_bit_identical_across_another_clients_round(method):
    run = federation(method, ranks=RANKS, options={"copy_every": 1} if method == "fdlora" else {})
    state = run.rounds(2)
    kept = client_update.recall(run.sites["bob"], state.round + 1)
    before = {n: t.clone() for n, t in kept.items()}
    for clients in (("ann",), ("cat", "dan", "eve")):
        state, _ = run.round(state, clients=clients)
    assert unlike(client_update.recall(run.sites["bob"], state.round + 1), before) == ""
    others = [client_update.recall(run.sites[n], state.round + 1) for n in ("dan", "eve")]
    assert unlike(others[0], others[1]) != "", "every simulated client has a state of its own"


@pytest.mark.parametrize("method", ["alone", "fedsa", "fdlora"])
def test_8_what_a_client_keeps_does_not_depend_on_who_else_is_there(method):
    """In the first round nothing of the others has reached it yet."""
    many, few = federation(method), federation(method, clients=("bob",))
    many.rounds(1)
    few.rounds(1)
    assert unlike(many.sites["bob"].memory, few.sites["bob"].memory) == ""


# -- 9 ---------------------------------------------------------------------------------------------------------


def test_9_traffic_of_one_layer_is_that_of_the_papers():
    """m = 24, n = 20, r = 4, five clients, two rounds; Fed-SB's r^2 is no method of this release."""
    m, n, r, clients, number = 24, 20, 4, 5, 4
    stack = clients * r
    papers = {
        "fedit": [(r * (m + n), r * (m + n))] * 2,
        "ffa": [(r * m, r * m)] * 2,
        "fedsa": [(r * n, r * n)] * 2,
        "rolora": [(r * m, r * (m + n)), (r * n, r * (m + n))],
        "flexlora": [(r * (m + n), r * (m + n))] * 2,
        "flora": [(r * (m + n), 0), (r * (m + n), stack * (m + n))],
        "fedex": [(r * (m + n), r * (m + n)), (r * (m + n), (stack + r + r) * (m + n))],
        "alone": [(0, 0)] * 2,
    }
    for method, rounds in papers.items():
        run = Federation(method, shapes={"x": (m, n)}, clients=CLIENTS, rank=r)
        state = run.start()
        for up, down in rounds:
            state, info = run.round(state)
            assert (info["up_bytes"], info["down_bytes"]) == (number * clients * up, number * clients * down), method


def test_9_flora_downloads_grow_with_the_number_of_clients_and_flexloras_do_not():
    def down(method, clients):
        run = Federation(method, shapes={"x": (24, 20)}, clients=tuple(f"c{k:02d}" for k in range(clients)))
        state, _ = run.round(run.start())
        return run.round(state)[1]["down_bytes"] / clients

    assert down("flora", 12) == 4 * down("flora", 3)
    assert down("flexlora", 12) == down("flexlora", 3)


# -- 10 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "total"), [("cosine", 112), ("cubic", 91), ("exponential", 103)])
def test_10_safedlora_sends_less_than_a_constant_rank_and_far_less_than_full_fine_tuning(schedule, total):
    """Ranks by hand: 10 rounds, 3 of them at 16, then r(t) down to 4; the sum of ranks is what travels."""
    rounds, most, least = 10, 16, 4
    u = np.arange(1, 8) / 7
    by_hand = {"cosine": least + 12 * (1 + np.cos(np.pi * u)) / 2, "cubic": least + 12 * (1 - u) ** 3, "exponential": most * 0.25**u}[schedule]
    wanted = [most] * 3 + [int(r + 0.5) for r in by_hand]
    assert sum(wanted) == total
    run = Federation("safedlora", shapes=SHAPES, rank=most, planned_rounds=rounds, options={"schedule": schedule})
    state, ranks, sent = run.start(), [], 0
    for _ in range(rounds):
        state, info = run.round(state)
        ranks.append(info["rank"])
        sent += info["up_bytes"]
    assert ranks == wanted
    assert all(a >= b for a, b in itertools.pairwise(ranks))
    sides = sum(m + n for m, n in SHAPES.values())
    assert sent == 4 * 3 * sum(wanted) * sides
    assert sent < 0.8 * 4 * 3 * rounds * most * sides  # a constant rank
    # the published "up to 93.62 %" is against full fine-tuning; here is what this budget means for a 7B model's layer
    full = 4096 * 4096 * rounds
    assert sum(wanted) * (4096 + 4096) < 0.0638 * full
