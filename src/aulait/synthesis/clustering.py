"""Cells of alike texts: k-means on unit vectors, in blocks, so that a million of them need little
memory.

Centroids have unit length like the vectors (spherical k-means; Dhillon and Modha, 2001): a cell's
centroid then looks like the vector of a text, and a cell of many texts is no nearer to everybody
than a single text is. Legend: N vectors · D width · K cells.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from aulait.core.errors import ConfigError, require

SEED = 0  # one for all runs, so that the clusters of a corpus can be kept
PASSES = 15
SAMPLE = 256  # vectors a cell that centroids are learnt from; the others are only assigned
BLOCK_ROWS = 16_384


class VectorTable(Protocol):
    """N vectors of unit length that need not be in memory at once."""

    @property
    def count(self) -> int:
        """N."""

    @property
    def width(self) -> int:
        """D."""

    def rows(self, numbers: Tensor) -> Tensor:
        """The vectors of those numbers (int64), in that order: (len(numbers), D) float32."""


class TensorTable:
    """Vectors that are in memory."""

    def __init__(self, vectors_ND: Tensor) -> None:
        self._vectors_ND = vectors_ND
        self.count, self.width = vectors_ND.shape

    def rows(self, numbers: Tensor) -> Tensor:
        """See ``VectorTable``."""
        return self._vectors_ND[numbers]


def cluster(table: VectorTable, cells: int, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Cells of alike vectors.

    Lloyd's iterations on at most ``SAMPLE`` vectors a cell, drawn by the seed, from centroids drawn
    among them; a cell that loses all its vectors gets the one that fits its own cell worst. Then
    every vector is assigned. The same on one machine; on others up to rounding.

    Args:
        table: the vectors.
        cells: at most this many, at least 1.
        seed: of the draws.

    Returns:
        The cell of every vector (N,) int64, and centroids (K, D); K may be smaller than ``cells``,
        where vectors are few or equal. No cell is empty.

    Raises:
        ConfigError: no vectors, or no cells.
    """
    require(table.count >= 1 and cells >= 1, ConfigError,
            f"found {table.count} vectors for {cells} cells; expected at least one of each")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(table.count, generator=generator)[: SAMPLE * cells].sort().values
    sample_SD = torch.cat([table.rows(some) for some in torch.split(drawn, BLOCK_ROWS)])
    centroids_KD = learnt_centroids(sample_SD, cells, generator)
    labels_N = assigned(table, centroids_KD)
    used_K = torch.bincount(labels_N, minlength=len(centroids_KD)) > 0
    renumbered_K = used_K.long().cumsum(0) - 1
    return renumbered_K[labels_N], centroids_KD[used_K]


def centroid(vectors_BD: Tensor) -> Tensor:
    """The mean direction of some vectors: (1, D) of unit length; the first of those that cancel
    out."""
    sum_1D = vectors_BD.sum(0, keepdim=True)
    length = float(sum_1D.norm())
    return sum_1D / length if length > 1e-6 else vectors_BD[:1].clone()


def learnt_centroids(sample_SD: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Centroids (K, D) of unit length after ``PASSES`` of Lloyd's iterations."""
    order = torch.randperm(len(sample_SD), generator=generator)
    centroids_KD = sample_SD[order[:cells]].clone()
    labels_S = torch.full((len(sample_SD),), -1)
    for _ in range(PASSES):
        closeness_S, found_S = nearest_centroid(sample_SD, centroids_KD)
        if bool((found_S == labels_S).all()):
            break
        labels_S = found_S
        centroids_KD = _moved(sample_SD, labels_S, closeness_S, centroids_KD)
    return centroids_KD


def _moved(sample_SD: Tensor, labels_S: Tensor, closeness_S: Tensor,
           centroids_KD: Tensor) -> Tensor:
    """The mean direction of every cell; an empty one takes the vector that fits worst."""
    sum_KD = torch.zeros_like(centroids_KD).index_add_(0, labels_S, sample_SD)
    empty = (torch.bincount(labels_S, minlength=len(centroids_KD)) == 0).nonzero().flatten()
    sum_KD[empty] = sample_SD[closeness_S.argsort(stable=True)[: len(empty)]]
    length_K1 = sum_KD.norm(dim=1, keepdim=True)
    # vectors that cancel out have no mean direction: the cell stays where it was
    return torch.where(length_K1 > 1e-6, sum_KD / length_K1.clamp(min=1e-6), centroids_KD)


def nearest_centroid(vectors_BD: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine to the nearest centroid (B,), and which it is (B,), of equals the first; in blocks."""
    found = [(some_BD @ centroids_KD.T).max(1) for some_BD in torch.split(vectors_BD, BLOCK_ROWS)]
    return (torch.cat([one.values for one in found]), torch.cat([one.indices for one in found]))


def assigned(table: VectorTable, centroids_KD: Tensor) -> Tensor:
    """The nearest centroid of every vector: (N,) int64."""
    return torch.cat([nearest_centroid(table.rows(some), centroids_KD)[1]
                      for some in torch.split(torch.arange(table.count), BLOCK_ROWS)])
