"""Epsilon, calibration and accounts against published numbers, the closed form and RDP."""

import math

import dp_accounting
import pytest
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracle import gaussian

from aulait.core.errors import PrivacyError
from aulait.privacy.accounting import Accountant, Event, calibrate, epsilon, split_budget
from aulait.privacy.config import PrivacyConfig

# Noise multipliers of T full-participation releases (rows T, delta; columns epsilon).
TABLE = {
    (1, 1e-5): (7.03, 3.73, 1.99, 1.08, 0.60),
    (5, 1e-5): (15.72, 8.34, 4.46, 2.42, 1.34),
    (10, 1e-5): (22.24, 11.80, 6.30, 3.42, 1.90),
    (20, 1e-5): (31.45, 16.68, 8.92, 4.84, 2.68),
    (50, 1e-5): (49.72, 26.38, 14.10, 7.64, 4.24),
    (100, 1e-5): (70.32, 37.31, 19.94, 10.81, 6.00),
    (10, 1e-3): (14.58, 8.14, 4.57, 2.60, 1.52),
}
SOUND = dict(epsilon=8.0, delta=1e-5, relation="add-remove")


@pytest.mark.parametrize(("setting", "row"), TABLE.items())
def test_published_noise_multipliers(setting, row):
    releases, delta = setting
    for target, published in zip((0.5, 1, 2, 4, 8), row, strict=True):
        assert calibrate(target, delta, releases) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("multipliers", [[0.3], [1.0], [11.8] * 10, [2.0, 5.0, 5.0, 0.9], [50.0] * 300])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_epsilon_is_the_closed_form(multipliers, delta):
    ours = epsilon([Event(z) for z in multipliers], delta)
    assert ours == pytest.approx(gaussian.epsilon_of(multipliers, delta), rel=1e-3)


def test_published_values_of_pretext():
    # Eleven releases at delta 3e-6: 1.189 and 7.080 by the closed form.
    assert epsilon([Event(11.3)] * 11, 3e-6) == pytest.approx(1.189, abs=1e-3)
    assert epsilon([Event(2.31)] * 11, 3e-6) == pytest.approx(7.080, abs=1e-3)


def test_replace_one_is_half_the_multiplier():
    # Multiplier 4 per bound, ten releases: 3.34 for add-remove, 7.51 when the sensitivity doubles.
    assert epsilon([Event(4.0)] * 10, 1e-5) == pytest.approx(3.34, abs=0.01)
    assert epsilon([Event(2.0)] * 10, 1e-5) == pytest.approx(7.51, abs=0.01)


def test_edges():
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Event(1.0), Event(0.0)], 1e-5) == math.inf
    assert epsilon([Event(1e-200)], 1e-5) == math.inf
    assert epsilon([Event(1e12)], 1e-5) == 0.0
    for wrong in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(PrivacyError):
            epsilon([], wrong)
    for z, rate in ((-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, 1.5), (1.0, math.nan)):
        with pytest.raises(PrivacyError):
            Event(z, rate)


def test_poisson_against_published_and_rdp():
    sampled = [Event(2.25, 0.1)] * 100
    ours = epsilon(sampled, 1e-5)
    assert ours == pytest.approx(2.0, rel=0.005)
    rdp = rdp_privacy_accountant.RdpAccountant()
    rdp.compose(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(2.25)), 100)
    assert ours < rdp.get_epsilon(1e-5) < 1.2 * ours
    assert ours < epsilon([Event(2.25)] * 100, 1e-5)


def test_poisson_at_rate_close_to_one_is_the_gaussian():
    # A grid that rounded down, or a neglected event, would fall below the exact value.
    exact = gaussian.epsilon_of([3.0] * 5 + [2.0], 1e-5)
    assert exact * 0.999 < epsilon([Event(3.0, 1 - 1e-12)] * 5 + [Event(2.0)], 1e-5) < exact * 1.001


def test_little_noise_with_sampling_stays_cheap_and_large():
    assert 100 < epsilon([Event(0.05, 0.5)], 1e-5) < gaussian.epsilon_of([0.05], 1e-5) * 1.001


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 200), st.floats(-12, -1), st.integers(1, 500), st.floats(0.01, 0.99), st.integers(1, 50))
def test_calibrated_noise_meets_the_target(target, log_delta, updates, fraction, votes):
    delta = 10**log_delta
    z = calibrate(target, delta, updates)
    assert 0.999 * target <= epsilon([Event(z)] * updates, delta) <= target
    assert epsilon([Event(z * 0.999)] * updates, delta) > target
    z_vote, z_update = split_budget(target, delta, votes, updates, fraction)
    both = [Event(z_vote)] * votes + [Event(z_update)] * updates
    assert 0.999 * target <= epsilon(both, delta) <= target
    assert votes / z_vote**2 * (1 - fraction) == pytest.approx(updates / z_update**2 * fraction)


