"""The law of size against its closed form, against simulation, and in words."""

from __future__ import annotations

import math

import pytest
import torch

from aulait.privacy import accounting
from aulait.privacy.noise_ratio import REFUSED, WARNED, NoiseRatio, ratio_in_words, times


@pytest.mark.parametrize("rounds", [1, 6, 100])
def test_the_ratio_is_that_of_the_whole_budget_however_many_rounds_there_are(rounds):
    z = accounting.calibrate(8.0, 1e-5, rounds)
    found = NoiseRatio(24_576, 38, z, rounds)
    assert found.mu == pytest.approx(1.666, abs=1e-3)
    assert found.ratio == pytest.approx(math.sqrt(24_576) / (found.mu * 38))
    assert found.ratio == pytest.approx(2.476, abs=2e-3)


def test_the_ratio_is_what_a_simulation_of_agreeing_clients_measures():
    """Every client sends the same vector of norm C; sum, noise, mean, all rounds added up."""
    numbers, clients, z, rounds, bound = 400, 12, 1.3, 5, 0.7
    generator = torch.Generator().manual_seed(0)
    signal = torch.nn.functional.normalize(torch.randn(numbers, generator=generator), dim=0) * bound
    off = []
    for _ in range(200):
        total = sum(clients * signal + z * bound * torch.randn(numbers, generator=generator) for _ in range(rounds)) / clients
        off.append(float((total - rounds * signal).norm() / (rounds * signal).norm()))
    assert sum(off) / len(off) == pytest.approx(NoiseRatio(numbers, clients, z, rounds).ratio, rel=0.02)


@pytest.mark.parametrize("target", [0.1, 0.5, 1.0, 5.0])
def test_what_is_affordable_meets_the_target_and_one_number_more_does_not(target):
    for clients in (9, 38, 380):
        most = NoiseRatio(1, clients, 0.6, 1).affordable(target)
        assert NoiseRatio(most, clients, 0.6, 1).ratio <= target or most == 1
        assert NoiseRatio(most + 1, clients, 0.6, 1).ratio > target


def test_nine_institutions_in_words():
    found = NoiseRatio(11_000, 9, accounting.calibrate(8.0, 1e-5, 4), 4)
    told = ratio_in_words(found, 0.5, "9 institutions", "epsilon 8")
    assert told == "9 institutions: at epsilon 8 about 56 numbers can be trained; this run trains 11,000, so that the noise is 7 times the signal: it will not learn"


def test_the_outlook_follows_the_ratio():
    found = [NoiseRatio(round((ratio * 10) ** 2), 10, 1.0, 1).outlook for ratio in (0.3, 0.8, 2.0, 6.0)]
    assert found == ["it can learn", "it will learn part of what it could", "it will hardly learn and may do harm", "it will not learn"]
    assert WARNED < 2.0 < REFUSED < 6.0
    assert [times(ratio) for ratio in (0.412, 7.04, 10.2, 1234.5)] == ["0.41 times", "7 times", "10 times", "1,234 times"]
