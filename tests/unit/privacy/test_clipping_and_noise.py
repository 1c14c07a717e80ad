"""Bounds that hold after rounding, and noise that has the distribution it claims."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.errors import PrivacyError
from aulait.privacy import noise as noise_module
from aulait.privacy.clipping import clip, norm
from aulait.privacy.noise import SeededNoise, SystemNoise


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
    assert not torch.isin(first, second).any()
    assert source.gaussian((), 1.0).shape == ()
    assert source.gaussian((0, 3), 1.0).shape == (0, 3)
    assert source.gaussian((4,), 0.0).tolist() == [0.0] * 4
    for std in (-1.0, math.nan, math.inf):
        with pytest.raises(PrivacyError):
            source.gaussian((1,), std)
        with pytest.raises(PrivacyError):
            SeededNoise(0).gaussian((1,), std)


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_extreme_entropy_stays_finite(monkeypatch, byte):
    monkeypatch.setattr(noise_module.os, "urandom", lambda count: byte * count)
    x = SystemNoise().gaussian((8,), 1.0)
    assert torch.isfinite(x).all()
    assert float(x.abs().max()) <= 8.58


def test_system_noise_uses_all_53_bits(monkeypatch):
    words = np.array([1 << 63, 1 << 11, (1 << 64) - 1, 2047], dtype=np.uint64)
    monkeypatch.setattr(noise_module.os, "urandom", lambda count: words.tobytes())
    assert noise_module._uniforms(4).tolist() == [0.5 + 2.0**-53, 2.0**-52, 1.0, 2.0**-53]


def test_seeded_noise_restarts_at_each_release():
    assert not SeededNoise(1).private
    source = SeededNoise(1)
    one, two = source.at(1).gaussian((9,), 2.0), source.at(2).gaussian((9,), 2.0)
    source.gaussian((3,), 1.0)
    assert torch.equal(one, source.at(1).gaussian((9,), 2.0))
    assert torch.equal(two, SeededNoise(1).at(2).gaussian((9,), 2.0))
    assert not torch.equal(one, two)
    assert not torch.equal(one, SeededNoise(2).at(1).gaussian((9,), 2.0))
