"""The clients' noise, against its own formula."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy.stats import chi2

from aulait.core.errors import PrivacyError
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.privacy.secure import discrete_gaussian as module
from aulait.privacy.secure.discrete_gaussian import concentrated_multiplier, discrete_gaussian

WORDS = SystemNoise().client_words("c")


def mass(s: float, most: int) -> np.ndarray:
    """Probabilities of -most .. most."""
    x = np.arange(-most, most + 1)
    weights = np.exp(-(x**2) / (2 * s * s))
    return weights / weights.sum()


@pytest.mark.parametrize("s", [8.0, 8.5, 20.25])
def test_the_sampler_has_the_law_of_its_formula(s):
    count, most = 60_000, math.ceil(3 * s)
    drawn = discrete_gaussian(count, s, WORDS)
    seen = np.bincount(np.clip(drawn, -most - 1, most + 1) + most + 1, minlength=2 * most + 3)
    law = mass(s, 20 * math.ceil(s))
    middle = len(law) // 2
    inner = law[middle - most:middle + most + 1]
    expected = count * np.concatenate([[law[:middle - most].sum()], inner,
                                       [law[middle + most + 1:].sum()]])
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-6, len(expected) - 1)


def test_large_noise_has_its_spread():
    s = 2.0**18.3
    drawn = discrete_gaussian(40_000, s, WORDS)
    assert abs(drawn.std() / s - 1) < 5 / math.sqrt(2 * 40_000)
    assert abs(drawn.mean()) < 5 * s / math.sqrt(40_000)
    assert len({*(drawn % 2)}) == 2


def test_every_comparison_may_be_decided_exactly(monkeypatch):
    """With all comparisons in doubt the law is the same: the exact formulas are those of float64."""
    monkeypatch.setattr(module, "_DOUBT", 1.0)
    drawn = discrete_gaussian(1500, 8.0, WORDS)
    assert abs(drawn.std() / 8 - 1) < 5 / math.sqrt(2 * 1500)
    # what is doubted is decided by 192 more bits beside the 64 that are known
    with localcontext(module._PRECISE):
        half = module._with_more_bits(1 << 63, lambda count: np.zeros(count, dtype=np.uint64))
        assert abs(half - Decimal("0.5") - Decimal(2) ** -257) < Decimal("1e-88")


def test_a_seed_gives_the_same_noise_for_one_client_and_release():
    def of(client, release):
        return discrete_gaussian(50, 100.0, SeededNoise(3).at(release).client_words(client))

    assert (of("a", 1) == of("a", 1)).all()
    assert (of("a", 1) != of("b", 1)).any()
    assert (of("a", 1) != of("a", 2)).any()


@pytest.mark.parametrize("s", [7.9, 2.0**25, math.nan])
def test_noise_that_no_bound_holds_for_is_refused(s):
    with pytest.raises(PrivacyError, match="steps of the grid"):
        discrete_gaussian(1, s, WORDS)


@pytest.mark.parametrize(("s", "summands"), [(0.5, 2), (0.6, 3), (0.8, 5), (1.0, 8)])
def test_a_sum_is_as_near_to_a_discrete_gaussian_as_the_bound_says(s, summands):
    """Convolved exactly; for s of this size tau is no zero, so the formula itself is tested."""
    most = 60
    one = total = mass(s, most)
    for _ in range(summands - 1):
        total = np.convolve(total, one)
    whole = mass(math.sqrt(summands) * s, most * summands)
    seen = total > 1e-12
    worst = np.abs(np.log(total[seen] / whole[seen])).max()
    tau = 10 * sum(math.exp(-2 * math.pi**2 * s * s * k / (k + 1)) for k in range(1, summands))
    assert 1e-9 < worst <= tau
    told = concentrated_multiplier(2.0, summands, s, 100)
    assert told == pytest.approx(1 / (0.5 + 10 * tau))


def test_a_sum_s_divergence_is_that_of_its_multiplier():
    """Rényi divergences of the shifted sum, computed by convolution, stay below the claim."""
    s, summands, shift, most = 1.0, 4, 2, 40
    total = one = mass(s, most)
    for _ in range(summands - 1):
        total = np.convolve(total, one)
    z = concentrated_multiplier(math.sqrt(summands) * s / shift, summands, s, 1)
    inner = slice(summands * most - 25, summands * most + 25)  # where float64 has both
    p, q = np.log(total[inner]), np.log(total[shift:][inner])
    for order in (1.5, 2.0, 4.0, 8.0):
        moment = np.exp(order * p + (1 - order) * q).sum()
        assert math.log(moment) / (order - 1) <= order / (2 * z * z) + 1e-6


def test_real_noise_costs_no_more_than_a_gaussian():
    told = concentrated_multiplier(1.3, 1000, 8.0, 10**9)
    assert told <= 1.3
    assert told >= 1.3 * (1 - 1e-12)
