"""Arithmetic on LoRA factors, all exact, nothing larger than it must be.

Shape letters: M out features · N in features · R rank. A layer's update is scale · B_MR @ A_RN with
scale = alpha / R, or alpha / sqrt(R) where the scaling is "rslora".
Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from aulait.core.factors import Factor, FactorName, Trainable
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
    return {name: adapter.scale(name) * (b_MR @ a_RN)
            for name, (a_RN, b_MR) in adapter.factors.items()}


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


def to_tensors(adapter: Adapter, trainable: Trainable = Trainable.AB) -> Tensors:
    """The factors that ``trainable`` says under their names on the wire, ``layer.A`` and
    ``layer.B``."""
    return {str(FactorName(layer, factor)): factor.of(pair)
            for layer, pair in adapter.factors.items() for factor in trainable.factors}


def with_tensors(adapter: Adapter, tensors: Tensors) -> Adapter:
    """The adapter with some of its factors replaced by the flat names of ``to_tensors``."""
    whole = {name: tensors.get(name, value) for name, value in to_tensors(adapter).items()}
    factors = {layer: factors_of(whole, layer) for layer in adapter.factors}
    return adapter.holding(factors)


def from_tensors(tensors: Tensors, alpha: float, rank: int | None = None) -> Adapter:
    """An adapter from a complete set of flat names, layers in the order of their names.

    Raises:
        WireError: a name is no factor's.
    """
    layers = sorted({FactorName.parse(name).layer for name in tensors})
    return Adapter({layer: factors_of(tensors, layer) for layer in layers}, alpha, rank)


def factors_of(tensors: Tensors, layer: str) -> tuple[Tensor, Tensor]:
    """A and B of a layer."""
    return tensors[str(FactorName(layer, Factor.A))], tensors[str(FactorName(layer, Factor.B))]


def leading(tensors: Tensors, ranks: Callable[[str], int]) -> Tensors:
    """The leading rows of A, columns of B and both of a core, under flat names: what a site of
    lower rank is sent.

    Args:
        tensors: names ``layer.A`` (R, N), ``layer.B`` (M, R) and ``layer.R`` (R, R), under any tag.
        ranks: layer -> the rank that is kept, at most R.
    """
    found = {}
    for name, value in tensors.items():
        own = FactorName.parse(name.rpartition("/")[2])
        found[name] = leading_part(own.factor, value, ranks(own.layer))
    return found


def leading_part(factor: Factor, value: Tensor, rank: int) -> Tensor:
    """The leading ranks of one factor, a view; itself where it has no more."""
    for axis in factor.rank_axes:
        if rank < value.shape[axis]:
            value = value.narrow(axis, 0, rank)
    return value


def nobody(factor: Factor, value: Tensor) -> Tensor:
    """Zeros, one for every part of a factor that clients of unequal ranks own or do not own: a row
    of A, a column of B, an entry of a core; they broadcast to its shape. float64."""
    return torch.zeros([value.shape[axis] if axis in factor.rank_axes else 1 for axis in (0, 1)],
                       dtype=torch.float64)


def placed(tensors: Tensors, template: Tensors) -> Tensors:
    """Every tensor in the leading corner of zeros of the template's shape, itself where it has that
    shape: the inverse of ``leading``; norms are kept."""
    found = {}
    for name, value in tensors.items():
        rows, columns = template[name].shape
        if value.shape == template[name].shape:
            found[name] = value
            continue
        missing = (0, columns - value.shape[1], 0, rows - value.shape[0])
        found[name] = torch.nn.functional.pad(value, missing)
    return found


def changed_b(tensors: Tensors, change: Callable[[str, Tensor], Tensor]) -> Tensors:
    """Every B replaced by what ``change`` makes of its layer's name and of it; A as it is."""
    found = {}
    for name, value in tensors.items():
        own = FactorName.parse(name)
        found[name] = change(own.layer, value) if own.factor is Factor.B else value
    return found


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


# What a method keeps or sends beside the factors is filed under a tag: ``m/layer.A`` is the first
# moment of ``layer.A``. A name without a slash is the factor itself.


def tagged(tag: str, tensors: Tensors) -> Tensors:
    """The tensors, each filed under a tag."""
    return {f"{tag}/{name}": value for name, value in tensors.items()}


def under(tag: str, tensors: Tensors) -> Tensors:
    """What is filed under a tag, by its names without it."""
    return {name.removeprefix(f"{tag}/"): value for name, value in tensors.items()
            if name.startswith(f"{tag}/")}


def untagged(tensors: Tensors) -> Tensors:
    """What is filed under no tag: the factors themselves."""
    return {name: value for name, value in tensors.items() if "/" not in name}


def by_tag(tensors: Tensors) -> dict[str, Tensors]:
    """Tag -> what is filed under it. A tag may hold slashes, as the names of clients do; what has
    no tag is under ""."""
    found: dict[str, Tensors] = {}
    for whole, value in tensors.items():
        tag, _, name = whole.rpartition("/")
        found.setdefault(tag, {})[name] = value
    return found
