"""Arithmetic on LoRA factors, all exact, nothing larger than it must be.

Shape letters: M out features · N in features · R rank. A layer's update is scale · B_MR @ A_RN with
scale = alpha / R.
Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, Tensors

Shapes = Mapping[str, tuple[int, int]]


def initial(shapes: Shapes, rank: int, alpha: float, seeds: Seeds) -> Adapter:
    """A Kaiming-uniform (a = sqrt 5, so uniform in ±1/sqrt N) and B zero: the adapted model starts
    as the base.

    Args:
        shapes: layer name -> (M, N).
        rank: R of every layer.
        alpha: LoRA's alpha.
        seeds: every layer draws its own A from the run's seed and the layer's name.
    """
    factors = {}
    for name, (m, n) in sorted(shapes.items()):
        uniform = torch.rand(rank, n, generator=seeds.generator("lora-init", client=name))
        factors[name] = ((2 * uniform - 1) / math.sqrt(n), torch.zeros(m, rank))
    return Adapter(factors, alpha)


def dense(adapter: Adapter) -> Tensors:
    """The dense update (M, N) of every layer."""
    return {name: adapter.scale(name) * (b_MR @ a_RN) for name,
            (a_RN, b_MR) in adapter.factors.items()}


def norm(adapter: Adapter) -> float:
    """Frobenius norm of all dense updates together, by R x R Gram matrices: ||BA||^2 =
    tr((B'B)(AA'))."""
    total = 0.0
    for name, (a, b) in adapter.factors.items():
        a64, b64 = a.double(), b.double()
        total += adapter.scale(name) ** 2 * float(((b64.T @ b64) * (a64 @ a64.T)).sum())
    return math.sqrt(max(total, 0.0))


def inner(left: Adapter, right: Adapter) -> float:
    """Scalar product of all dense updates of two adapters on the same layers, ranks free, by R x R'
    Gram matrices.

    <B A, D C> = sum of (D'B) * (C A') entry by entry; nothing of size M N is formed.
    """
    total = 0.0
    for name, (a, b) in left.factors.items():
        c, d = right.factors[name]
        both = (d.double().T @ b.double()) * (c.double() @ a.double().T)
        total += left.scale(name) * right.scale(name) * float(both.sum())
    return total


def pad(a_RN: Tensor, b_MR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Zero rows in A and zero columns in B up to ``rank``: the same update, and zero gradients in
    the new part."""
    extra = rank - a_RN.shape[0]
    if extra == 0:
        return a_RN, b_MR
    a = torch.cat([a_RN, a_RN.new_zeros(extra, a_RN.shape[1])])
    b = torch.cat([b_MR, b_MR.new_zeros(b_MR.shape[0], extra)], dim=1)
    return a, b


def to_tensors(adapter: Adapter, part: str = "AB") -> Tensors:
    """Flat names for the wire: ``layer.A`` and ``layer.B``, restricted to the letters in
    ``part``."""
    tensors: Tensors = {}
    for name, (a, b) in adapter.factors.items():
        if "A" in part:
            tensors[f"{name}.A"] = a
        if "B" in part:
            tensors[f"{name}.B"] = b
    return tensors


def with_tensors(adapter: Adapter, tensors: Tensors) -> Adapter:
    """The adapter with some of its factors replaced by the flat names of ``to_tensors``."""
    factors = {
        name: (tensors.get(f"{name}.A", a), tensors.get(f"{name}.B", b)) for name,
        (a, b) in adapter.factors.items()
    }
    return Adapter(factors, adapter.alpha, adapter.rank)


def from_tensors(tensors: Tensors, alpha: float, rank: int | None = None) -> Adapter:
    """An adapter from a complete set of flat names."""
    layers = sorted(name[:-2] for name in tensors if name.endswith(".A"))
    return Adapter({name: (tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in layers}, alpha,
                   rank)


def leading(tensors: Tensors, ranks: Callable[[str], int]) -> Tensors:
    """The leading rows of A and columns of B under flat names: what a site of lower rank is sent.

    Args:
        tensors: names ``layer.A`` (R, N) and ``layer.B`` (M, R).
        ranks: layer -> the rank that is kept, at most R.
    """
    return {name: t[: ranks(name[:-2])] if name.endswith(".A") else t[:, : ranks(name[:-2])]
            for name, t in tensors.items()}


def placed(tensors: Tensors, template: Tensors) -> Tensors:
    """Every tensor in the leading corner of zeros shaped as ``like``: the inverse of ``leading``;
    norms are kept."""
    return {
        name: torch.nn.functional.pad(t, (0, template[name].shape[1] - t.shape[1], 0,
            template[name].shape[0] - t.shape[0]))
        for name, t in tensors.items()
    }


def subtract(left: Tensors, right: Tensors) -> Tensors:
    """left - right, name by name."""
    return {name: left[name] - right[name] for name in left}


def weighted_sum(terms: Sequence[tuple[float, Tensors]]) -> Tensors:
    """sum of weight · tensors, accumulated in float64 in the order given, returned in float32."""
    total = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in terms[0][1].items()}
    for weight, tensors in terms:
        for name, value in tensors.items():
            total[name] += weight * value.double()
    return {name: value.float() for name, value in total.items()}
