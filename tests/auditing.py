"""What the outcomes of an experiment prove about epsilon: a lower bound by counting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import beta


def success_interval(hits: int, tries: int, confidence: float = 0.9999) -> tuple[float, float]:
    """Clopper and Pearson."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, tries - hits + 1))
    high = 1.0 if hits == tries else float(beta.ppf(1 - tail, hits + 1, tries - hits))
    return low, high


def proven_epsilon(without: Sequence[float], present: Sequence[float], delta: float,
                   thresholds: Sequence[float], confidence: float = 0.9999) -> float:
    """The largest epsilon that some threshold proves, in either direction.

    A mechanism that is (epsilon, delta)-private gives more than its epsilon with a probability of
    at most 2 (1 - confidence) a threshold.

    Args:
        without: the attacker's statistic of every trial in which the unit was not there.
        present: of every trial in which it was.
        delta: of the claim.
        thresholds: fixed before the outcomes were seen.
        confidence: of each interval.
    """
    best = 0.0
    for threshold in thresholds:
        false = success_interval(sum(x > threshold for x in without), len(without), confidence)
        hits = success_interval(sum(x > threshold for x in present), len(present), confidence)
        for more, less in ((hits[0], false[1]), (1 - false[1], 1 - hits[0])):
            if more > delta:
                best = max(best, math.log((more - delta) / less))
    return best
