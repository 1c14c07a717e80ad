"""Bounds that hold after rounding, and noise that has the distribution it claims."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.errors import PrivacyError
from aulait.privacy import noise as noise_module
from aulait.privacy.clipping import clip, norm
from aulait.privacy.noise import SeededNoise, SystemNoise, check_exact, grid, toward_zero


def oracle_norm(share):
    """Exactly rounded, with Python's own integers behind fsum."""
    return math.sqrt(math.fsum(float(x) ** 2 for t in share.values() for x in t.double().reshape(-1)))


def test_norm_and_clip_by_hand():
    share = {"b": torch.tensor([[3.0]]), "a": torch.tensor([0.0, 4.0], dtype=torch.float64)}
    assert norm(share) == 5.0
    clipped = clip(share, 2.5)
    assert list(clipped) == ["a", "b"]
    assert clipped["a"].dtype == torch.float64
    assert clipped["b"].dtype == torch.float32
    assert clipped["b"].shape == (1, 1)
    torch.testing.assert_close(clipped["a"], torch.tensor([0.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(clipped["b"], torch.tensor([[1.5]]))
    assert clip(share, 5.0)["b"] is share["b"]
    assert clip(share, math.inf)["a"] is share["a"]
    assert norm(clip(share, 0.0)) == 0.0
    assert norm({}) == norm({"a": torch.zeros(0)}) == norm({"a": torch.zeros(3)}) == 0.0


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31), st.floats(-44, 30), st.floats(-44, 30),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]), st.integers(1, 300),
)
def test_clipped_norm_never_exceeds_the_bound(seed, log_size, log_bound, dtype, count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10**log_size
    share = {"x": values.clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else values.to(dtype)}
    bound = 10**log_bound
    clipped = clip(share, bound)
    assert norm(clipped) <= bound
    assert oracle_norm(clipped) <= bound * (1 + 1e-12)
    expected = share["x"].double() * min(1.0, bound / max(norm(share), 1e-300))
    torch.testing.assert_close(clipped["x"].double(), expected, rtol=1e-6, atol=2e-45)


def test_overflowing_and_broken_values():
    huge = {"x": torch.tensor([1.7e308, 1.7e308], dtype=torch.float64)}
    assert norm(huge) == math.inf
    assert norm(clip(huge, 1.0)) <= 1.0
    assert norm({"x": torch.full((4,), 1e-300, dtype=torch.float64)}) == pytest.approx(2e-300)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(PrivacyError):
            clip({"a": torch.tensor([1.0]), "x": torch.tensor([0.0, bad])}, 1.0)
        assert not math.isfinite(norm({"a": torch.tensor([1.0]), "x": torch.tensor([0.0, bad])}))
    for bound in (-1.0, math.nan):
        with pytest.raises(PrivacyError):
            clip({"a": torch.ones(1)}, bound)


def moments(x):
    centred = x - x.mean()
    return float(x.mean()), float(x.var()), float((centred**3).mean() / x.std() ** 3), float(
        (centred**4).mean() / x.var() ** 2
    )


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(3)])
def test_moments(source):
    x = source.gaussian((1000, 400), 3.0)
    assert x.dtype == torch.float64
    assert x.shape == (1000, 400)
    mean, variance, skewness, kurtosis = moments(x.reshape(-1))
    # Six standard errors at 400,000 numbers.
    assert abs(mean) < 6 * 3 / 632
    assert variance == pytest.approx(9.0, rel=6 * math.sqrt(2 / 4e5))
    assert abs(skewness) < 6 * math.sqrt(6 / 4e5)
    assert kurtosis == pytest.approx(3.0, abs=6 * math.sqrt(24 / 4e5))
    beyond = float((x.abs() > 2.5758293 * 3).double().mean())
    assert beyond == pytest.approx(0.01, abs=6 * math.sqrt(0.01 / 4e5))
    # Neighbours are not related.
    assert abs(float((x[:, 1:] * x[:, :-1]).mean())) / 9 < 6 / 632


def test_system_noise_is_fresh_and_handles_every_shape():
    source = SystemNoise()
    assert source.private
    assert source.at(5) is source
    first, second = source.at(1).gaussian((50,), 1.0), source.at(1).gaussian((50,), 1.0)
    assert not torch.equal(first, second)
    assert source.gaussian((), 1.0).shape == ()
    assert source.gaussian((0, 3), 1.0).shape == (0, 3)
    assert source.gaussian((4,), 0.0).tolist() == [0.0] * 4
    for std in (-1.0, math.nan, math.inf):
        with pytest.raises(PrivacyError):
            source.gaussian((1,), std)
        with pytest.raises(PrivacyError):
            SeededNoise(0).gaussian((1,), std)


@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"\x5a"])
def test_a_stuck_source_of_randomness_ends_in_one_line(monkeypatch, byte):
    monkeypatch.setattr(noise_module.os, "urandom", lambda count: byte * count)
    with pytest.raises(PrivacyError, match="repeats itself"):
        SystemNoise().gaussian((8,), 1.0)


