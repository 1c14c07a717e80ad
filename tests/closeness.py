"""Comparison of numbers that were computed in two orders.

Processors differ in the last bits of float32: the vector width, fused multiplications and the
order of a sum are theirs. A bound that holds on each is relative to the size of what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from aulait.core.types import Adapter


def assert_near(
    found: Any, wanted: Any, relative: float, *, size: float | None = None, what: str = "",
) -> None:
    """Assert that no number of ``found`` is further from ``wanted`` than ``relative`` of its size.

    Both are numbers, arrays, tensors, adapters, or mappings and tuples of these. The size of a tensor is
    the largest absolute value of the wanted one, or ``size`` where terms of that size were summed
    and may have cancelled. A wanted tensor of zeros has to be met exactly.
    """
    for name, left, right in pairs(found, wanted):
        gap = largest(left - right)
        scale = largest(right) if size is None else size
        assert gap <= relative * scale, (
            f"{' '.join(filter(None, (what, name))) or 'the value'}: the largest difference is "
            f"{gap:.3g}, {_ratio(gap, scale):.3g} of the size {scale:.3g}; "
            f"at most {relative:.3g} of it was expected")


def assert_learnt_alike(
    found: Any, wanted: Any, relative: float, *, start: Any = None, what: str = "",
) -> None:
    """Assert that two trainings from one ``start`` (zeros if None) ended in nearly the same place.

    The norm of the difference, over all tensors, may be ``relative`` of the norm of what was to be
    learnt. The largest entry is no measure here: AdamW divides every gradient by its own size, so
    that an entry whose gradient nearly cancels moves by its rounding, magnified without a bound.
    """
    apart = relative_error(found, wanted, start)
    assert apart <= relative, (
        f"{what or 'the trained tensors'}: the difference is {apart:.3g} of the norm of what was "
        f"to be learnt; at most {relative:.3g} of it was expected")


def assert_same_adapters(
    found: Mapping[str, Any], wanted: Mapping[str, Any], relative: float = 2e-3,
) -> None:
    """Assert that two adapters, by the names of PEFT, are nearly the same: 0 asks for every bit.

    The products B A are what was learnt. The factors are measured as they are, and A begins far
    from zero, so that a tenth of the bound is asked of them.
    """
    assert_learnt_alike(products(found), products(wanted), relative, what="the products")
    assert_learnt_alike(found, wanted, relative / 10, what="the factors")


def products(adapter: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return B A of every layer: what an adapter does, in whatever basis its factors are."""
    pairs_of = {name: name.replace("lora_A", "lora_B") for name in adapter if "lora_A" in name}
    return {of_a: adapter[of_b] @ adapter[of_a] for of_a, of_b in pairs_of.items()}


def relative_error(found: Any, wanted: Any, start: Any = None) -> float:
    """Return the norm of ``found`` less ``wanted`` over the norm of ``wanted`` less ``start``."""
    gap = learnt = 0.0
    starts = pairs(wanted, wanted if start is None else start)
    for (_, left, right), (_, _, begun) in zip(pairs(found, wanted), starts, strict=True):
        gap += float((left - right).square().sum())
        learnt += float((right - (0.0 if start is None else begun)).square().sum())
    return _ratio(math.sqrt(gap), math.sqrt(learnt))


def pairs(
    found: Any, wanted: Any, name: str = "",
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Give every pair of tensors in double precision, with its name."""
    if isinstance(wanted, Adapter):
        found, wanted = found.factors, wanted.factors
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys(), f"{sorted(found)} found, {sorted(wanted)} expected"
        for key in wanted:
            yield from pairs(found[key], wanted[key], f"{name} {key}".strip())
        return
    if isinstance(wanted, tuple):
        assert len(found) == len(wanted), f"{name}: {len(found)} found, {len(wanted)} expected"
        for number, (left, right) in enumerate(zip(found, wanted, strict=True)):
            yield from pairs(left, right, f"{name} [{number}]".strip())
        return
    left, right = (torch.as_tensor(t).detach().to("cpu", torch.float64) for t in (found, wanted))
    shapes = tuple(left.shape), tuple(right.shape)
    assert shapes[0] == shapes[1], f"{name}: {shapes[0]} found, {shapes[1]} expected"
    yield name, left, right


def largest(tensor: torch.Tensor) -> float:
    """Return the largest absolute value: NaN if one is among them, 0 if there are no values."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (0.0 if part == 0.0 else math.inf)
