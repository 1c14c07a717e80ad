"""Who takes part: everyone, or each client on its own with a fixed probability."""

from __future__ import annotations

import math

import pytest

from aulait.core.cohort import everyone, poisson_sample
from aulait.core.seeds import Seeds

NAMES = [f"c{i:03d}" for i in range(200)]


def test_everyone_is_sorted():
    assert everyone(["b", "a"]) == ("a", "b")
    assert everyone([]) == ()


@pytest.mark.parametrize("secret", [False, True])
def test_poisson_draws_each_with_its_probability(secret):
    drawn = [poisson_sample(NAMES, 0.3, Seeds(1), round, secret) for round in range(50)]
    count = sum(map(len, drawn))
    assert count / 10_000 == pytest.approx(0.3, abs=6 * math.sqrt(0.21 / 10_000))
    assert len(set(map(len, drawn))) > 5, "the size of a Poisson cohort varies"
    assert all(list(cohort) == sorted(set(cohort)) for cohort in drawn)


def test_seeded_cohorts_depend_on_seed_and_round_and_on_no_order():
    wanted = poisson_sample(NAMES, 0.5, Seeds(1), 3, False)
    assert poisson_sample(NAMES[::-1], 0.5, Seeds(1), 3, False) == wanted
    assert poisson_sample(NAMES, 0.5, Seeds(1), 4, False) != wanted
    assert poisson_sample(NAMES, 0.5, Seeds(2), 3, False) != wanted


def test_secret_cohorts_do_not_follow_from_the_seed():
    assert poisson_sample(NAMES, 0.5, Seeds(1), 3, True) != poisson_sample(NAMES, 0.5, Seeds(1), 3, True)


def test_rate_one_is_everyone():
    assert poisson_sample(NAMES, 1.0, Seeds(1), 1, True) == tuple(NAMES)
