"""What clients do to their vectors before masks, and what comes out of sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.errors import PrivacyError
from aulait.privacy.noise import SystemNoise
from aulait.privacy.noise_grid import grid
from aulait.privacy.secure.encoding import Encoding

WORDS = SystemNoise().client_words("c")


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0.05, 50), st.integers(2, 500), st.integers(0, 2**32))
def test_encoded_vectors_keep_their_bound_and_lie_on_the_grid(bound, z, clients, seed):
    encoding = Encoding.fitting(bound, z * bound, max(1, clients // 2), clients)
    assert encoding.step == grid(z * bound)
    vector = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * bound
    whole = encoding.encoded(vector)
    length = math.sqrt(sum(int(x) ** 2 for x in whole))  # exact until the root
    assert length * encoding.step <= bound
    clipped = vector.double() * min(1.0, bound / float(vector.double().norm()))
    near = encoding.step + 1e-8 * bound
    assert np.abs(whole * encoding.step - clipped.numpy()).max() <= near


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 100), st.integers(3, 1000), st.booleans())
def test_no_sum_wraps_around(z, clients, negative):
    """All clients as long as they may be along one axis, and 16 deviations of noise beside."""
    encoding = Encoding.fitting(1.0, z, max(2, clients // 2), clients)
    worst = clients * int(1.0 / encoding.step) + int(16 * math.sqrt(clients) * encoding.noise_steps)
    assert worst < 2 ** (8 * encoding.width - 1)
    assert 2 * worst > 2 ** (8 * (encoding.width - 1) - 1)  # nor is a byte given away
    value = np.array([-worst if negative else worst], dtype=np.int64).view(np.uint64)
    assert float(encoding.decoded(value)[0]) == (-1 if negative else 1) * worst * encoding.step


def test_noise_of_the_fewest_is_enough():
    encoding = Encoding.fitting(2.0, 3.0, 7, 10)
    assert encoding.noise_std(7) >= 3.0
    assert encoding.noise_std(7) == pytest.approx(3.0)
    assert encoding.noise_std(10) == pytest.approx(3.0 * math.sqrt(10 / 7))
    assert encoding.multiplier(2.0, 7, 1000) >= 1.5


def test_the_noise_is_in_what_is_masked():
    encoding = Encoding.fitting(1.0, 1.0, 4, 4)
    zero = torch.zeros(20_000)
    drawn = encoding.decoded(encoding.noised(zero, WORDS))
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.03)
    assert not encoding.encoded(zero).any()


def test_noise_too_small_for_the_ring_is_refused():
    with pytest.raises(PrivacyError, match="raise the noise"):
        Encoding.fitting(1.0, 1e-13, 5, 10)
    with pytest.raises(PrivacyError, match="no noise"):
        Encoding.fitting(1.0, 0.0, 5, 10)