def test_uniforms_have_53_significant_bits_also_near_zero():
    high = np.array([1 << 63, 0, (1 << 64) - 1, 0], dtype=np.uint64)
    low = np.array([0, 1 << 63, (1 << 64) - 1, 0], dtype=np.uint64)
    words = iter([high, low])
    drawn = noise_module._uniforms(4, lambda count: next(words))
    assert drawn.tolist() == [0.5, 2.0**-65, 1.0, 2.0**-128]


# -- the public grid -------------------------------------------------------------------------------


@pytest.mark.parametrize(("std", "step"), [(1.0, 2.0**-20), (1.999, 2.0**-20), (2.0, 2.0**-19),
                                           (0.75, 2.0**-21), (3e-9, 2.0**-49), (0.0, 0.0)])
def test_the_grid_follows_from_the_noise_alone(std, step):
    assert grid(std) == step


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(3)])
@pytest.mark.parametrize("std", [1e-7, 0.3, 7.0, 1e6])
def test_noise_is_a_multiple_of_the_grid(source, std):
    steps = source.gaussian((500,), std) / grid(std)
    assert torch.equal(steps, steps.round())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.floats(1e-6, 1e6))
def test_rounding_toward_zero_lengthens_nothing_and_is_exact(values, std):
    """Against whole numbers: what is kept is a multiple, no entry grows, none moves by a step."""
    step = grid(std)
    held = toward_zero(torch.tensor(values), step)
    for value, kept in zip(torch.tensor(values).tolist(), held.tolist(), strict=True):
        steps = Fraction(kept) / Fraction(step)
        assert steps.denominator == 1
        assert abs(kept) <= abs(value)
        assert Fraction(abs(value)) - Fraction(abs(kept)) < Fraction(step)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60), st.floats(-9, 9))
def test_sums_on_the_grid_are_exact_in_any_order_and_commute_with_rounding(values, noise):
    step = grid(1.0)
    summands = toward_zero(torch.tensor(values), step)
    total = float(summands.sum())
    assert Fraction(total) == sum((Fraction(v) for v in summands.tolist()), Fraction(0))
    assert total == float(summands.flip(0).cumsum(0)[-1])
    rounded = Fraction(round(Fraction(noise) / Fraction(step))) * Fraction(step)
    both = Fraction(round((Fraction(total) + Fraction(noise)) / Fraction(step))) * Fraction(step)
    # halves go to the even neighbour, which the sum may exchange
    assert abs(both - (Fraction(total) + rounded)) in (0, Fraction(step))
    if (Fraction(noise) / Fraction(step)).denominator != 2:
        assert both == Fraction(total) + rounded


def test_sums_that_would_not_be_exact_are_refused():
    check_exact(1e3, grid(1.0))
    check_exact(1e300, 0.0)
    with pytest.raises(PrivacyError, match="2\\^53"):
        check_exact(2.0**34, grid(1.0))


def test_whole_numbers_have_the_probabilities_of_the_discrete_gaussian():
    """Chi squared over all cells of a small sigma, where every probability can be written down."""
    sigma, count = 1.3, 200_000
    drawn = noise_module.discrete_gaussian(count, sigma, noise_module._system_words)
    cells = np.arange(-5, 6)
    weight = np.exp(-np.arange(-60.0, 61.0) ** 2 / (2 * sigma**2))
    expected = count * np.exp(-(cells**2.0) / (2 * sigma**2)) / weight.sum()
    seen = np.array([(drawn == cell).sum() for cell in cells])
    chi = float(((seen - expected) ** 2 / expected).sum())
    assert chi < 45  # ten degrees of freedom: probability 2e-6
    assert np.abs(drawn).max() < 9


def test_on_the_grid_it_is_the_rounded_normal_distribution():
    """Kolmogorov and Smirnov against N(0, 1), far from the cells' width."""
    drawn = np.sort(SystemNoise().gaussian((100_000,), 1.0).numpy())
    ideal = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in drawn])
    distance = np.abs(ideal - (np.arange(len(drawn)) + 0.5) / len(drawn)).max()
    assert distance < 2.7 / math.sqrt(len(drawn))  # probability 1e-6


def test_seeded_noise_restarts_at_each_release():
    assert not SeededNoise(1).private
    source = SeededNoise(1)
    one, two = source.at(1).gaussian((9,), 2.0), source.at(2).gaussian((9,), 2.0)
    source.gaussian((3,), 1.0)
    assert torch.equal(one, source.at(1).gaussian((9,), 2.0))
    assert torch.equal(two, SeededNoise(1).at(2).gaussian((9,), 2.0))
    assert not torch.equal(one, two)
    assert not torch.equal(one, SeededNoise(2).at(1).gaussian((9,), 2.0))
