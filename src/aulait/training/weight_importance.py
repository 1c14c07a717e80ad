"""How much the weights of each layer matter for a loss of public text: the sum over a layer of
|W ∘ G|, G the gradient of the loss with respect to W, for one number of an adapter.

W G is, to first order, how the loss changes when a weight is taken away; an adapter of rank 1 adds
M + N numbers to a layer of (M, N), and what it costs is proportional to them.

    importance(layer) = sum |W ∘ G| / (M + N), then divided by the sum over all layers

Source: the resource-normalised gradient-weight product of Lin et al., "HSplitLoRA", 2025, arXiv
2505.02795.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from aulait.core.errors import DataError, ModelError, require
from aulait.core.lora import Shapes
from aulait.core.types import Record
from aulait.models.loading import Base
from aulait.training.batches import collate, losses
from aulait.training.trainer import Learner


def weight_importance(learner: Learner, shapes: Shapes,
                      records: Sequence[Record]) -> dict[str, float]:
    """Layer -> its importance at the weights as they are; they sum to 1.

    Args:
        learner: base and tokens.
        shapes: of the layers.
        records: public texts or pairs.

    Raises:
        DataError: no text has a token that is scored, or the gradient is not finite.
        ModelError: the base is quantised.
    """
    base = replace(learner.base, prefix=None)  # which would leave blocks out
    require(base.config.quant is None, ModelError,
            "the weights of a quantised base have no gradient; set algorithm.part = 1, or use a "
            "base that is not quantised")
    lengths = learner.lengths(records)
    order = sorted(range(len(records)), key=lambda i: (lengths[i], i))
    size, scored = learner.config.rows_at_once, 0
    with _with_gradients(base, shapes) as weights:
        for first in range(0, len(order), size):
            rows = collate(base, learner.encode, [records[i] for i in order[first : first + size]])
            each, _ = losses(base, rows)
            if each.numel():
                torch.autograd.backward(each.sum())
                scored += each.numel()
        require(scored > 0, DataError,
                "no public text has a token that is scored, so that no weight matters more than "
                "another; give longer texts")
        found = {name: _product(weight) / sum(shapes[name]) for name, weight in weights.items()}
    total = sum(found.values())
    require(0 < total < float("inf"), DataError,
            "the gradient of the public text is zero or not finite; use other texts for the "
            "importance of weights")
    return {name: value / total for name, value in found.items()}


def most_important(importance: Mapping[str, float], shapes: Shapes, part: float) -> list[str]:
    """The fewest layers, the most important first, that hold a part of what adapters cost, in the
    order of ``shapes``; of equal importance the first by name.

    Args:
        importance: layer -> number.
        shapes: of the layers.
        part: of the sum of M + N over all layers, in (0, 1].
    """
    whole, held = sum(m + n for m, n in shapes.values()), 0
    chosen: set[str] = set()
    for name in sorted(shapes, key=lambda layer: (-importance[layer], layer)):
        if chosen and held >= part * whole:
            break
        chosen.add(name)
        held += sum(shapes[name])
    return [name for name in shapes if name in chosen]


@contextmanager
def _with_gradients(base: Base, shapes: Shapes) -> Iterator[dict[str, Tensor]]:
    """The frozen weights of some layers, which gather gradients within."""
    weights = {name: base.slots[name].weight for name in shapes}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def _product(weight: Tensor) -> float:
    """sum |W ∘ G| in double precision; 0 where no token reached the layer."""
    if weight.grad is None:
        return 0.0
    return float((weight.detach().double() * weight.grad.double()).abs().sum())
