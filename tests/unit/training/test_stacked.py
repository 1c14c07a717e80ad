"""RecordMechanism that methods add to a site's loss, for many sites in one pass."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.closeness import assert_learnt_alike, assert_near
from tests.tiny_bases import filled, records, tiny

from aulait.core import lora
from aulait.core.factors import Trainable
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.training.stacked import Penalty, Stack
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

SHAPES = {"x": (5, 3), "y": (4, 7)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


def moved(stack: Stack, seed: int = 0) -> None:
    """Every site's own factors somewhere else than at their start; padding stays zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for leaf in stack.leaves:
            leaf += 0.3 * torch.randn(leaf.shape, generator=generator) * (leaf != 0)


def gradients(stack: Stack, penalty: Penalty) -> list[torch.Tensor]:
    stack.penalty(penalty).backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in stack.leaves]


def tail_by_hand(adapter: Adapter, keep: float) -> float:
    """sum over layers of ||B[:, t:]||_F ||A[t:, :]||_F with t = floor(keep r), number by number."""
    total = 0.0
    for a, b in adapter.factors.values():
        rank = a.shape[0]
        t = math.floor(keep * rank)
        of_b = math.sqrt(sum(float(b[i, j]) ** 2 for i in range(b.shape[0]) for j in range(t, rank)))
        of_a = math.sqrt(sum(float(a[j, i]) ** 2 for i in range(a.shape[1]) for j in range(t, rank)))
        total += of_b * of_a
    return total


@pytest.mark.parametrize("trainable", [Trainable.A, Trainable.B, Trainable.AB])  # a core is trained alone, in tests of cores
def test_the_proximal_term_pulls_every_trained_factor_back_to_its_start(trainable):
    stack = Stack.of([filled(SHAPES, 2, seed=1), filled(SHAPES, 2, seed=2)], trainable, CPU)
    start = [leaf.detach().clone() for leaf in stack.leaves]
    assert float(stack.penalty(Penalty(proximal=0.7))) == 0.0
    moved(stack)
    wanted = 0.35 * sum(float((leaf.detach().double() - origin).square().sum()) for leaf, origin in zip(stack.leaves, start, strict=True))
    assert float(stack.penalty(Penalty(proximal=0.7)).detach()) == pytest.approx(wanted, rel=1e-5)
    for leaf, origin, found in zip(stack.leaves, start, gradients(stack, Penalty(proximal=0.7)), strict=True):
        assert_near(found, 0.7 * (leaf.detach() - origin), 1e-5)


@settings(max_examples=20, deadline=None)
@given(ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3), keep=st.floats(0.05, 0.99), seed=st.integers(0, 1000))
def test_the_tail_is_that_of_every_sites_own_rank(ranks, keep, seed):
    starts = [filled(SHAPES, rank, seed=seed + k) for k, rank in enumerate(ranks)]
    stack = Stack.of(starts, Trainable.AB, CPU)
    wanted = 0.3 * sum(tail_by_hand(start, keep) for start in starts)
    assert float(stack.penalty(Penalty(tail=0.3, keep=keep)).detach()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("rank", "keep"), [(4, 0.5), (4, 0.99), (1, 0.99), (6, 0.7)])
def test_the_gradient_of_the_tail_is_that_of_finite_differences(rank, keep):
    adapter = filled(SHAPES, rank, seed=3)
    stack = Stack.of([adapter], Trainable.AB, CPU)
    gradients(stack, Penalty(tail=0.3, keep=keep))
    for layer, pair in adapter.factors.items():
        for side, factor in enumerate(pair):
            grad = stack.factors[layer][side].grad[0]
            for place in list(torch.cartesian_prod(*(torch.arange(size) for size in factor.shape)))[::3]:
                ends = []
                for step in (1e-4, -1e-4):
                    other = [t.double().clone() for t in pair]
                    other[side][tuple(place.tolist())] += step
                    ends.append(0.3 * tail_by_hand(Adapter(dict(adapter.factors) | {layer: tuple(other)}, 1.0), keep))
                wanted, size = (ends[0] - ends[1]) / 2e-4, float(grad.abs().max())
                assert_near(grad[tuple(place.tolist())], wanted, 1e-4, size=size)


