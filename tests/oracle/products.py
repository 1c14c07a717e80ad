"""Sums of LoRA products in numpy float64: every matrix dense, every decomposition full."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Term = tuple[float, np.ndarray, np.ndarray]


def total(shape: tuple[int, int], terms: Sequence[Term]) -> np.ndarray:
    """Sum of weight · B @ A over (weight, A, B)."""
    result = np.zeros(shape)
    for weight, a, b in terms:
        for r in range(a.shape[0]):
            result += weight * np.outer(b[:, r].astype(np.float64), a[r].astype(np.float64))
    return result


def values(matrix: np.ndarray) -> np.ndarray:
    """All singular values, descending."""
    return np.linalg.svd(matrix, compute_uv=False)


def truncation(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of that rank, dense."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def discarded(matrix: np.ndarray, rank: int) -> float:
    """Frobenius distance to the best approximation of that rank."""
    return float(np.sqrt((values(matrix)[rank:] ** 2).sum()))
