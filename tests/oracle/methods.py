"""Every merge rule in numpy float64, as its paper writes it: dense matrices, loops, full decompositions.

A term is (p, A, B): the weight of a client, all weights summing to 1, and its factors A (r, N) and B (M, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tests.oracle import products

Term = tuple[float, np.ndarray, np.ndarray]


def ideal(shape: tuple[int, int], terms: Sequence[Term], alpha: float, rank: int | None = None) -> np.ndarray:
    """D* = sum p (alpha / r) B A; ``rank`` is the r of everyone where the scale is common."""
    return products.total(shape, [(p * alpha / (rank or a.shape[0]), a, b) for p, a, b in terms])


def padded(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros up to a rank."""
    wide_a, wide_b = np.zeros((rank, a.shape[1])), np.zeros((b.shape[0], rank))
    wide_a[: a.shape[0]], wide_b[:, : b.shape[1]] = a, b
    return wide_a, wide_b


def fedit(terms: Sequence[Term], rank: int, before: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each column averaged over those who own it; a column of nobody stays as it was before."""
    a, b = (t.astype(np.float64).copy() for t in before)
    for j in range(rank):
        own = [(p, one, other) for p, one, other in terms if one.shape[0] > j]
        weight = sum(p for p, _, _ in own)
        if own:
            a[j] = sum(p / weight * one[j].astype(np.float64) for p, one, _ in own)
            b[:, j] = sum(p / weight * other[:, j].astype(np.float64) for p, _, other in own)
    return a, b


def flexlora(shape: tuple[int, int], terms: Sequence[Term], alpha: float, rank: int) -> np.ndarray:
    """The best approximation of D* at the largest rank, dense."""
    return products.truncation(ideal(shape, terms, alpha), rank)


def flexlora_partition(shape: tuple[int, int], terms: Sequence[Term], alpha: float, rank: int, before: np.ndarray) -> np.ndarray:
    """raFLoRA: the rank axis is cut at the distinct ranks, every slice is averaged over the clients that have it.

    ``before``: the dense update of what nobody has, which stays.
    """
    distinct = sorted({a.shape[0] for _, a, _ in terms})
    total, start = before.astype(np.float64).copy(), 0
    for end in distinct:
        having = [(p, a, b) for p, a, b in terms if a.shape[0] >= end]
        weight = sum(p for p, _, _ in having)
        for p, a, b in having:
            total += p / weight * alpha / a.shape[0] * b[:, start:end].astype(np.float64) @ a[start:end].astype(np.float64)
        start = end
    return products.truncation(total, rank)


def fedplora(terms: Sequence[Term], before: tuple[np.ndarray, np.ndarray], columns: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Module by module: the mean over those who drew it; one that nobody drew stays."""
    a, b = (t.astype(np.float64).copy() for t in before)
    for j in range(a.shape[0]):
        having = [(p, one[own.index(j)], other[:, own.index(j)]) for (p, one, other), own in zip(terms, columns, strict=True) if j in own]
        weight = sum(p for p, _, _ in having)
        if having:
            a[j] = sum(p / weight * one.astype(np.float64) for p, one, _ in having)
            b[:, j] = sum(p / weight * other.astype(np.float64) for p, _, other in having)
    return a, b


def florist(shape: tuple[int, int], terms: Sequence[Term], alpha: float, rank: int, energy: float) -> np.ndarray:
    """D* at the common scale, cut to the smallest rank that holds a part of the squared singular values."""
    total = ideal(shape, terms, alpha, rank)
    squares = np.linalg.svd(total, compute_uv=False) ** 2
    kept = next(p for p in range(1, len(squares) + 1) if squares[:p].sum() >= energy * squares.sum())
    return products.truncation(total, kept)


def flora(terms: Sequence[Term], alpha: float, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The stacks: weight and scale on A alone; ``rank`` is the r of everyone where the scale is common."""
    a = np.concatenate([p * alpha / (rank or a.shape[0]) * a.astype(np.float64) for p, a, _ in terms])
    return a, np.concatenate([b.astype(np.float64) for _, _, b in terms], axis=1)


def fedex_residual(terms: Sequence[Term], alpha: float) -> np.ndarray:
    """s (mean(B_k A_k) - mean(B) mean(A)) at equal ranks, formed densely."""
    rank = terms[0][1].shape[0]
    mean_a = sum(p * a.astype(np.float64) for p, a, _ in terms)
    mean_b = sum(p * b.astype(np.float64) for p, _, b in terms)
    return alpha / rank * (sum(p * b.astype(np.float64) @ a.astype(np.float64) for p, a, b in terms) - mean_b @ mean_a)


def lorafair(terms: Sequence[Term], rank: int, decay: float, before: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean A; mean B plus the dB of least ||DW - (B + dB) A||^2 + decay ||dB||^2, by stacking and ``lstsq``."""
    a, b = fedit(terms, rank, before)
    product = sum(p * other.astype(np.float64) @ one.astype(np.float64) for p, one, other in terms)
    decay = decay * np.mean((a**2).sum(axis=1))  # relative to the rows of A
    left = np.concatenate([a.T, np.sqrt(decay) * np.eye(rank)])  # (N + R, R) dB' = right
    right = np.concatenate([(product - b @ a).T, np.zeros((rank, b.shape[0]))])
    return a, b + np.linalg.lstsq(left, right, rcond=None)[0].T


def hetlora(clients: Sequence[tuple[float, Mapping[str, tuple[np.ndarray, np.ndarray]]]], rank: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Zero padding with p_k = S_k / sum S_j, S_k the Frobenius norm of all of a client's products."""
    sizes = [weight * np.sqrt(sum(np.linalg.norm(b.astype(np.float64) @ a.astype(np.float64)) ** 2 for a, b in layers.values()))
             for weight, layers in clients]
    total = sum(sizes)
    found = {}
    for name in clients[0][1]:
        pairs = [padded(*layers[name], rank) for _, layers in clients]
        found[name] = tuple(sum(size / total * pair[side] for size, pair in zip(sizes, pairs, strict=True)) for side in (0, 1))
    return found


def outer(start: np.ndarray, finals: Sequence[np.ndarray], velocity: np.ndarray, lr: float, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """FDLoRA's outer step as DiLoCo writes it: Delta = mean(theta - theta_k), v <- mu v + Delta, theta <- theta - lr (Delta + mu v)."""
    gradient = sum(start.astype(np.float64) - final for final in finals) / len(finals)
    velocity = mu * velocity + gradient
    return start - lr * (gradient + mu * velocity), velocity
