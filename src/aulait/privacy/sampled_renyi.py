"""Rényi divergences of Poisson sampled mechanisms of which no more is known than those of the
unsampled one.

A unit is in a batch with probability q, on its own and in secret. Unsampled, the two worlds differ
by the mechanism's P (with the unit) and Q (a null unit in its place), and all that is known is
E_Q[(P/Q)^k] <= exp(k (k-1) / (2 z²)) for whole k, as for the Gaussian of multiplier z. For whole
orders a then

    E_Q[((1-q) + q P/Q)^a] <= sum_k binom(a, k) (1-q)^(a-k) q^k exp(k (k-1) / (2 z²))

by expanding the power. The other direction, of Q against the mixture, is no larger, since a
reflection of the lattice exchanges P and Q (Mironov, Talwar, Zhang, "Rényi Differential Privacy of
the Sampled Gaussian Mechanism", 2019, Theorem 5): it holds for every noise whose coordinates are
independent and symmetric about zero, and so for a sum of discrete Gaussians. The logarithm of the
moment is convex in a, so a straight line between whole orders lies above it.

Converted to epsilon by Canonne, Kamath, Steinke, NeurIPS 2020, Proposition 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from scipy import special

_ORDERS: Final = 256  # the largest whole order
_PER_ORDER: Final = 8  # orders between two whole ones


def renyi_epsilon(groups: Sequence[tuple[float, float, int]], delta: float) -> float:
    """The smallest epsilon that the divergences prove; an upper bound.

    Args:
        groups: (noise multiplier, sampling rate, how often); a multiplier of 0 is no privacy.
        delta: in (0, 1).
    """
    if any(z == 0.0 for z, _, _ in groups):
        return math.inf
    whole = np.arange(1, _ORDERS + 1, dtype=np.float64)
    moments = np.zeros(_ORDERS)
    for z, rate, count in groups:
        moments += count * (whole * (whole - 1.0) / (2.0 * z * z) if rate == 1.0
                            else np.array(log_moments(z, rate)))
    order = np.linspace(1.0, _ORDERS, (_ORDERS - 1) * _PER_ORDER + 1)[1:]
    less = order - 1.0
    moment = np.interp(order, whole, moments)
    found = (moment - math.log(delta) + less * np.log1p(-1.0 / order) - np.log(order)) / less
    return max(0.0, float(found.min()))


@lru_cache(maxsize=1024)
def log_moments(multiplier: float, rate: float) -> tuple[float, ...]:
    """The logarithm of the bound at the head of this file for the orders 1, 2, ..., 256.

    Args:
        multiplier: z, > 0.
        rate: q, in (0, 1).
    """
    orders = np.arange(1, _ORDERS + 1, dtype=np.float64)[:, None]
    k = np.arange(0, _ORDERS + 1, dtype=np.float64)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (special.gammaln(orders + 1) - special.gammaln(k + 1)
                 - special.gammaln(np.maximum(orders - k, 0.0) + 1)
                 + (orders - k) * math.log1p(-rate) + k * math.log(rate)
                 + k * (k - 1.0) / (2.0 * multiplier**2))
    terms = np.where(k <= orders, terms, -np.inf)
    return tuple(float(value) for value in np.maximum(special.logsumexp(terms, axis=1), 0.0))
