"""What an attacker's guesses prove of a mechanism's privacy: lower bounds on epsilon and on mu.

Canaries are units put in by a fair coin each, all in one run of the mechanism. From the output the
attacker guesses for some of them whether they were in. Two bounds follow, each wrong with a
probability of at most 1 - confidence if the claim is true:

- ``one_run_epsilon`` needs nothing but the coins, whatever canaries do to one another. It is
  modest: r guesses prove an epsilon of at most about log(r).
- ``proven_mu`` is for canaries that do not disturb one another, such as those that move coordinates
  with independent noise: their outcomes are then as many independent experiments, and hits and
  false alarms at a threshold give mu of the Gaussian trade-off curve. It is close to the truth.

Sources: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
Theorem 5.2; Nasr et al., "Tight Auditing of Differentially Private Machine Learning", USENIX
Security 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.stats import beta, binom, norm

SHARES: Final = (1.0, 0.5, 0.125, 0.03)  # of canaries that the attacker guesses about
_HIGHEST: Final = 60.0  # of an epsilon that is looked for


def one_run_epsilon(scores: Sequence[float], present: Sequence[bool], delta: float,
                    confidence: float) -> float:
    """The epsilon that guesses about canaries of one run prove.

    The attacker takes those with the highest scores for present and those with the lowest for
    absent, and says nothing of the others; the shares that it guesses about are fixed.

    Args:
        scores: of every canary; higher where it is likelier to be present.
        present: by fair coins, independent.
        delta: of the claim.
        confidence: of the bound, in (0, 1).
    """
    order = np.argsort(np.asarray(scores), kind="stable")
    there = np.asarray(present)[order]
    best, failure = 0.0, (1.0 - confidence) / len(SHARES)
    for share in SHARES:
        half = int(share * len(there)) // 2
        if half:
            right = int(there[-half:].sum()) + int((~there[:half]).sum())
            best = max(best, _epsilon(2 * half, right, len(there), (delta, failure)))
    return best


def _epsilon(guesses: int, right: int, canaries: int, level: tuple[float, float]) -> float:
    """The largest epsilon that so many right guesses refute.

    Args:
        guesses: r.
        right: v of them.
        canaries: m, about which was guessed or not.
        level: delta, and the probability with which the refutation may be wrong.
    """
    delta, failure = level
    low, high = 0.0, _HIGHEST
    if _p_value(guesses, right, canaries, delta, low) > failure:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2.0
        refuted = _p_value(guesses, right, canaries, delta, middle) <= failure
        low, high = (middle, high) if refuted else (low, middle)
    return low


def _p_value(guesses: int, right: int, canaries: int, delta: float, epsilon: float) -> float:
    """The probability of as many right guesses under (epsilon, delta), at most."""
    rate = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, rate))
    below = np.cumsum(binom.pmf(right - np.arange(1, right + 1), guesses, rate))
    worst = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, tail + 2.0 * canaries * delta * worst)


def proven_mu(scores: Sequence[float], present: Sequence[bool], thresholds: Sequence[float],
              confidence: float) -> float:
    """The mu of Gaussian differential privacy that hits and false alarms prove.

    Args:
        scores: of canaries that are as good as independent experiments.
        present: by fair coins, independent.
        thresholds: above which the attacker says "present"; fixed before.
        confidence: of the bound, in (0, 1).
    """
    found, there = np.asarray(scores), np.asarray(present)
    failure, best = (1.0 - confidence) / (2 * len(thresholds)), 0.0
    for threshold in thresholds:
        above = found > threshold
        hits = _lower(int((above & there).sum()), int(there.sum()), failure)
        silent = _lower(int((~above & ~there).sum()), int((~there).sum()), failure)
        if hits > 0.0 and silent > 0.0:
            best = max(best, float(norm.ppf(hits) + norm.ppf(silent)))
    return best


def _lower(hits: int, tries: int, failure: float) -> float:
    """A bound below the probability of a hit (Clopper and Pearson)."""
    return float(beta.ppf(failure, hits, tries - hits + 1)) if hits else 0.0
