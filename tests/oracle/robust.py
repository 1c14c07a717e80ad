"""Robust means of updates, one number and one client at a time."""

from __future__ import annotations

import math
import statistics

import numpy as np
from scipy import optimize


def mean_like(rule, updates, hostile):
    """What stands for the mean of some updates, each a list of numbers."""
    clients, numbers = len(updates), len(updates[0])
    cut = min(math.floor(hostile * clients), (clients - 1) // 2)
    if rule == "median":
        return [statistics.median(own[i] for own in updates) for i in range(numbers)]
    if rule == "trimmed-mean":
        return [statistics.fmean(sorted(own[i] for own in updates)[cut : clients - cut])
                for i in range(numbers)]
    if rule == "norm-bound":
        bound = statistics.median(math.dist(own, [0] * numbers) for own in updates)
        short = [[x * min(1.0, bound / math.dist(own, [0] * numbers)) for x in own]
                 for own in updates]
        return [statistics.fmean(own[i] for own in short) for i in range(numbers)]
    if rule == "krum":
        def score(k):
            far = sorted(math.dist(updates[k], updates[j]) ** 2
                         for j in range(clients) if j != k)
            return sum(far[: max(1, clients - cut - 2)])

        return updates[min(range(clients), key=score)]
    found = optimize.minimize(
        lambda at: sum(math.dist(own, at) for own in updates), np.mean(updates, axis=0),
        method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 20000})
    return list(found.x)
