"""Streams of the ring, and how its vectors travel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aulait.core.errors import WireError
from aulait.privacy.secure.masks import centred, packed, stream, unpacked

WIDTHS = st.integers(1, 8)


@given(WIDTHS, st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_vectors_travel_as_their_lowest_bytes(width, numbers):
    values = np.array(numbers, dtype=np.uint64)
    raw = packed(values, width)
    assert len(raw) == width * len(numbers)
    assert unpacked(raw, len(numbers), width).tolist() == [n % 256**width for n in numbers]


@given(WIDTHS, st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_representatives_are_around_zero(width, numbers):
    half = 256**width // 2
    expected = [(n + half) % 256**width - half for n in numbers]
    assert centred(np.array(numbers, dtype=np.uint64), width).tolist() == expected


def test_a_stream_is_that_of_chacha20():
    """The first block of RFC 8439, A.1, test vector 1: key, counter and nonce zero."""
    first = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    for width in range(1, 9):
        assert packed(stream(bytes(32), 32 // width, width), width) == first[:32 // width * width]


def test_streams_of_two_seeds_have_nothing_in_common():
    one, two = (stream(bytes([k]) * 32, 4096, 2) for k in (1, 2))
    assert (one == two).mean() < 0.01
    # uniform: 65,536 values, a mean within 5 standard errors
    assert abs(one.mean() - 32767.5) < 5 * 65536 / np.sqrt(12 * 4096)


def test_bytes_of_another_length_are_refused():
    with pytest.raises(WireError, match="bytes"):
        unpacked(b"123", 2, 2)
