"""Secrets shared and put together again."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.errors import WireError
from aulait.privacy.secure.shamir import PRIME, combine, split


def prime(number: int, tries: int = 30) -> bool:
    """Miller and Rabin."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(tries):
        x = pow(secrets.randbelow(number - 3) + 2, odd, number)
        if x not in (1, number - 1) and not any(
                (x := x * x % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_one():
    assert prime(PRIME)
    assert PRIME > 2**256


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_threshold_of_shares_gives_the_secret(data):
    holders = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, holders))
    secret = data.draw(st.binary(min_size=32, max_size=32))
    places = data.draw(st.permutations(range(1, 40)))[:holders]
    shares = split(secret, places, threshold)
    some = data.draw(st.permutations(places))[:threshold]
    assert combine({place: shares[place] for place in some}, threshold) == secret


def test_one_share_less_fits_every_secret():
    """Whatever the secret, there is a polynomial through the shares that are known."""
    threshold = 3
    shares = split(bytes(32), (1, 2, 3, 4), threshold)
    known = {place: shares[place] for place in (1, 2)}
    for other in (bytes(31) + b"\1", b"\xff" * 32, secrets.token_bytes(32)):
        value = int.from_bytes(other, "big")
        # the parabola through (0, value), (1, y1), (2, y2), at 3: second differences are constant
        second = known[2] - 2 * known[1] + value
        third = (known[2] + (known[2] - known[1]) + second) % PRIME
        assert combine({**known, 3: third}, threshold) == other


def test_shares_are_drawn_anew():
    assert split(bytes(32), (1, 2), 2) != split(bytes(32), (1, 2), 2)
    assert set(split(b"\5" * 32, (1, 2), 1).values()) == {int.from_bytes(b"\5" * 32, "big")}


@pytest.mark.parametrize(("places", "threshold"), [((1, 1), 1), ((0, 1), 2), ((1,), 2), ((1,), 0)])
def test_places_that_share_nothing_are_refused(places, threshold):
    with pytest.raises(WireError):
        split(bytes(32), places, threshold)


def test_shares_of_no_secret_are_refused():
    with pytest.raises(WireError, match="fit no secret"):
        combine({1: PRIME - 1}, 1)
    with pytest.raises(WireError):
        combine({1: 5}, 2)
