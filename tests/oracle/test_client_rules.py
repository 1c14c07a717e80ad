"""What clients of the newer methods do, against the papers' formulas written plainly, or a peer's
library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from tests.closeness import assert_near
from tests.contract.federation import WIDE, Federation, dense, real, records
from tests.tiny_bases import tiny

from aulait.core import lora
from aulait.core.factors import Trainable
from aulait.core.types import Adapter
from aulait.methods import fedplora, fedrot, fedsvd, florist
from aulait.models.low_rank import ProductSum
from aulait.training.smoothing import smoothed
from aulait.training.trainer import Learner, LocalTraining, TrainConfig, Trained

STEPS = 2  # of the sites of a ``Federation``


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


# -- SCAFFOLD ------------------------------------------------------------------------------------


def target(seed: int, name: str, shape) -> torch.Tensor:
    """Where a site's loss is least, an entry at a time."""
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed * 31 + sum(map(ord, name)))
    )


class Quadratic:
    """Local SGD on 1/2 ||theta - target||^2, and whatever drift it is asked for."""

    def __init__(self, owners: dict[int, int]) -> None:
        self.owners = owners

    def train(self, works, advance=None):
        return [Trained(self._moved(work), 1.0, 7, 0.1) for work in works]

    def _moved(self, work) -> Adapter:
        theta = lora.to_tensors(work.start)
        own = self.owners[work.seed]
        for _ in range(work.steps):
            theta = {
                n: t
                - work.lr * (t - target(own, n, t.shape))
                + (work.drift[n] if work.drift else 0.0)
                for n, t in theta.items()
            }
        return lora.with_tensors(work.start, theta)


def test_scaffold_is_the_papers_algorithm_under_local_sgd():
    """Option II with c and c_k in the paper's own terms, a client away in the second round."""
    names = ("ann", "bob", "cat")
    run = Federation("scaffold", clients=names, shapes=WIDE)
    owners = {
        run.context.seeds.integer("batches", t, name): k
        for t in range(1, 5)
        for k, name in enumerate(names)
    }
    run.learner = Quadratic(owners)
    state = run.start()
    x = {n: t.double() for n, t in state.factors.items()}
    c = {n: torch.zeros_like(t) for n, t in x.items()}
    own = {name: dict(c) for name in names}
    for t in range(1, 5):
        present = ("ann", "cat") if t == 2 else names
        part = len(present) / len(names)
        state, _ = run.round(state, clients=present, planned=len(present))
        lr, moves = 1e-2 / t, []
        for name in present:
            y, mine = dict(x), own[name]
            for _ in range(STEPS):
                y = {
                    n: v
                    - lr * (v - target(names.index(name), n, v.shape).double() - mine[n] + c[n])
                    for n, v in y.items()
                }
            rescaled = {n: mine[n] - c[n] + (x[n] - y[n]) / (STEPS * lr) for n in x}
            moves.append(({n: y[n] - x[n] for n in x}, {n: rescaled[n] - mine[n] for n in x}))
            own[name] = rescaled
        x = {n: v + sum(dy[n] for dy, _ in moves) / len(moves) for n, v in x.items()}
        c = {n: v + part * sum(dc[n] for _, dc in moves) / len(moves) for n, v in c.items()}
        assert_near(state.factors, {n: v.float() for n, v in x.items()}, 1e-4)
        assert_near(
            {n: state.tensors[f"control/{n}"] for n in c},
            {n: -STEPS * v.float() for n, v in c.items()},
            1e-4,
        )


def test_drift_is_added_after_every_step_and_padding_stays_out_of_it(base):
    """Two sites of unequal ranks in one pass; a learning rate of nothing leaves the drift alone."""
    learner = Learner(base, TrainConfig(optimizer="sgd"))
    run = real(base, "scaffold")
    works = []
    for rank, number in ((2, 1.0), (1, 2.0)):
        start = lora.from_tensors(
            lora.leading(lora.to_tensors(run.context.initial()), lambda layer, rank=rank: rank),
            4.0,
            2,
        )
        drift = {n: torch.full_like(t, number) for n, t in lora.to_tensors(start).items()}
        works.append(
            LocalTraining(start, records(4, 1), Trainable.AB, 3, 2, 1e-30, rank, drift=drift)
        )
    for work, done in zip(works, learner.train(works), strict=True):
        before, after = lora.to_tensors(work.start), lora.to_tensors(done.adapter)
        assert_near(lora.subtract(after, before), {n: 3 * t for n, t in work.drift.items()}, 1e-5)


