"""Votes per unit, written as slowly and obviously as possible: exact fractions, one record and one
candidate at a time."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import torch


def distance(one, other) -> float:
    """L2, number by number."""
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(one.tolist(), other.tolist(),
        strict=True)))


def ballot(records, embed, candidates, neighbours) -> dict[int, int]:
    """Candidate -> votes of one unit's records, each for its nearest, ties to the lower number."""
    found: dict[int, int] = {}
    for record in records:
        text = record.text if record.prompt is None else f"{record.prompt}\n{record.text}"
        order = sorted(range(len(candidates)), key=lambda j: (distance(embed(text), candidates[j]),
            j))
        for j in order[:neighbours]:
            found[j] = found.get(j, 0) + 1
    return found


def grid(sigma: float) -> Fraction:
    """2^(floor(log2 sigma) - 20)."""
    power = 0
    while Fraction(2) ** power > Fraction(sigma):
        power -= 1
    while Fraction(2) ** (power + 1) <= Fraction(sigma):
        power += 1
    return Fraction(2) ** (power - 20)


def votes(records, embed, candidates, neighbours, bound, sigma) -> list[Fraction]:
    """The sum over units before the noise. A shortened vote may be one step of the grid lower than
    here."""
    by_unit: dict[object, list] = {}
    for record in records:
        key = (
            ("value", record.unit) if record.unit is not None
            else ("record", record.prompt, record.text)
        )
        by_unit.setdefault(key, []).append(record)
    total, step = [Fraction(0)] * len(candidates), grid(sigma)
    for members in by_unit.values():
        cast = ballot(members, embed, candidates, neighbours)
        square = sum(count**2 for count in cast.values())
        factor = (
            Fraction(1) if square <= Fraction(bound) ** 2 else Fraction(bound / math.sqrt(square))
        )
        for j, count in cast.items():
            total[j] += math.floor(count * factor / step) * step
    return total


def noise(seed: int, client: str, round: int, count: int, sigma: float) -> list[Fraction]:
    """What a client adds from a seed: torch's normal numbers of its own stream, on the grid."""
    def number(text: str) -> int:
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    own = number(f"{seed}|votes|{round}|{client}")
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(number(f"noise|{own}|0")),
                        dtype=torch.float64)
    step = grid(sigma)
    return [Fraction(int(round_half_even(float(value) * sigma / float(step)))) * step
            for value in drawn]


def round_half_even(value: float) -> int:
    """The nearest whole number."""
    return int(Fraction(value).__round__())
