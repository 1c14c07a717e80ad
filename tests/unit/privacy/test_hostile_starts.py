"""Adversarial factors that make records of one pass move one another, and what became of them.

A coordinator chooses the factors from which a site starts. In a common, padded pass there are such
that one record more changes the last digits of all others' gradients, and large factors make a
large difference of these. Where each record has a pass of its own, with float32 weights, there are
none: whatever the start, one record moves the sum by at most C.
"""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from tests.auditing import proven_epsilon
from tests.tiny_bases import records, tiny

from aulait.core.errors import PrivacyError
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Record
from aulait.models import loading
from aulait.models.loading import AdapterConfig, Base
from aulait.privacy import clipping
from aulait.privacy.accounting import Event, epsilon
from aulait.privacy.noise import SystemNoise, toward_zero
from aulait.privacy.noise_grid import grid
from aulait.training import record_gradients, unit_sums
from aulait.training.record_gradients import PrivateTraining, gradients, train_privately
from aulait.training.trainer import Learner, TrainConfig
from aulait.training.unit_sums import sum_units

CLIP, Z, DELTA = 1.0, 2.0, 1e-5
OTHERS = records(64, longest=8)
CANARY = Record("q" * 20)  # longer than all others, so that it pads them
SEEDS = (11, 32, 37)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def hostile(base: Base, seed: int) -> Adapter:
    """Large random factors; their sizes differ by orders of magnitude from layer to layer."""
    shapes = loading.targets(base, AdapterConfig())
    source, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    sizes = [10 ** source.uniform(-0.5, 3.5) for _ in range(source.choice((1, 1, 7, len(shapes))))]
    factors = {name: (torch.randn(4, n, generator=generator) / n**0.5,
                      torch.randn(m, 4, generator=generator) * sizes[i % len(sizes)])
               for i, (name, (m, n)) in enumerate(shapes.items())}
    return Adapter(factors, alpha=8.0, rank=4)


def learner(base: Base) -> Learner:
    return Learner(base, TrainConfig(optimizer="sgd", rows_at_once=128))


def in_one_pass(base: Base, start: Adapter, some: tuple[Record, ...]) -> torch.Tensor:
    """The sum of the clipped gradients as it was: all records in one padded pass."""
    found, _, _ = gradients(learner(base), start, some, Trainable.AB)
    rows = torch.cat([g.double().flatten(1) for g in found], dim=1)
    return torch.stack([clipping.clip_vector(row, CLIP) for row in rows]).sum(0)


def work(start: Adapter, some: tuple[Record, ...]) -> PrivateTraining:
    return PrivateTraining(start=start, records=some, trainable=Trainable.AB, steps=1,
                           batch=len(some), lr=1.0, mode="records", clip=CLIP, sigma=Z * CLIP,
                           seed=0)


def alone(base: Base, start: Adapter, some: tuple[Record, ...]) -> torch.Tensor:
    """What a site's step noises, as it is."""
    one = work(start, some)
    pairs = {name: (torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone()))
             for name, (a, b) in start.factors.items()}
    live = record_gradients._LiveFactors(learner(base), one, pairs,
                                         [leaf for pair in pairs.values() for leaf in pair],
                                         SystemNoise())
    steps = record_gradients._RecordSteps(live)
    return sum_units(live.learner, steps.asked(0, one.units)).total


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_in_a_common_pass_one_record_moves_the_sum_far_beyond_the_bound(folder, dtype):
    """The attack is one: with padding, in either precision."""
    base = tiny(folder, dtype=dtype)
    base.packs = False
    moved = [float((in_one_pass(base, start, (*OTHERS, CANARY))
                    - in_one_pass(base, start, OTHERS)).norm())
             for start in (hostile(base, seed) for seed in SEEDS)]
    assert max(moved) > 2 * CLIP


def test_narrow_weights_are_refused_whatever_the_start(folder):
    base = tiny(folder, dtype="bfloat16")
    for seed in SEEDS:
        with pytest.raises(PrivacyError, match=r"model.dtype is .bfloat16.*expected .float32"):
            train_privately(learner(base), work(hostile(base, seed), OTHERS))


@pytest.mark.parametrize("seed", SEEDS)
def test_alone_one_record_moves_the_sum_by_no_more_than_the_bound(folder, seed):
    """By whole numbers; and no other record's part changes by a single bit."""
    base = tiny(folder)
    start = hostile(base, seed)
    moved = alone(base, start, (*OTHERS, CANARY)) - alone(base, start, OTHERS)
    assert sum(Fraction(x) ** 2 for x in moved.tolist()) <= Fraction(CLIP) ** 2
    assert float(moved.norm()) > 0.75 * CLIP
    assert torch.equal(moved, alone(base, start, (CANARY,)))
    assert torch.equal(moved, toward_zero(moved, grid(Z * CLIP)))


def test_a_distinguisher_of_a_hostile_start_proves_no_more_than_the_account_says(folder,
                                                                                 monkeypatch):
    """It chose the start, knows all records but one, and reads the trained factors."""
    base, trials = tiny(folder), 150
    start = hostile(base, SEEDS[-1])
    known: dict[object, unit_sums.UnitGradient] = {}
    real = unit_sums.unit_gradient

    def remembered(learner, stack, unit, draw):
        if unit not in known:
            known[unit] = real(learner, stack, unit, draw)
        return known[unit]

    monkeypatch.setattr(unit_sums, "unit_gradient", remembered)
    # the start's own size would hide a step of size one in float32, so the reader is given the step
    seen: list[torch.Tensor] = []
    noised = record_gradients._LiveFactors.noised
    monkeypatch.setattr(record_gradients._LiveFactors, "noised", lambda live, total: (
        seen.append(noised(live, total)) or seen[-1]))
    sums = [alone(base, start, some) for some in (OTHERS, (*OTHERS, CANARY))]
    towards = sums[1] - sums[0]

    def statistic(some: tuple[Record, ...]) -> float:
        train_privately(learner(base), work(start, some))
        return float((seen.pop() - sums[0]) @ towards) / float(towards.norm())

    without = [statistic(OTHERS) for _ in range(trials)]
    present = [statistic((*OTHERS, CANARY)) for _ in range(trials)]
    claimed = epsilon([Event(Z)], DELTA)
    thresholds = [-3.0, -1.0, 0.5, 2.0, 4.0]
    assert proven_epsilon(without, present, DELTA, thresholds) <= claimed
    # the same reader, had one record moved the sum as far as it did in a common pass
    assert proven_epsilon(without, [x + 7.0 for x in present], DELTA, thresholds) > claimed
