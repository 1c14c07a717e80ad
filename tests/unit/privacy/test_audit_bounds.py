"""Lower bounds from guesses: never above the truth on honest outcomes, near to it where they can."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom
from tests.oracle import one_run_audit

from aulait.privacy.audit_bounds import _epsilon, _p_value, one_run_epsilon, proven_mu
from aulait.privacy.privacy_loss import gaussian_epsilon

DELTA = 1e-5


def guesses(mu: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    there = draw.integers(0, 2, count).astype(bool)
    return draw.standard_normal(count) + mu * there, there


@pytest.mark.parametrize("mu", [0.2, 0.7, 1.67])
def test_honest_outcomes_prove_no_more_than_is_true(mu):
    for seed in range(20):
        scores, there = guesses(mu, 4000, seed)
        assert one_run_epsilon(scores, there, DELTA, 0.99) <= gaussian_epsilon(mu, DELTA)
        assert proven_mu(scores, there, (mu / 2 - 1, mu / 2, mu / 2 + 1), 0.9999) <= mu


def test_bounds_are_near_to_what_can_be_proven():
    scores, there = guesses(1.0, 30_000, 1)
    assert proven_mu(scores, there, (0.5,), 0.9999) > 0.9
    assert one_run_epsilon(scores, there, DELTA, 0.99) > 1.5
    nothing = np.random.default_rng(2).standard_normal(4000)
    assert one_run_epsilon(nothing, there[:4000], DELTA, 0.99) == 0.0
    assert proven_mu(nothing, there[:4000], (0.0,), 0.9999) < 0.1


def test_randomised_response_is_the_worst_case_and_is_not_accused():
    """It is exactly epsilon-private, and its guesses are independent: the bound holds at its level."""
    claimed, failures = 1.0, 0
    for seed in range(80):
        draw = np.random.default_rng(seed)
        there = draw.integers(0, 2, 400).astype(bool)
        told = there ^ (draw.random(400) > 1 / (1 + math.exp(-claimed)))
        failures += one_run_epsilon(told + draw.random(400) / 2, there, 0.0, 0.95) > claimed
    assert failures <= binom.isf(1e-4, 80, 0.05)


def test_without_delta_the_p_value_is_a_binomial_tail():
    for epsilon in (0.0, 0.5, 2.0):
        rate = 1 / (1 + math.exp(-epsilon))
        exact = sum(math.comb(20, k) * rate**k * (1 - rate) ** (20 - k) for k in range(15, 21))
        assert _p_value(20, 15, 50, 0.0, epsilon) == pytest.approx(exact)


def test_delta_only_adds_to_the_p_value():
    """The delta term by its formula, summed the slow way."""
    epsilon, right, count, canaries, delta = 0.3, 30, 40, 100, 1e-3
    rate = 1 / (1 + math.exp(-epsilon))
    mass = [math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(count + 1)]
    worst = max(sum(mass[right - i:right]) / i for i in range(1, right + 1))
    expected = sum(mass[right:]) + 2 * canaries * delta * worst
    assert _p_value(count, right, canaries, delta, epsilon) == pytest.approx(expected)


def test_perfect_guesses_prove_about_the_logarithm_of_their_number():
    there = np.arange(1000) % 2 == 0
    found = one_run_epsilon(there.astype(float), there, 0.0, 0.95)
    assert found == pytest.approx(math.log(1000 / math.log(80)), abs=0.2)
    assert one_run_epsilon([], [], 0.0, 0.95) == 0.0


# canaries, guesses, right, delta, failure
COUNTS = [(60, 60, 45, 0.0, 0.01), (60, 30, 29, 1e-5, 0.01), (100, 40, 40, 1e-3, 0.05), (80, 80, 50, 1e-4, 0.2), (50, 20, 10, 1e-5, 0.05), (30, 30, 29, 0.01, 0.3)]


@pytest.mark.parametrize("counts", COUNTS)
def test_the_bound_is_that_of_the_theorem_term_by_term(counts):
    canaries, guesses, right, delta, failure = counts
    assert _epsilon(guesses, right, canaries, (delta, failure)) == pytest.approx(one_run_audit.epsilon(*counts), abs=1e-6)


@pytest.mark.parametrize("counts", [*COUNTS, (4000, 2000, 1400, 1e-5, 0.0025), (4000, 120, 119, 1e-6, 0.0025), (30_000, 30_000, 20_500, 1e-5, 0.0025)])
def test_the_bound_is_that_of_jax_privacy(counts):
    auditing = pytest.importorskip("jax_privacy.auditing")
    canaries, guesses, right, delta, failure = counts
    theirs = auditing._epsilon_one_run(0.0, canaries, guesses, right, failure, delta)
    assert _epsilon(guesses, right, canaries, (delta, failure)) == pytest.approx(theirs, abs=3e-6)
    for epsilon in (0.0, 0.3, 2.0):
        assert _p_value(guesses, right, canaries, delta, epsilon) == pytest.approx(auditing._one_run_p_value(canaries, guesses, right, epsilon, delta), rel=1e-6, abs=1e-12)