def test_calibrate_with_sampling():
    z = calibrate(8.0, 1e-5, 100, sampling_rate=0.1)
    assert z == pytest.approx(0.94, rel=0.01)
    assert epsilon([Event(z, 0.1)] * 100, 1e-5) <= 8.0


def test_split_budget_without_one_side():
    assert split_budget(4.0, 1e-5, 0, 7, 0.3) == (math.inf, pytest.approx(calibrate(4.0, 1e-5, 7)))
    assert split_budget(4.0, 1e-5, 7, 0, 0.3) == (pytest.approx(calibrate(4.0, 1e-5, 7)), math.inf)
    for wrong in ((0, 0, 0.5), (1, 1, 0.0), (1, 1, 1.0), (-1, 2, 0.5)):
        with pytest.raises(PrivacyError):
            split_budget(4.0, 1e-5, *wrong)
    for target in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PrivacyError):
            calibrate(target, 1e-5, 3)


def test_roles_have_their_own_accounts_and_shared_releases_charge_each():
    accountant = Accountant(1e-5, {"proxy": 8.0, "local": math.inf, "split": 1.0})
    vote, update = Event(5.0), Event(3.0)
    before = accountant.would_spend("proxy", vote)
    assert accountant.spent("proxy") == 0.0
    accountant.add("proxy+local", vote)
    accountant.add(("local",), update)
    assert accountant.spent("proxy") == before == pytest.approx(gaussian.epsilon_of([5.0], 1e-5), rel=1e-6)
    assert accountant.spent("local") == pytest.approx(gaussian.epsilon_of([5.0, 3.0], 1e-5), rel=1e-6)
    assert accountant.spent("split") == 0.0
    for wrong in ("other", "", "local+other", "local+"):
        with pytest.raises(PrivacyError, match="no privacy account"):
            accountant.add(wrong, vote)
    for budget in ({"local": math.nan}, {"local": -1.0}, {"local+proxy": 1.0}):
        with pytest.raises(PrivacyError):
            Accountant(1e-5, budget)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(epsilon=None), "exactly one"),
        (dict(noise_multiplier=1.0), "exactly one"),
        (dict(delta=None), "delta is missing"),
        (dict(relation=None), "relation is missing"),
        (dict(epsilon=0.0), "privacy.epsilon is 0"),
        (dict(epsilon=math.inf), "privacy.epsilon is inf"),
        (dict(epsilon=math.nan), "privacy.epsilon is nan"),
        (dict(epsilon=None, noise_multiplier=0.0), "privacy.noise_multiplier is 0"),
        (dict(delta=0.0), "delta is 0"),
        (dict(delta=1.0), "delta is 1"),
        (dict(delta=math.nan), "delta is nan"),
        (dict(delta=0.1), "less than 1/10"),
        (dict(off=True), "off = true together with epsilon"),
        (dict(trust="secure"), "the server sees who takes part"),
        (dict(trust="secure", relation="replace", unit="record"), "numbers of records are public"),
        (dict(trust="secure", relation="replace", dropouts=0.5), "privacy.dropouts is 0.5"),
        (dict(trust="secure", relation="replace", dropouts=math.nan), "privacy.dropouts is nan"),
        (dict(trust="secure", relation="replace", colluders=-1), "privacy.colluders is -1"),
        (dict(mechanism="distributed-gaussian"), 'expected privacy.trust = "secure"'),
        (dict(clip=0.0), "privacy.clip is 0"),
        (dict(clip=math.inf), "privacy.clip is inf"),
        (dict(clip_scale=-1.0), "clip_scale"),
        (dict(vote_fraction=1.0), "vote_fraction"),
        (dict(subspace=-1), "subspace"),
    ],
)
def test_each_problem_is_named_once(change, word):
    problems = PrivacyConfig(**{**SOUND, **change}).problems(10)
    assert len(problems) == 1
    assert word in problems[0]
    assert "\n" not in problems[0]


def test_sound_settings_have_no_problem():
    assert PrivacyConfig(**SOUND).problems(10) == []
    assert PrivacyConfig(off=True).problems(10) == []
    assert PrivacyConfig(**{**SOUND, "delta": 0.1}, delta_acknowledged=True).problems(10) == []
    assert len(PrivacyConfig().problems(10)) == 3


def test_a_rate_near_nothing_costs_nothing_beside_another_release():
    often = Event(2.0, 0.5, 4)
    for rate in (5e-324, 1e-320, 1e-200, 1e-30):
        assert epsilon({often: 1, Event(2.0, rate, 4): 1}, 1e-5) == pytest.approx(epsilon({often: 1}, 1e-5), rel=1e-3)
        assert epsilon({Event(0.5, rate, 10**5): 1}, 1e-5) <= 1e-6
