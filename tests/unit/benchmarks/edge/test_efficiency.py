"""Formulas of the edge study against numbers worked out by hand."""

from __future__ import annotations

import pytest

from aulait_benchmarks.edge import efficiency as metrics


def test_tokens_are_those_of_encoder_and_decoder_together():
    assert metrics.tokens_read([512, 300], [95, 40]) == 947
    assert metrics.tokens_per_s(947, 2.0) == 473.5


def test_mfu_is_a_share_of_the_peak():
    assert metrics.mfu(2e12, 4.0, 1e12) == 0.5
    assert metrics.mfu(2e12, 4.0, None) is None


def test_tokens_a_second_a_watt_are_tokens_a_joule():
    tokens, step_s, power_w = 600, 3.0, 20.0
    efficiency = metrics.tokens_per_joule(tokens, power_w * step_s)
    assert efficiency == metrics.tokens_per_s(tokens, step_s) / power_w == 10.0
    assert metrics.tokens_per_joule(tokens, None) is None


def test_granularity_of_a_round():
    assert metrics.granularity(30.0, 120.0) == 0.25


def test_numbers_of_an_adapter():
    assert metrics.adapter_numbers({"q": (4, 6), "v": (8, 2)}, 3) == 3 * 10 + 3 * 10


def test_energy_of_a_round():
    carried_j = metrics.network_j(1e6, 3e6, 2e-6)
    assert carried_j == 8.0
    assert metrics.communication_share(10.0, 2.0, carried_j) == 0.5


@pytest.mark.parametrize(("goal", "expected"), [(4.5, 2), (4.0, 3), (3.0, None), (9.0, 1)])
def test_rounds_to_a_loss(goal, expected):
    assert metrics.rounds_to([5.0, 4.5, 4.0, 4.2], goal) == expected
