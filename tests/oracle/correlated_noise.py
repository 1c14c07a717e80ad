"""Correlated noise by dense matrices: slow, and each line is a definition."""

from __future__ import annotations

import itertools
import math

import numpy as np


def square_root(rounds):
    """The lower triangular Toeplitz matrix whose square is that of prefix sums."""
    column = [math.comb(2 * j, j) / 4.0**j for j in range(rounds)]
    return np.array([[column[t - s] if s <= t else 0.0 for s in range(rounds)]
                     for t in range(rounds)])


def banded(rounds, band):
    """The same, cut off at ``band`` entries of a column."""
    dense = square_root(rounds)
    rows, columns = np.indices(dense.shape)
    return np.where(rows - columns < band, dense, 0.0)


def noise_of_the_sum(matrix):
    """Standard deviation of the noise in the sum over all rounds, for fresh noise of 1."""
    return float(np.linalg.norm(np.ones(len(matrix)) @ np.linalg.inv(matrix)))


def sensitivity(matrix, cohorts):
    """By how much a client of the worst cohort can move all queries together: of its updates, each
    of norm 1, the worst directions and signs, all of which are tried."""
    gram, worst = matrix.T @ matrix, 0.0
    for first in range(cohorts):
        own = list(range(first, len(matrix), cohorts))
        part = gram[np.ix_(own, own)]
        worst = max(worst, *(np.array(signs) @ part @ np.array(signs)
                             for signs in itertools.product((-1.0, 1.0), repeat=len(own))))
    return math.sqrt(worst)