# -- FedRot-LoRA ---------------------------------------------------------------------------------


def pairs(seed: int, rank: int, m: int, n: int):
    generator = torch.Generator().manual_seed(seed)
    return [
        Adapter(
            {
                "one": (
                    torch.randn(rank, n, generator=generator),
                    torch.randn(m, rank, generator=generator),
                )
            },
            4.0,
            rank,
        )
        for _ in range(2)
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 6), round=st.sampled_from([2, 3]))
def test_the_whole_turn_is_that_of_procrustes_where_that_is_a_rotation(seed, rank, round):
    own, other = pairs(seed, rank, 9, 7)
    turned = fedrot.aligned(own, other, round, 1.0)
    assert_near(dense(turned), dense(own), 1e-5)
    a, b = (t.double().numpy() for t in own.factors["one"])
    c, d = (t.double().numpy() for t in other.factors["one"])
    found = turned.factors["one"]
    best, _ = orthogonal_procrustes(a.T, c.T) if round == 3 else orthogonal_procrustes(b, d)
    if np.linalg.det(best) > 0:
        assert_near(
            {"a": found[0], "b": found[1]},
            {"a": torch.tensor(best.T @ a).float(), "b": torch.tensor(b @ best).float()},
            1e-4,
        )
    side = 0 if round == 3 else 1
    before = float((own.factors["one"][side] - other.factors["one"][side]).norm())
    half = fedrot.aligned(own, other, round, 0.5).factors["one"][side]
    assert float((found[side] - other.factors["one"][side]).norm()) <= before + 1e-4
    assert float((half - other.factors["one"][side]).norm()) <= before + 1e-4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_of_rank_two_no_other_angle_comes_nearer(seed):
    own, other = pairs(seed, 2, 5, 6)
    found = fedrot.aligned(own, other, 2, 1.0).factors["one"][1]
    b, d = own.factors["one"][1], other.factors["one"][1]
    least = min(
        float(
            (b @ torch.tensor([[np.cos(x), -np.sin(x)], [np.sin(x), np.cos(x)]]).float() - d).norm()
        )
        for x in np.linspace(0, 2 * np.pi, 721)
    )
    assert float((found - d).norm()) <= least + 1e-4


def test_nothing_is_turned_in_the_first_round_or_at_weight_zero():
    own, other = pairs(1, 3, 5, 6)
    assert fedrot.aligned(own, other, 1, 0.5) is own
    assert fedrot.aligned(own, other, 2, 0.0) is own


# -- FedSVD --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(1, 6),
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    free=st.integers(0, 3),
)
def test_fedsvd_gives_the_singular_vectors_and_stays_in_the_first_span(seed, rank, m, n, free):
    run = Federation("fedsvd", shapes={"one": (m, n)}, rank=rank)
    (own, _) = pairs(seed, rank, m, n)
    a, b = own.factors["one"]
    b = b * (torch.arange(rank) >= min(free, rank - 1))  # columns that nobody trained
    after = fedsvd.decomposed(run.context, {"one.A": a, "one.B": b})
    found, carried = after["one.A"].double(), after["one.B"].double()
    assert_near({"w": carried @ found}, {"w": b.double() @ a.double()}, 1e-5)
    wide = min(rank, n)
    assert_near({"w": found[:wide] @ found[:wide].T}, {"w": torch.eye(wide).double()}, 1e-5)
    values = torch.linalg.svdvals(b.double() @ a.double())
    assert_near({"v": carried.norm(dim=0)[: min(len(values), rank)]}, {"v": values[:rank]}, 1e-4)
    inside = torch.linalg.qr(a.double().T)[0]  # the SVD never leaves the span of the first A
    assert_near({"w": found @ inside @ inside.T}, {"w": found}, 1e-4)


