"""Shamir's secret sharing of 32 bytes over a prime field.

A secret is the value at 0 of a random polynomial of degree t - 1; a share is its value at the
holder's place. Any t shares give the secret, and t - 1 of them are uniform numbers whatever it is.

Source: Shamir, "How to Share a Secret", CACM 1979.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

from aulait.core.errors import WireError, require

PRIME: Final = 2**256 + 297  # the smallest prime above every secret
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33


def split(secret: bytes, places: Sequence[int], threshold: int) -> dict[int, int]:
    """A share of the secret for every place; the coefficients are drawn from the system's entropy.

    Args:
        secret: 32 bytes.
        places: of the holders, different, in [1, PRIME).
        threshold: how many shares give the secret back, at least 1.

    Returns:
        Place -> share, a number in [0, PRIME).
    """
    require(len(secret) == SECRET_BYTES, WireError,
            f"a secret of {len(secret)} bytes found, expected {SECRET_BYTES}; report this as a "
            "defect")
    _check(places, threshold)
    coefficients = [int.from_bytes(secret, "big"),
                    *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = {}
    for place in places:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * place + coefficient) % PRIME
        shares[place] = value
    return shares


def combine(shares: Mapping[int, int], threshold: int) -> bytes:
    """The secret that these shares are of.

    Args:
        shares: place -> share; the first ``threshold`` by place are used.
        threshold: as the secret was split.

    Raises:
        WireError: there are too few, or they are of no secret of 32 bytes.
    """
    _check(tuple(shares), threshold)
    used = sorted(shares)[:threshold]
    value = 0
    for place in used:
        above = below = 1
        for other in used:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        value = (value + shares[place] * above * pow(below, -1, PRIME)) % PRIME
    require(value < 2**(8 * SECRET_BYTES), WireError,
            "shares that fit no secret found, expected those of one sharing; the round is refused")
    return value.to_bytes(SECRET_BYTES, "big")


def _check(places: Sequence[int], threshold: int) -> None:
    sound = (1 <= threshold <= len(places) and len({*places}) == len(places)
             and all(0 < place < PRIME for place in places))
    require(sound, WireError,
            f"{len(places)} places with threshold {threshold} found, expected at least as many "
            "different ones as the threshold; the round is refused")
