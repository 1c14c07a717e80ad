"""The mixed round and the server optimisers in numpy, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]


def shorten(share: Mapping[str, np.ndarray], bound: float) -> Arrays:
    """The share scaled to an L2 norm of at most ``bound``."""
    length = np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in share.values()))
    factor = min(1.0, bound / length) if length > 0 else 1.0
    return {name: value.astype(np.float64) * factor for name, value in share.items()}


def mixture(
    local: Sequence[Mapping[str, np.ndarray]], sizes: Sequence[float], proxies: Sequence[tuple[float, Mapping[str, np.ndarray]]],
    *, local_weight: float, planned: float, stands: float, bound: float = np.inf, by_size: bool = False,
) -> Arrays:
    """d = (w · sum of clipped local updates + sum of c_j g_j) / (w · planned + stands)."""
    names = (local[0] if local else proxies[0][1]).keys()
    result = {}
    for name in names:
        total = np.zeros((local[0] if local else proxies[0][1])[name].shape, dtype=np.float64)
        for share, size in zip(local, sizes, strict=True):
            weight = size / np.mean(sizes) if by_size else 1.0
            total += local_weight * weight * (shorten(share, bound)[name] if np.isfinite(bound) else share[name].astype(np.float64))
        for count, share in proxies:
            total += count * share[name].astype(np.float64)
        result[name] = total / (local_weight * planned + stands)
    return result


def nested(
    shape: tuple[int, int], letter: str, terms: Sequence[tuple[float, np.ndarray]], owners: Sequence[tuple[float, int]],
) -> np.ndarray:
    """Column by column, of a core entry by entry: the weighted sum of those who sent it over the weight of those who own it; 0 where nobody does.

    Args:
        shape: of the factor at the largest rank.
        letter: "A", whose columns of the adapter are its rows, "B", or "R", whose entry (i, j) is owned by ranks above both.
        terms: (weight, what was sent) of every update.
        owners: (weight, rank) of everyone in the denominator.
    """
    result = np.zeros(shape)
    if letter == "R":
        for i, j in np.ndindex(*shape):
            weight = sum(own for own, rank in owners if rank > max(i, j))
            for own, sent in terms:
                if sent.shape[0] > max(i, j):
                    result[i, j] += own * float(sent[i, j]) / weight
        return result
    for j in range(shape[0 if letter == "A" else 1]):
        weight = sum(own for own, rank in owners if rank > j)
        if weight == 0:
            continue
        for own, sent in terms:
            if letter == "A" and sent.shape[0] > j:
                result[j] += own * sent[j].astype(np.float64) / weight
            if letter == "B" and sent.shape[1] > j:
                result[:, j] += own * sent[:, j].astype(np.float64) / weight
    return result


def serve(
    kind: str, theta: np.ndarray, updates: Sequence[np.ndarray], *, lr: float, beta1: float, beta2: float, tau: float, decay: float = 0.0,
) -> np.ndarray:
    """Parameters after several merged updates by one server optimiser, entry by entry."""
    after = theta.astype(np.float64).copy()
    for place in np.ndindex(theta.shape):
        m, v, x = 0.0, tau**2, float(theta[place])
        for update in updates:
            d = float(update[place])
            if kind == "plain":
                x += lr * d
            elif kind == "momentum":  # Hsu et al.: m <- beta m + d, x <- x + lr m
                m = beta1 * m + d
                x += lr * m
            elif kind == "nesterov":  # Sutskever's look-ahead as in torch: the pseudo-gradient is -d
                m = beta1 * m + d
                x += lr * (d + beta1 * m)
            else:  # Reddi et al., Algorithm 2
                m = beta1 * m + (1 - beta1) * d
                if kind == "adagrad":
                    v = v + d * d
                elif kind == "yogi":
                    v = v - (1 - beta2) * d * d * math.copysign(1.0, v - d * d) if v != d * d else v
                else:
                    v = beta2 * v + (1 - beta2) * d * d
                x = x - (lr * decay * x if kind == "adamw" else 0.0) + lr * m / (math.sqrt(v) + tau)
        after[place] = x
    return after