# -- LA-LoRA -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 6),
    columns=st.integers(1, 7),
    strength=st.floats(0.01, 5.0),
)
def test_the_filter_solves_its_equation_on_two_rings(seed, rows, columns, strength):
    def ring(size):
        shift = np.roll(np.eye(size), 1, axis=0)
        return 2 * np.eye(size) - shift - shift.T

    value = torch.randn(
        rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    system = np.eye(rows * columns) + strength * (
        np.kron(ring(rows), np.eye(columns)) + np.kron(np.eye(rows), ring(columns))
    )
    wanted = np.linalg.solve(system, value.numpy().ravel()).reshape(rows, columns)
    found = smoothed(value, strength)
    assert_near({"g": found}, {"g": torch.tensor(wanted)}, 1e-5)
    assert float(found.norm()) <= float(value.norm()) * (1 + 1e-6)
    assert float(found.mean()) == pytest.approx(float(value.mean()), abs=1e-6)


def test_turns_are_single_steps_of_b_and_a_one_after_the_other(base):
    """One record, so that every step reads the same."""
    learner = Learner(base, TrainConfig(max_grad_norm=0.5, optimizer="sgd"))
    some = records(1, 3)
    start = real(base, "lalora").context.initial()
    (together,) = learner.train([LocalTraining(start, some, Trainable.AB, 2, 1, 1.0, 1, turn=0)])
    (first,) = learner.train([LocalTraining(start, some, Trainable.B, 1, 1, 1.0, 1)])
    (second,) = learner.train([LocalTraining(first.adapter, some, Trainable.A, 1, 1, 1.0, 1)])
    assert_near(lora.to_tensors(together.adapter), lora.to_tensors(second.adapter), 1e-4)
    (odd,) = learner.train(
        [LocalTraining(first.adapter, some, Trainable.AB, 1, 1, 1.0, 1, turn=1)]
    )
    assert_near(lora.to_tensors(odd.adapter), lora.to_tensors(second.adapter), 1e-4)


# -- Fed-PLoRA -----------------------------------------------------------------------------------


def test_whatever_its_rank_a_client_begins_where_the_federation_is():
    """Fold and factors together are the server's adapter, and every client draws anew."""
    run = Federation("fedplora", shapes=WIDE, rank=4, ranks={"ann": 1, "bob": {"one": 2, "two": 3}})
    state = run.rounds(2)
    whole = dense(run.result(state))
    run.learner.works.clear()
    run.round(state)
    assert [work.fold is None for work in run.learner.works] == [False, False, True]
    for work in run.learner.works:
        folded = work.fold or {}
        began = {
            layer: update + folded.get(layer, torch.zeros(1)).double()
            for layer, update in dense(work.start).items()
        }
        assert_near(began, whole, 1e-5)
    drawn = [
        tuple(fedplora.columns(run.context, t, name)["one"])
        for t in range(1, 9)
        for name in ("ann", "bob")
    ]
    assert {len(own) for own in drawn} == {1, 2}
    assert len(set(drawn)) > 6


# -- limits: where a method is another one -------------------------------------------------------


LIMITS = [("fedavg", {}, "fedit", {}), ("fedprox", {"proximal": 0.0}, "fedit", {}),
          ("fedrot", {"rotation": 0.0}, "fedit", {}), ("fedplora", {}, "fedit", {}),
          ("raflora", {}, "flexlora", {"partition": True}), ("raflora", {}, "flexlora", {})]


@pytest.mark.parametrize(("method", "options", "other", "others"), LIMITS)
def test_a_method_is_another_at_its_limit(method, options, other, others):
    """At equal ranks, three rounds, a proxy beside the clients."""
    one, two = (Federation(name, shapes=WIDE, rank=4, options=own, proxies=("proxy-000",))
                for name, own in ((method, options), (other, others)))
    found, wanted = one.rounds(3), two.rounds(3)
    assert_near(found.tensors, wanted.tensors, 1e-5)


def test_fedsvd_without_decompositions_is_ffa_and_florist_that_keeps_everything_is_flora():
    for method, options, other in (("fedsvd", {"svd_every": 0}, "ffa"),
                                   ("florist", {"energy": 1.0}, "flora")):
        one = Federation(method, shapes=WIDE, rank=4, options=options)
        two = Federation(other, shapes=WIDE, rank=4)
        assert_near(dense(one.result(one.rounds(3))), dense(two.result(two.rounds(3))), 1e-5)


def test_fedprox_asks_for_its_pull():
    run = Federation("fedprox", options={"proximal": 0.3})
    run.rounds(1)
    assert {work.penalty.proximal for work in run.learner.works} == {0.3}


def test_florist_keeps_no_more_than_the_energy_asks_for():
    """Rank one where one direction holds nearly everything."""
    sums = ProductSum((6, 5))
    sums.add(1.0, torch.eye(3, 5), torch.eye(6, 3) * torch.tensor([10.0, 1.0, 0.1]))
    for energy, rank in ((0.5, 1), (0.995, 2), (0.99999, 3), (1.0, 3)):
        a, b = florist.cut(sums, energy)
        assert (len(a), b.shape[1]) == (rank, rank)
