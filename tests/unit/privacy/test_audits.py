"""Audits over many rounds, with and without sampling: what an attacker's outcomes prove of epsilon.

The attacker knows every unit but one, who else takes part in each round, the bound and the noise.
It reads every released number and tests by likelihood, which no test beats. What its hits and false
alarms prove must stay below the claim. That the audit would notice is shown by noise a tenth as
large as what is charged.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from tests.auditing import proven_epsilon
from tests.tiny_bases import filled, records, tiny

from aulait.core import lora
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.privacy.accounting import Accountant, calibrate
from aulait.privacy.aggregator import KnownSites, PrivateAggregator, Release
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.training import record_gradients, unit_sums
from aulait.training.record_gradients import PrivateTraining, train_privately
from aulait.training.trainer import Learner, TrainConfig
from aulait.training.unit_sums import UnitGradient

DELTA = 1e-5
SECRET = random.SystemRandom()
# claimed epsilon, rounds, rate
CASES = [(1.0, 1, 1.0), (4.0, 5, 1.0), (2.0, 10, 0.2)]
TRIALS = 200
CANARY = 0  # place of a site's record of which nobody knows whether it is there

Trial = Callable[[bool], float]


class Weak(SystemNoise):
    """A tenth of the noise that is charged: a defect that the audit must notice."""

    def gaussian(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        return super().gaussian(shape, std / 10)


def log_ratio(seen: float, z: float, rate: float) -> float:
    """Of one number: N(1, z) with this probability, else N(0, z), against N(0, z)."""
    return math.log1p(rate * math.expm1(min((2 * seen - 1) / (2 * z * z), 600.0)))


def of_the_aggregator(claimed: float, rounds: int, rate: float, noise: SystemNoise) -> Trial:
    """Five clients that are known and one of which nobody knows whether it is there."""
    z = calibrate(claimed, DELTA, rounds, rate)
    template = {"w.B": torch.zeros(4, 4)}
    direction = torch.zeros(4, 4)
    direction[0, 3] = 1.0
    others = [ClientUpdate(f"c{i}", {"w.B": torch.full((4, 4), 0.3)}) for i in range(5)]
    canary = ClientUpdate("canary", {"w.B": 1e6 * direction})  # as long as the bound lets it be

    def trial(there: bool) -> float:
        config = PrivacyConfig(epsilon=claimed, delta=DELTA, relation="add-remove", clip=1.0)
        accountant = Accountant(DELTA, {"local": claimed})
        through = PrivateAggregator(config, Ledger(None), accountant, noise, KnownSites())
        total = 0.0
        for round in range(1, rounds + 1):
            here = [one for one in others if SECRET.random() < rate]
            sent = [*here, canary] if there and SECRET.random() < rate else here
            out = through.release(sent, Release(
                stage="train", round=round, role="local", bound=1.0, noise_multiplier=z, planned=6,
                template=template, sampling_rate=rate))
            known = len(here) * 0.25  # an update of norm 1.2, clipped to 1: 1/4 a coordinate
            total += log_ratio(float(out.total["w.B"][0, 3]) - known, z, rate)
        assert accountant.spent("local") <= claimed
        return total

    return trial


def of_a_site(claimed: float, rounds: int, rate: float, noise: SystemNoise, base,
              monkeypatch) -> Trial:
    """DP-SGD at a site of ten records, one noised step a round. Gradients are given, so that the
    attacker knows them: each along an axis of its own."""
    z = calibrate(claimed, DELTA, rounds, rate)
    shapes = loading.targets(base, AdapterConfig(targets=("q_proj",), layers=1))
    filled_start = filled(shapes, 1)
    start = Adapter({n: (a, torch.zeros_like(b)) for n, (a, b) in filled_start.factors.items()},
                    filled_start.alpha)
    size = sum(b.numel() for _, b in start.factors.values())
    some, learner = records(10), Learner(base, TrainConfig(optimizer="sgd"))
    monkeypatch.setattr(record_gradients, "SystemNoise", lambda: noise)

    def trial(there: bool) -> float:
        def given(learner, stack, unit, draw):
            """In the world without it the canary is drawn like any other and adds nothing."""
            vector = torch.zeros(size, dtype=torch.float64)
            place = some.index(unit[0])
            vector[place] = 1e6 if there or place != CANARY else 0.0
            return UnitGradient(vector, [1.0], 1)

        monkeypatch.setattr(unit_sums, "unit_gradient", given)
        total = 0.0
        for _ in range(rounds):
            one = PrivateTraining(start=start, records=some, trainable=Trainable.B, steps=1,
                                  batch=max(1, round(rate * len(some))), lr=1.0, mode="records",
                                  clip=1.0, sigma=z, seed=0, most=rate)
            done = lora.to_tensors(train_privately(learner, one).adapter, Trainable.B)
            number = float(next(iter(done.values())).flatten()[CANARY])
            total += log_ratio(-number * one.expected, z, one.rate)
        return total

    return trial


def proven(trial: Trial, claimed: float, rounds: int, rate: float) -> float:
    """What the outcomes prove; thresholds are in units of the statistic's spread."""
    spread = rate * math.sqrt(rounds) / calibrate(claimed, DELTA, rounds, rate)
    outcomes = [[trial(there) for _ in range(TRIALS)] for there in (False, True)]
    return proven_epsilon(*outcomes, DELTA, [spread * at for at in (-1.5, -0.7, 0.0, 0.7, 1.5)])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


@pytest.fixture(params=["aggregator", "site"])
def make(request, base, monkeypatch):
    """Trials at one of the places where noise is added."""
    if request.param == "aggregator":
        return of_the_aggregator
    return partial(of_a_site, base=base, monkeypatch=monkeypatch)


@pytest.mark.parametrize(("claimed", "rounds", "rate"), CASES)
def test_outcomes_of_many_rounds_prove_no_more_than_is_claimed(make, claimed, rounds, rate):
    trial = make(claimed, rounds, rate, SystemNoise())
    assert proven(trial, claimed, rounds, rate) <= claimed


def test_the_audit_notices_noise_that_is_too_small(make):
    assert proven(make(1.0, 5, 1.0, Weak()), 1.0, 5, 1.0) > 1.0
