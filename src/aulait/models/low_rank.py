"""Weighted sums of LoRA products and their best low-rank approximations, streamed and exact up to
rounding.

Shape letters: M out features · N in features · R rank (of one client, or of all together) · K
clients · P leading ranks that are
kept · X columns. A sum is G_MN = sum over clients of weight · B_MR @ A_RN; the weight holds the
client's share and its scale. With n = min(M, N), the sum is held in one of two ways:

- *stacked*, as long as the ranks together stay within n / 4: the factors themselves, float32, 4 R
  (M + N) bytes. G is decomposed by a QR of the stacked A, a QR of what is left, and an SVD of R x
  R, all in float64: O((M + N) R^2 + R^3) operations, 24 R (M + N) bytes on top.
- *dense*, beyond that, for good: one accumulator, 4 M N bytes (float64 up to 2^20 entries), to
  which arriving factors are added in place. G is decomposed through the leading eigenvectors of its
  smaller Gram matrix in float64: M N n + 4/3 n^3 operations, 8 n^2 + 16 P (M + N) bytes on top. Up
      to n = 64 by a full SVD.

So the memory of a sum is bounded by a constant times M N whatever K is, and what arrives may be
forgotten at once.

Source: the sum and its redistribution are FlexLoRA's (Bai et al., "Federated Fine-tuning of Large
Language Models under Heterogeneous
Tasks and Client Resources", NeurIPS 2024, arXiv 2402.11505); stacked factors as in FLoRIST (arXiv
2506.09199).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from aulait.core.errors import ModelError
from aulait.core.lora import Shapes, pad
from aulait.core.types import Adapter, Scaling
from aulait.models.singular_values import (
    FULL_SVD,
    Triplets,
    blocks,
    of_dense,
    of_stack,
    values_of_dense,
)

Mass = Literal["B", "symmetric"]
Ranks = int | Callable[[str], int]

# of min(M, N): the ranks together up to which factors are kept; beyond, the dense sum is smaller
# and soon faster
STACKED = 0.25
EXACT_ENTRIES = 2**20  # accumulators up to this size are float64
GROUP = 32  # ranks that are added to the accumulator at once: one pass over its memory
RESOLUTION = float(torch.finfo(torch.float32).eps)


class ProductSum:
    """The sum of weight · B @ A of one layer over any number of clients.

    Args:
        shape: (M, N).
        planned_rank: ranks of all clients together, when known. It only spares the stacking that
            would not last.
    """

    def __init__(self, shape: tuple[int, int], *, planned_rank: int | None = None) -> None:
        self.shape = shape
        self._terms: list[tuple[float, Tensor, Tensor]] = []
        self._pending = 0
        self._ranks = 0
        self._sum_MN: Tensor | None = None
        self._leading: Triplets | None = None
        self._values: Tensor | None = None
        if planned_rank is not None and planned_rank > self._stacked_rank:
            self._sum_MN = self._zeros()

    @property
    def rank_bound(self) -> int:
        """What the rank of the sum cannot exceed: the ranks together, M and N."""
        return min(self._ranks, *self.shape)

    @torch.no_grad()
    def add(self, weight: float, a_RN: Tensor, b_MR: Tensor) -> None:
        """Adds weight · B @ A. The order of clients changes nothing but rounding; the tensors are
        copied.

        Raises:
            ModelError: shapes that do not fit the layer, or numbers that are not finite.
        """
        self._check(weight, a_RN, b_MR)
        self._leading = self._values = None
        a, b = (t.detach().to("cpu", torch.float32, copy=True) for t in (a_RN, b_MR))
        self._terms.append((weight, a, b))
        self._pending += a.shape[0]
        self._ranks += a.shape[0]
        if self._sum_MN is None and self._pending > self._stacked_rank:
            self._sum_MN = self._zeros()
        if self._sum_MN is not None and self._pending >= GROUP:
            self._flush(self._sum_MN)

    @torch.no_grad()
    def truncated(self, rank: int, mass: Mass = "B") -> tuple[Tensor, Tensor]:
        """The best approximation of the sum by a product of that rank (Eckart and Young).

        The decomposition is kept until the next ``add``: who needs several ranks asks for the
        largest first.

        Args:
            rank: P, at least 1. Where the sum has a lower rank, rows of A and columns of B are
                zero.
            mass: "B": A has orthonormal rows and B carries the singular values. "symmetric": each
                carries their square root.

        Returns:
            A (P, N) and B (M, P), float32, the most important direction first; the largest entry of
            every row of A is positive. Only equal singular values leave a choice.
        """
        if rank < 1:
            raise ModelError(
                f"a truncation to rank {rank} was asked for; expected at least 1; raise the rank")
        kept = min(rank, self.rank_bound)
        if self._leading is None or self._leading.left.shape[1] < kept:
            self._leading = self._decomposed(kept)
        values, floor = self._leading.values[:kept], self._negligible(self._leading.values)
        real = int((values > floor).sum())
        values = values[:real]
        left, right = self._leading.left[:, :real], self._leading.right[:real]
        sign = 1.0 - 2.0 * (right.gather(1, right.abs().argmax(1, keepdim=True)) < 0).double()
        carried = values.sqrt() if mass == "symmetric" else torch.ones_like(values)
        a, b = right * (sign * carried[:, None]), left * (sign.T / carried)
        return pad(a.float(), b.float(), rank)

    @torch.no_grad()
    def singular_values(self) -> Tensor:
        """All of them, descending, float64, as many as ``rank_bound``.

        Each is right to 1e-5 of itself down to 1e-4 of the largest, where float32 lets a dense sum
        know it.
        """
        if self._values is None:
            if self._sum_MN is None:
                self._values = (self._leading or self._decomposed(0)).values
            else:
                self._flush(self._sum_MN)
                self._values = values_of_dense(self._sum_MN)[: self.rank_bound]
        return self._values.clone()

    @torch.no_grad()
    def dense(self) -> Tensor:
        """The sum itself, (M, N), float32."""
        if self._sum_MN is None:
            total = self._zeros()
            for weight, a, b in self._terms:
                total.addmm_(b.to(total.dtype), a.to(total.dtype), alpha=weight)
            return total.float()
        self._flush(self._sum_MN)
        return self._sum_MN.to(torch.float32, copy=True)

    @torch.no_grad()
    def times(self, right_NX: Tensor) -> Tensor:
        """G @ right, (M, X), float32; the stacked sum never becomes dense."""
        if self._sum_MN is not None:
            self._flush(self._sum_MN)
            return (self._sum_MN @ right_NX.to(self._sum_MN.dtype)).float()
        right, total = right_NX.double(), torch.zeros(self.shape[0], right_NX.shape[1],
            dtype=torch.float64)
        for weight, a, b in self._terms:
            total.addmm_(b.double(), a.double() @ right, alpha=weight)
        return total.float()

    @torch.no_grad()
    def norm(self) -> float:
        """Frobenius norm of the sum."""
        if self._sum_MN is None:
            return float(self.singular_values().norm())
        self._flush(self._sum_MN)
        return math.sqrt(sum(float(block.square().sum()) for _, block in blocks(self._sum_MN)))

    @property
    def _stacked_rank(self) -> int:
        return int(STACKED * min(self.shape))

    def _zeros(self) -> Tensor:
        exact = self.shape[0] * self.shape[1] <= EXACT_ENTRIES
        return torch.zeros(self.shape, dtype=torch.float64 if exact else torch.float32)

    def _negligible(self, values: Tensor) -> float:
        """At and below this a singular value is rounding: of the accumulator, or of the Gram
        matrix."""
        if not len(values):
            return 0.0
        rough = (
            self._sum_MN is not None and (self._sum_MN.dtype == torch.float32
                or min(self.shape) > FULL_SVD)
        )
        return (
            float(values[0]) * (RESOLUTION if rough
                                else max(self.shape) * torch.finfo(torch.float64).eps)
        )

    def _check(self, weight: float, a_RN: Tensor, b_MR: Tensor) -> None:
        m, n = self.shape
        if a_RN.ndim != 2 or b_MR.shape != (m, a_RN.shape[0]) or a_RN.shape[1] != n:
            found = (
                f"factors A {tuple(a_RN.shape)} and B {tuple(b_MR.shape)} do not fit a layer of "
                f"{m} x {n}"
            )
            raise ModelError(
                f"{found}; expected A (R, {n}) and B ({m}, R); send the layer's own factors")
        if not (math.isfinite(weight) and bool(a_RN.isfinite().all())
                and bool(b_MR.isfinite().all())):
            raise ModelError(
                "an update holds numbers that are not finite; expected finite factors; lower the "
                "learning rate")

    def _flush(self, sum_MN: Tensor) -> None:
        """Moves what was kept into the accumulator, some clients at once."""
        while self._terms:
            group: list[tuple[float, Tensor, Tensor]] = []
            while self._terms and sum(len(a) for _, a, _ in group) < GROUP:
                group.append(self._terms.pop())
            a_RN = torch.cat([a.to(sum_MN.dtype) for _, a, _ in group])
            sum_MN.addmm_(torch.cat([weight * b.to(sum_MN.dtype) for weight, _, b in group], dim=1),
                          a_RN)
        self._pending = 0

    def _decomposed(self, kept: int) -> Triplets:
        if self._sum_MN is None or self._ranks == 0:
            return of_stack(self._terms, kept, self.shape)
        self._flush(self._sum_MN)
        return of_dense(self._sum_MN, kept)


class Merge:
    """Weighted sum of whole adapters, whose ranks may differ from reply to reply and from layer to
    layer.

    Args:
        shapes: layer name -> (M, N).
        planned_ranks: ranks of all replies together, as in ``ProductSum``; a number, or layer ->
            number.
    """

    def __init__(self, shapes: Shapes, *, planned_ranks: Ranks | None = None) -> None:
        self.layers = {
            name: ProductSum(shape, planned_rank=None if planned_ranks is None
                             else _rank(planned_ranks, name))
            for name, shape in sorted(shapes.items())
        }

    def add(self, weight: float, adapter: Adapter) -> None:
        """Adds weight · scale · B @ A of every layer. Raises ModelError when the adapter has a
        layer of its own."""
        for name, (a_RN, b_MR) in adapter.factors.items():
            if name not in self.layers:
                raise ModelError(
                    f"an update has the layer '{name}'; expected {', '.join(self.layers)}; adapt "
                    "the same layers")
            self.layers[name].add(weight * adapter.scale(name), a_RN, b_MR)

    def truncated(self, ranks: Ranks, alpha: float, mass: Mass = "B",
                  scaling: Scaling = "lora") -> Adapter:
        """The best adapter of these ranks: its update, scale included, is the truncated sum.

        Args:
            ranks: one rank, or layer -> rank.
            alpha: of the result, whose scale is alpha / R layer by layer; with 0 its B is zero.
            mass: as in ``ProductSum.truncated``; the scale is divided out of B.
            scaling: how alpha and a rank make that scale.
        """
        factors = {}
        for name, layer in self.layers.items():
            rank = _rank(ranks, name)
            a, b = layer.truncated(rank, mass)
            divisor = rank if scaling == "lora" else math.sqrt(rank)
            factors[name] = (a, b * (divisor / alpha if alpha else 0.0))
        return Adapter(factors, alpha, scaling=scaling)


def truncated(a_RN: Tensor, b_MR: Tensor, rank: int, *, scale: float = 1.0,
              mass: Mass = "B") -> tuple[Tensor, Tensor]:
    """The best A (P, N), B (M, P) for scale · B @ A of one pair; the scale is in the result. See
    ``ProductSum.truncated``."""
    one = ProductSum((b_MR.shape[0], a_RN.shape[1]))
    one.add(scale, a_RN, b_MR)
    return one.truncated(rank, mass)


def _rank(ranks: Ranks, layer: str) -> int:
    return ranks if isinstance(ranks, int) else ranks(layer)
