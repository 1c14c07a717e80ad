"""Bounds that hold after rounding, and noise that has the distribution it claims."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.errors import PrivacyError
from aulait.privacy import clipping
from aulait.privacy import noise as noise_module
from aulait.privacy.clipping import all_finite, clip, clip_vector, length, norm
from aulait.privacy.noise import SeededNoise, SystemNoise, toward_zero
from aulait.privacy.noise_grid import MOST_SUMMANDS, check_exact, grid, least_multiplier


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


@pytest.mark.parametrize("together", [1, 7, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
def test_the_length_in_few_operations_is_the_norm(monkeypatch, together, dtype):
    monkeypatch.setattr(clipping, "TOGETHER", together)
    made = torch.Generator().manual_seed(3)
    update = {name: torch.randn(shape, generator=made).to(dtype)
              for name, shape in (("a", (3, 5)), ("b", (4,)), ("c", (2, 2)))}
    update["d"] = torch.randn(6, generator=made)
    assert length(update.values()) == pytest.approx(norm(update), rel=1e-12)
    assert all_finite(list(update.values()))
    for wrong in (math.nan, math.inf, -math.inf):
        broken = {name: value.clone() for name, value in update.items()}
        broken["d"][2] = wrong
        assert not all_finite(list(broken.values()))


def test_finite_numbers_whose_squares_overflow_are_finite():
    assert all_finite([torch.tensor([1e200, -1e300], dtype=torch.float64), torch.ones(2)])
    assert length([torch.tensor([1e200], dtype=torch.float64)]) == math.inf
    assert length([]) == 0.0


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
    with pytest.raises(PrivacyError, match="2\\^52"):
        check_exact(2.0**33, grid(1.0))


@given(st.floats(-20, 20), st.integers(1, MOST_SUMMANDS), st.sampled_from([1.0, 2.0, 2.83]))
def test_the_least_noise_multiplier_is_enough_for_every_bound(log, summands, sensitivity):
    bound = 10.0**log
    z = least_multiplier(sensitivity, summands)
    check_exact(summands * bound, grid(z * sensitivity * bound))
    with pytest.raises(PrivacyError, match="2\\^52"):
        check_exact(summands * bound, grid(z * sensitivity * bound / 2.1))


def test_on_the_grid_it_is_the_rounded_normal_distribution():
    """Kolmogorov and Smirnov against N(0, 1), far from the cells' width."""
    drawn = np.sort(SystemNoise().gaussian((100_000,), 1.0).numpy())
    ideal = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in drawn])
    distance = np.abs(ideal - (np.arange(len(drawn)) + 0.5) / len(drawn)).max()
    assert distance < 2.7 / math.sqrt(len(drawn))  # probability 1e-6


def normal_of(radius_bits: int, angle_bits: int, count: int) -> mpmath.mpf:
    """Box and Muller's formula in another library, from uniforms of so many bits."""
    with mpmath.workdps(80):
        u, v = (mpmath.mpf(2 * bits + 1) / mpmath.mpf(2) ** (count + 1) for bits in (radius_bits, angle_bits))
        return mpmath.sqrt(-2 * mpmath.log(u)) * mpmath.cos(2 * mpmath.pi * v)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 24), st.floats(1.0, 1.999))
def test_every_number_is_the_one_that_exact_arithmetic_gives(radius, angle, shift, std):
    """Far from a boundary the formula in float64 decides, near one the further bits do; here they are zeros."""
    words = iter([radius >> shift, angle])

    def entropy(count):
        return (next(words).to_bytes(8, "little") if count == 8 else bytes(count))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_module.os, "urandom", entropy)
        (found,) = (SystemNoise().gaussian((1,), std) / grid(std)).tolist()
    exact = normal_of((radius >> shift) << 192, angle << 192, 256) * mpmath.mpf(std / grid(std))
    assert found == pytest.approx(float(mpmath.nint(exact)), abs=0.0) or abs(abs(exact - mpmath.floor(exact)) - 0.5) < 1e-6


def test_the_formula_in_float64_is_far_better_than_what_counts_as_doubt():
    generator = np.random.default_rng(1)
    words = generator.integers(1 << 40, 2**64 - (1 << 40), (2, 300), dtype=np.uint64)
    words[0, ::3] >>= generator.integers(0, 23, 100, dtype=np.uint64)
    words[0, 1::3] = np.uint64(2**64 - 1) - (words[0, 1::3] >> np.uint64(20)) - np.uint64(1 << 40)
    found = np.sqrt(-2.0 * np.log(words[0] * 2.0**-64)) * np.cos(words[1] * (2.0 * math.pi * 2.0**-64))
    wanted = [normal_of(int(u), int(v), 64) for u, v in words.T]
    errors = [abs(float(mpmath.mpf(float(f)) - w)) for f, w in zip(found, wanted, strict=True)]
    assert max(errors) < 2.0**-41 < noise_module._DOUBT


def test_doubtful_numbers_are_decided_by_further_bits(monkeypatch):
    """A number on the boundary of two multiples goes one way or the other, as its further bits say."""
    ratio = 1.5 * 2**20
    target = (12345.5 / ratio) ** 2 / 2  # radius with cosine 1
    word = int(math.exp(-target) * 2.0**64)
    both = set()
    for more in (b"\x00", b"\xff"):
        for offset in range(-3000, 3000, 1000):
            monkeypatch.setattr(noise_module.os, "urandom", lambda count, more=more: more * count)
            both.add(noise_module._decided(word + offset * 2**20, 0, ratio))
    assert {12345.0, 12346.0} <= both


