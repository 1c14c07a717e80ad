"""Private selection against exact enumeration of a small mechanism, and against known limits."""

import math
from collections import Counter
from random import Random

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant

from aulait.core.errors import PrivacyError
from aulait.privacy import private_selection as selection
from aulait.privacy.accounting import Event, epsilon
from aulait.privacy.private_selection import RunCount, selection_epsilon

P = np.array([0.50, 0.25, 0.15, 0.07, 0.03])  # outcomes of one run, the best last
Q = np.array([0.40, 0.30, 0.12, 0.10, 0.08])
COUNTS = [RunCount(g, eta) for g in (0.05, 0.3, 0.8) for eta in (-0.5, 0.0, 0.5, 1.0, 3.0)]


def divergence(p, q, order):
    return math.log(np.sum(p**order * q ** (1 - order))) / (order - 1)


def best_of(law, count):
    """Law of the best outcome by enumerating the number of runs."""
    below = np.concatenate([[0.0], np.cumsum(law)])
    found = np.zeros(len(law))
    for k in range(1, 3000):
        found += count.probability(k) * np.diff(below**k)
    return found


@pytest.mark.parametrize("count", COUNTS)
def test_the_law_of_the_number_of_runs(count):
    chances = [count.probability(k) for k in range(1, 3000)]
    assert sum(chances) == pytest.approx(1.0, abs=1e-9)
    assert sum(k * p for k, p in enumerate(chances, 1)) == pytest.approx(count.mean, rel=1e-6)
    source = Random(3)
    drawn = [count.draw(source) for _ in range(4000)]
    spread = math.sqrt(sum(k * k * p for k, p in enumerate(chances, 1)) - count.mean**2)
    assert abs(np.mean(drawn) - count.mean) < 5 * spread / math.sqrt(4000)


@pytest.mark.parametrize("count", COUNTS)
def test_the_bound_holds_for_an_enumerated_mechanism_and_is_not_idle(count):
    orders = np.array([1.5, 2.0, 3.0, 5.0, 10.0, 30.0])
    one = np.array([max(divergence(P, Q, a), divergence(Q, P, a)) for a in orders])
    p, q = best_of(P, count), best_of(Q, count)
    exact = np.array([max(divergence(p, q, a), divergence(q, p, a)) for a in orders])
    bound = count.renyi(one, orders)
    assert (exact <= bound).all()
    assert exact.max() > one.max() * 0.5


def test_of_pure_privacy_it_is_two_plus_eta_times_one_run():
    # Liu and Talwar, STOC 2019: three times with a geometric number of runs.
    orders = np.array([2.0, 1e7])
    for eta in (0.0, 1.0, 2.0):
        found = RunCount(0.1, eta).renyi(np.array([0.3, 0.3]), orders)
        assert found[-1] == pytest.approx((2 + eta) * 0.3, abs=1e-4)


def test_gaussian_and_sampled_divergences_are_those_of_dp_accounting():
    orders = np.array([2.0, 5.0, 17.0, 64.0])
    events = Counter({Event(2.0): 3, Event(1.1, 0.02): 200, Event(1.5, 0.1, 7): 2})
    theirs = rdp_privacy_accountant.RdpAccountant(orders)
    for event, times in events.items():
        gauss = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        one = (
            gauss if event.sampling_rate == 1
            else dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gauss)
        )
        theirs.compose(one, times * event.steps)
    assert selection._renyi_of(events, orders) == pytest.approx(theirs._rdp, rel=1e-9)


def test_it_costs_a_small_multiple_of_one_run_where_looking_at_all_costs_far_more():
    one = Counter({Event(4.0): 10})
    single, looked = epsilon(one, 1e-5), epsilon(Counter({Event(4.0): 10 * 144}), 1e-5)
    chosen = selection_epsilon([one] * 144, 1e-5, RunCount.geometric(20))
    assert single < chosen < 3.5 * single < looked / 3
    dearer = selection_epsilon([one, Counter({Event(3.0): 10})], 1e-5, RunCount.geometric(20))
    assert dearer == selection_epsilon([Counter({Event(3.0): 10})], 1e-5,
        RunCount.geometric(20)) > chosen
    assert selection_epsilon([Counter({Event(0.0): 1})], 1e-5, RunCount.geometric(20)) == math.inf


def test_laws_that_are_none_are_refused():
    for gamma, eta in ((0.0, 1.0), (1.0, 1.0), (0.5, -1.0), (math.nan, 1.0)):
        with pytest.raises(PrivacyError, match="expected gamma"):
            RunCount(gamma, eta)
    with pytest.raises(PrivacyError, match="on average"):
        RunCount.geometric(1.0)