@pytest.mark.parametrize("penalty", [Penalty(tail=1.0, keep=0.5), Penalty(proximal=1.0), Penalty(proximal=1.0, tail=1.0)])
def test_a_fresh_adapter_has_no_penalty_and_no_gradient_that_is_no_number(penalty):
    """B = 0: the norm in the tail has no derivative there, and none is wanted."""
    stack = Stack.of([lora.initial(SHAPES, 4, 8.0, Seeds(0))], Trainable.AB, CPU)
    assert float(stack.penalty(penalty).detach()) == pytest.approx(0.0, abs=1e-10)
    for found in gradients(stack, penalty):
        assert bool(torch.isfinite(found).all())
        assert float(found.abs().max()) < 1e-6


def test_a_site_in_a_pass_feels_its_own_penalty_only():
    """Of unequal ranks, so that one is padded; each gradient is the one it has alone."""
    penalty = Penalty(proximal=0.4, tail=0.6, keep=0.5)
    starts = [filled(SHAPES, rank, seed=rank) for rank in (2, 5, 1)]
    together = Stack.of(starts, Trainable.AB, CPU)
    moved(together, 4)
    now = [together.take(k) for k in range(3)]
    found = gradients(together, penalty)
    for k, (start, here) in enumerate(zip(starts, now, strict=True)):
        alone = Stack.of([start], Trainable.AB, CPU)
        with torch.no_grad():
            for name, pair in here.factors.items():
                for side in (0, 1):
                    alone.factors[name][side].copy_(pair[side][None])
        rank = start.factors["x"][0].shape[0]
        for leaf, all_of_them, own in zip(together.leaves, found, gradients(alone, penalty), strict=True):
            axis = 1 if leaf.shape[2] in (3, 7) and leaf.shape[1] == 5 else 2
            kept = all_of_them[k].narrow(axis - 1, 0, rank)
            assert_near(kept, own[0], 1e-5)
            assert not all_of_them[k].narrow(axis - 1, rank, leaf.shape[axis] - rank).any()


def work(base, site: int, rank: int, penalty: Penalty | None) -> LocalTraining:
    shapes = loading.targets(base, AdapterConfig(targets=("q_proj", "v_proj")))
    return LocalTraining(filled(shapes, rank, alpha=4.0, seed=site), records(4, site), Trainable.AB, 3, 2, 1e-2, 10 + site, penalty)


@pytest.mark.parametrize("penalty", [Penalty(proximal=5.0), Penalty(tail=2.0, keep=0.5)])
def test_training_many_sites_with_a_penalty_equals_training_each_alone(base, penalty):
    learner = Learner(base, TrainConfig())
    ranks = (1, 3, 2)
    works = [work(base, site, rank, penalty) for site, rank in enumerate(ranks)]
    for site, (rank, done) in enumerate(zip(ranks, learner.train(works), strict=True)):
        alone = learner.train([works[site]])[0].adapter
        bare = learner.train([work(base, site, rank, None)])[0].adapter
        assert_learnt_alike(done.adapter, alone, 2e-3, start=works[site].start)
        assert max(float((done.adapter.factors[n][1] - bare.factors[n][1]).abs().max()) for n in bare.factors) > 1e-5


def test_sites_with_and_without_a_penalty_do_not_share_a_pass(base):
    works = [work(base, 0, 2, None), work(base, 1, 2, Penalty(proximal=1.0)), work(base, 2, 2, Penalty(proximal=1.0))]
    assert sorted(sorted(some) for some in Learner(base, TrainConfig()).passes(works)) == [[0], [1, 2]]


def test_a_strong_pull_keeps_a_site_where_it_began(base):
    learner = Learner(base, TrainConfig(optimizer="sgd", max_grad_norm=0.0))
    free, held = (learner.train([work(base, 0, 2, penalty)])[0].adapter for penalty in (None, Penalty(proximal=90.0)))
    start = work(base, 0, 2, None).start

    def far(adapter):
        return math.sqrt(sum(float((adapter.factors[n][i] - start.factors[n][i]).square().sum()) for n in start.factors for i in (0, 1)))

    assert far(held) < 0.6 * far(free)
    assert learner.train([work(base, 0, 2, Penalty(proximal=90.0))])[0].loss < 10  # what is reported is the loss of the text alone
