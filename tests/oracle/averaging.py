"""The mixed round and the server optimisers in numpy, one number at a time."""

from __future__ import annotations

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


def serve(kind: str, theta: np.ndarray, updates: Sequence[np.ndarray], *, lr: float, beta1: float, beta2: float, tau: float) -> np.ndarray:
    """Parameters after several merged updates by one server optimiser, entry by entry."""
    after = theta.astype(np.float64).copy()
    for place in np.ndindex(theta.shape):
        m, v, x = 0.0, tau**2, float(theta[place])
        for update in updates:
            d = float(update[place])
            if kind == "plain":
                x += lr * d
            elif kind == "momentum":
                m = beta1 * m + d
                x += lr * m
            else:
                m = beta1 * m + (1 - beta1) * d
                v = beta2 * v + (1 - beta2) * d * d
                x += lr * m / (v**0.5 + tau)
        after[place] = x
    return after
