"""Bases of low-rank updates from public text: the leading singular vectors of the gradient of its
loss with respect to a layer's weights.

The gradient G_MN is never formed. An adapter of rank P whose B is zero has the gradient G A' in B,
and one whose A is zero has B' G in A; so products of G with thin matrices are passes of ordinary
training, whatever the base is, and a randomised SVD needs nothing else:

    Q = orth(G S') with random S_PN;  once more Q = orth(G orth(G' Q));  U T V = Q (Q' G)

Four passes over the texts, 4 P (M + N) bytes a layer. The random S follows from the seed, so one
machine finds the same basis again; two kinds of machines round differently, so one of them computes
the basis and the others are sent it.

Source: Halko, Martinsson, Tropp, "Finding Structure with Randomness", SIAM Review 2011, algorithms
4.4 and 5.1.
Shape letters: M out features · N in features · P rank of the sketch · R rank that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aulait.core.errors import DataError, ModelError, require
from aulait.core.factors import Trainable
from aulait.core.lora import Shapes, pad
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, Record
from aulait.models import singular_values
from aulait.models.loading import Base
from aulait.training.batches import collate
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner

Basis = dict[str, tuple[Tensor, Tensor]]  # layer -> (V_RN, U_MR)
OVERSAMPLING = 8  # ranks of the sketch beyond those that are kept
_TINY = 1e-30  # instead of a singular value of zero


def gradient_basis(learner: Learner, shapes: Shapes, rank: int, records: Sequence[Record],
                   seeds: Seeds) -> Basis:
    """The R leading singular vectors of every layer's gradient, summed over the scored tokens of
    all texts, at the weights as they are.

    Args:
        learner: base and tokens.
        shapes: of the layers.
        rank: R.
        records: public texts or pairs.
        seeds: of the run.

    Raises:
        DataError: no text has a token that is scored, or the gradient is not finite.
    """
    sketch = _Sketch(learner, shapes, records)
    widths = {name: min(2 * rank + OVERSAMPLING, *shape) for name, shape in shapes.items()}
    random = {name: torch.randn(widths[name], n, generator=seeds.generator("basis", client=name))
              for name, (_, n) in shapes.items()}
    left = _orthonormal(sketch.times(random))
    right = _orthonormal({name: t.T for name, t in sketch.transposed(left).items()})
    left = _orthonormal(sketch.times({name: t.T for name, t in right.items()}))
    found = {}
    for name, small_PN in sketch.transposed(left).items():
        u, values, v = torch.linalg.svd(small_PN.double(), full_matrices=False)
        require(bool(values.isfinite().all()), DataError,
                "the gradient of the public text is not finite; use other texts for the basis")
        found[name] = _kept(left[name].double() @ u, v, rank)
    return found


def weight_basis(base: Base, shapes: Shapes, rank: int) -> Basis:
    """The R leading singular vectors of every layer's own weights.

    Raises:
        ModelError: the base is quantised.
    """
    require(base.config.quant is None, ModelError,
            "the weights of a quantised base have no singular vectors at hand; use basis = "
            "'gradient'")
    found = {}
    for name, shape in shapes.items():
        inner: Any = base.slots[name].inner
        stored = inner.weight.detach().float().cpu()
        dense_MN = stored.T.contiguous() if type(inner).__name__ == "Conv1D" else stored
        triplets = singular_values.of_dense(dense_MN, min(rank, *shape))
        left = triplets.left / triplets.values[: triplets.left.shape[1]].clamp(min=_TINY)
        found[name] = _kept(left, triplets.right, rank)
    return found


def random_basis(shapes: Shapes, rank: int, seeds: Seeds) -> Basis:
    """Random orthonormal vectors that follow from the run's seed."""
    found = {}
    for name, (m, n) in sorted(shapes.items()):
        generator = seeds.generator("random-basis", client=name)
        width = min(rank, m, n)
        sides = [torch.linalg.qr(torch.randn(size, width, generator=generator).double())[0]
                 for size in (m, n)]
        found[name] = _kept(sides[0], sides[1].T, rank)
    return found


def _kept(u_MP: Tensor, v_PN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(V_RN, U_MR), float32; the largest entry of every row of V is positive. Beyond the sides of
    the layer rows and columns are zero."""
    u, v = u_MP[:, :rank], v_PN[:rank]
    sign = 1.0 - 2.0 * (v.gather(1, v.abs().argmax(1, keepdim=True)) < 0).double()
    return pad((v * sign).float().contiguous(), (u * sign.T).float().contiguous(), rank)


def _orthonormal(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layer -> orthonormal columns of the same span, float32."""
    return {name: torch.linalg.qr(t.double())[0].float() for name, t in columns.items()}


class _Sketch:
    """Products of the layers' gradients with thin matrices, each a pass over the texts."""

    def __init__(self, learner: Learner, shapes: Shapes, records: Sequence[Record]) -> None:
        self._learner, self._shapes = learner, shapes
        lengths = learner.lengths(records)
        order = sorted(range(len(records)), key=lambda i: (lengths[i], i))
        size = learner.config.rows_at_once
        self._batches = [[records[i] for i in order[first : first + size]]
                         for first in range(0, len(order), size)]

    def times(self, right: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """G X' (M, P) of every layer, for X_PN."""
        return self._gradients({name: (x_PN, torch.zeros(self._shapes[name][0], len(x_PN)))
                                for name, x_PN in right.items()}, Trainable.B)

    def transposed(self, left: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Y' G (P, N) of every layer, for Y_MP."""
        return self._gradients({name: (torch.zeros(y_MP.shape[1], self._shapes[name][1]), y_MP)
                                for name, y_MP in left.items()}, Trainable.A)

    def _gradients(self, factors: Basis, trainable: Trainable) -> dict[str, Tensor]:
        """The gradients of these factors, on the CPU, summed over all scored tokens."""
        stack = Stack.of([Adapter(factors, 1.0, 1)], trainable, self._learner.base.device)
        scored = 0.0
        for batch in self._batches:
            rows = collate(self._learner.base, self._learner.encode, batch)
            loss_1, count_1 = self._learner.losses(rows, stack, 1)
            if float(count_1):
                (loss_1 * count_1).sum().backward()  # type: ignore[no-untyped-call]
                scored += float(count_1)
        require(scored > 0, DataError,
                "no public text has a token that is scored, so there is no gradient to take a "
                "basis from; give longer texts")
        return {name: (torch.zeros_like(leaf[0]) if leaf.grad is None else leaf.grad[0]).cpu()
                for name, leaf in zip(factors, stack.leaves, strict=True)}
