"""Singular values and leading singular vectors of a matrix, stacked from factors or dense, in
float64.

Shape letters: M out features · N in features · R rank of all factors together · P leading triplets
that are kept.
Cost, with n the smaller side and m the larger: a stack O((M + N) R^2 + R^3) operations and 24 R (M
+ N) bytes; a dense matrix
m n^2 + 4/3 n^3 operations and 8 n^2 + 16 P (M + N) bytes. A Gram matrix squares the condition:
where it is used, what lies below 1e-7 of the largest value is rounding, which is also what float32
leaves of a sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError, blas, eigh
from torch import Tensor

FULL_SVD = 64  # the smaller side up to which a full SVD costs no more than the Gram matrix
FULL_VALUES = 512  # the same where all values and no vectors are wanted
BLOCK_BYTES = 2**20  # of a dense matrix, turned to float64 at a time
FEW = 0.25  # of n: up to so many eigenvectors are sought alone
ORTHOGONAL = 1e-9  # the largest scalar product of two eigenvectors that is taken for zero


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets, float64.

    Attributes:
        left: U S, (M, P).
        values: S, descending, (P,) or more.
        right: V', (P, N), orthonormal rows.
    """

    left: Tensor
    values: Tensor
    right: Tensor


def of_stack(terms: Sequence[tuple[float, Tensor, Tensor]], kept: int,
             shape: tuple[int, int]) -> Triplets:
    """The sum of weight · B_MR @ A_RN, never formed: with A' = Q T it is C Q' where C = B T', and C
    has a small SVD.

    Args:
        terms: weight, A (R, N), B (M, R); ranks together at most min(M, N).
        kept: P; only so many columns of Q are ever formed, but ``values`` holds all R.
        shape: (M, N).
    """
    if not terms:
        return Triplets(torch.zeros(shape[0], 0).double(), torch.zeros(0).double(),
                        torch.zeros(0, shape[1]).double())
    reflectors, tau = torch.geqrf(torch.cat([a.double() for _, a, _ in terms]).T)
    rank = len(tau)
    c_MR = (
        torch.cat([weight * b.double() for weight, _, b in terms],
                  dim=1) @ reflectors[:rank].triu().T
    )
    triangle = torch.geqrf(c_MR)[0][:rank].triu()
    _, values, turn_RR = torch.linalg.svd(triangle)
    small_NP = torch.zeros(shape[1], kept, dtype=torch.float64)
    small_NP[:rank] = turn_RR[:kept].T
    return Triplets(c_MR @ turn_RR[:kept].T, values, torch.ormqr(reflectors, tau, small_NP).T)


def of_dense(matrix_MN: Tensor, kept: int) -> Triplets:
    """A dense matrix, which is left as it is: full SVD up to n = 64, eigenvectors of the smaller
    Gram matrix beyond.

    ``right`` of a wide matrix has rows orthonormal up to 1e-16 times the square of the largest over
    their own value.
    """
    if matrix_MN.shape[0] >= matrix_MN.shape[1]:
        return _of_tall(matrix_MN, kept)
    found = _of_tall(matrix_MN.T, kept)
    divisor = found.values.clamp(min=torch.finfo(torch.float64).tiny)
    return Triplets(found.right.T * found.values, found.values, (found.left / divisor).T)


def values_of_dense(matrix_MN: Tensor) -> Tensor:
    """All min(M, N) singular values, descending."""
    if min(matrix_MN.shape) <= FULL_VALUES:
        exact: Tensor = torch.linalg.svdvals(matrix_MN.double())
        return exact
    tall = matrix_MN if matrix_MN.shape[0] >= matrix_MN.shape[1] else matrix_MN.T
    squares = eigh(_gram(tall), lower=False, eigvals_only=True, overwrite_a=True,
                   check_finite=False)
    values: Tensor = torch.from_numpy(np.sqrt(np.maximum(squares[::-1], 0.0)))
    return values


def blocks(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Its rows, some at a time, in float64: where they are, and one buffer that the next block
    overwrites."""
    rows = max(1, BLOCK_BYTES // (8 * matrix.shape[1]))
    buffer = torch.empty(min(rows, matrix.shape[0]), matrix.shape[1], dtype=torch.float64)
    for start in range(0, matrix.shape[0], rows):
        place = slice(start, min(start + rows, matrix.shape[0]))
        yield place, buffer[: place.stop - start].copy_(matrix[place])


def _of_tall(tall_MN: Tensor, kept: int) -> Triplets:
    """Of a matrix with M >= N."""
    if tall_MN.shape[1] <= FULL_SVD:
        u, values, v = torch.linalg.svd(tall_MN.double(), full_matrices=False)
        return Triplets(u[:, :kept] * values[:kept], values[:kept], v[:kept])
    v_NP = _eigenvectors(tall_MN, kept)
    y_MP = torch.empty(tall_MN.shape[0], kept, dtype=torch.float64)
    for rows, block in blocks(tall_MN):
        torch.mm(block, v_NP, out=y_MP[rows])
    # not roots of eigenvalues: these are squared
    values, order = torch.linalg.vector_norm(y_MP, dim=0).sort(descending=True)
    return Triplets(y_MP[:, order], values, v_NP.T[order])


def _gram(tall_MN: Tensor) -> Any:
    """Upper half of tall' tall in float64, block by block."""
    width = tall_MN.shape[1]
    gram_NN = np.zeros((width, width), order="F")
    for _, block in blocks(tall_MN):
        gram_NN = blas.dsyrk(1.0, block.numpy().T, beta=1.0, c=gram_NN, overwrite_c=1)
    return gram_NN


def _eigenvectors(tall_MN: Tensor, kept: int) -> Tensor:
    """Orthonormal (N, P) of the largest eigenvalues of the Gram matrix; all of them where few are
    not wanted or fail."""
    width = tall_MN.shape[1]
    first = width - kept
    with suppress(LinAlgError):
        if kept <= FEW * width:
            wanted = (first, width - 1)
            found = eigh(_gram(tall_MN), lower=False, subset_by_index=wanted, overwrite_a=True,
                         check_finite=False)[1]
            vectors: Tensor = torch.from_numpy(found).flip(1)
            if float((vectors.T @ vectors - torch.eye(kept,
                    dtype=torch.float64)).abs().max()) < ORTHOGONAL:
                return vectors
    found = eigh(_gram(tall_MN), lower=False, driver="evd", overwrite_a=True, check_finite=False)[1]
    return torch.from_numpy(found[:, first:].copy()).flip(1)
