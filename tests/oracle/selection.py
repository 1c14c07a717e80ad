"""The cost that the geometry selection lowers, and its optimum by trying everything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def cost(weights: np.ndarray, points: np.ndarray, chosen: Sequence[int], reach: float) -> float:
    """Sum over candidates of weight times the distance, at most ``reach``, to the nearest chosen one."""
    total = 0.0
    for j, weight in enumerate(weights):
        near = reach
        for i in chosen:
            near = min(near, float(np.sqrt(((points[j] - points[i]) ** 2).sum())))
        total += float(weight) * near
    return total


def best(weights: np.ndarray, points: np.ndarray, keep: int, reach: float) -> float:
    """The smallest cost of at most ``keep`` candidates."""
    every = (chosen for size in range(1, keep + 1) for chosen in combinations(range(len(weights)), size))
    return min(cost(weights, points, chosen, reach) for chosen in every)


def greedy(weights: np.ndarray, points: np.ndarray, keep: int, reach: float) -> list[int]:
    """One candidate after another, each the one that lowers the cost most."""
    chosen: list[int] = []
    for _ in range(keep):
        costs = [cost(weights, points, [*chosen, j], reach) for j in range(len(weights))]
        chosen.append(int(np.argmin(costs)))
    return chosen
