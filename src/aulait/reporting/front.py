"""The Pareto front: arms that no other beats both in what they cost and in what they reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Offer:
    """An arm with what it costs, of which less is better, and the score that it reaches."""

    arm: str
    cost: float
    score: float


def pareto_front(offers: Sequence[Offer], rising: bool) -> list[Offer]:
    """The offers for which there is no other that is at least as good in both and better in one;
    the cheapest first, those alike in the order given.

    Args:
        offers: in any order.
        rising: whether a higher score is better.
    """
    sign = -1.0 if rising else 1.0
    found: list[Offer] = []
    for offer in sorted(offers, key=lambda own: (own.cost, sign * own.score)):
        best = found[-1] if found else None
        alike = best is not None and (best.cost, best.score) == (offer.cost, offer.score)
        if best is None or alike or sign * offer.score < sign * best.score:
            found.append(offer)
    return found