def test_doubt_is_rare(monkeypatch):
    decided = []
    real = noise_module._decided
    monkeypatch.setattr(noise_module, "_decided", lambda *args: decided.append(args) or real(*args))
    SystemNoise().gaussian((1_000_000,), 1.9)
    assert len(decided) < 40  # 4 expected


@settings(max_examples=100, deadline=None)
@given(st.floats(-800, 800))
def test_the_grid_is_a_power_of_two_that_follows_from_sigma(log):
    std = 2.0**log
    step = grid(std)
    assert math.frexp(step)[0] == 0.5
    assert 2**20 <= std / step < 2**21
    for source in (SystemNoise(), SeededNoise(1)):
        drawn = source.gaussian((20,), std) / step
        assert torch.equal(drawn, drawn.round())
        assert bool(drawn.any())
    assert grid(0.0) == 0.0
    for bad in (-1.0, math.nan, math.inf, 1e-300, 1e300):
        with pytest.raises(PrivacyError, match="standard deviation"):
            grid(bad)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(-6, 6), st.sampled_from([torch.float32, torch.float64]), st.integers(1, 200))
def test_rounding_toward_zero_never_lengthens_and_clipped_vectors_keep_the_bound_exactly(seed, log_bound, log_size, dtype, count):
    values = (torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10**log_size).to(dtype)
    bound, step = 10**log_bound, grid(10**log_bound * 1.3)
    rounded = toward_zero(values, step)
    assert bool((rounded.abs() <= values.double().abs()).all())
    assert bool(((rounded * values.double()) >= 0).all())
    assert torch.equal(rounded / step, (rounded / step).round())
    assert bool(((rounded - values.double()).abs() < step).all())
    clipped = toward_zero(clip_vector(values.double(), bound), step)
    assert sum(Fraction(x) ** 2 for x in clipped.tolist()) <= Fraction(bound) ** 2
    short = clip_vector(values.double(), bound)
    assert sum(Fraction(x) ** 2 for x in short.tolist()) <= Fraction(bound) ** 2
    assert torch.equal(toward_zero(values, 0.0), values.double())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31), st.floats(-8, 8)), min_size=1, max_size=12), st.floats(-10, 12), st.data())
def test_sums_on_the_grid_are_exact_in_any_order(summands, log_z, data):
    """Against rational numbers; with as little noise as is allowed, and more."""
    bound, sigma = 1.0, 2.0**log_z
    step = grid(sigma)
    check_exact(MOST_SUMMANDS * bound, step)
    vectors = [toward_zero(clip_vector(torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10**size, bound), step)
               for seed, size in summands]
    order = data.draw(st.permutations(range(len(vectors))))
    total = torch.zeros(5, dtype=torch.float64)
    for i in order:
        total += vectors[i]
    exact = [sum((Fraction(v[j].item()) for v in vectors), Fraction(0)) for j in range(5)]
    assert [Fraction(x) for x in total.tolist()] == exact
    noise = SeededNoise(summands[0][0]).gaussian((5,), sigma)
    noised = total + noise
    assert [Fraction(x) for x in noised.tolist()] == [e + Fraction(n) for e, n in zip(exact, noise.tolist(), strict=True)]


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**40), 2**40), st.fractions(-(2**24), 2**24))
def test_a_sum_on_the_grid_plus_rounded_noise_is_the_rounded_noised_sum(multiple, noise):
    """In exact arithmetic, for S = multiple · g and N = noise · g: nothing but the Gaussian mechanism and a rounding.

    At a half, which has probability zero, the even neighbour may be another one."""
    if abs(noise - math.floor(noise)) != Fraction(1, 2):
        assert multiple + round(noise) == round(multiple + noise)
    assert float(multiple + round(noise)) == float(multiple) + float(round(noise))


def test_the_distribution_is_the_gaussian_s(monkeypatch):
    """Kolmogorov and Smirnov, of the middle and of the tail."""
    x = SystemNoise().gaussian((200_000,), 1.7).numpy() / 1.7
    assert scipy.stats.kstest(x, "norm").pvalue > 1e-6
    beyond = np.abs(x[np.abs(x) > 2.0])
    tail = scipy.stats.norm(loc=0, scale=1)
    assert scipy.stats.kstest(beyond, lambda v: (tail.cdf(v) - tail.cdf(2.0)) / tail.sf(2.0)).pvalue > 1e-6


def test_seeded_noise_restarts_at_each_release():
    assert not SeededNoise(1).private
    source = SeededNoise(1)
    one, two = source.at(1).gaussian((9,), 2.0), source.at(2).gaussian((9,), 2.0)
    source.gaussian((3,), 1.0)
    assert torch.equal(one, source.at(1).gaussian((9,), 2.0))
    assert torch.equal(two, SeededNoise(1).at(2).gaussian((9,), 2.0))
    assert not torch.equal(one, two)
    assert not torch.equal(one, SeededNoise(2).at(1).gaussian((9,), 2.0))
