"""The length of a share and its shortening to a bound: this is what fixes the sensitivity of a sum
over clients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.core.types import Tensors

# The factor is made smaller by this much, which is far above the rounding error of a float64 norm.
_MARGIN = 1e-9


def norm(share: Tensors) -> float:
    """L2 norm of all tensors of a share together, computed in float64.

    The entries are divided by the largest one first, so that squares can neither overflow nor
    vanish.

    Returns:
        The norm, at least 0; inf or nan when an entry is infinite or not a number.
    """
    values = [share[name].detach().to("cpu", torch.float64) for name in sorted(share)]
    largest = max((_largest(value) for value in values), default=0.0)
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(sum(float(((value / largest) ** 2).sum()) for value in values))


def clip(share: Tensors, bound: float) -> Tensors:
    """The share, multiplied by min(1, bound / norm).

    ``norm`` of the result is at most ``bound``, also after rounding: entries are rounded toward
    zero, never away.

    Args:
        share: name -> tensor of floating numbers.
        bound: the largest allowed L2 norm, at least 0; inf returns the share as it is.

    Returns:
        Name -> tensor in the order of sorted names. A share within the bound keeps its tensors; a
        shortened one is float64 where it was float64 and float32 elsewhere.

    Raises:
        PrivacyError: the bound is negative or not a number, or an entry is infinite or not a
            number.
    """
    require(bound >= 0, PrivacyError,
            f"clip bound is {bound}, expected a number >= 0; set privacy.clip")
    if bound == math.inf:
        return {name: share[name] for name in sorted(share)}
    length = norm(share)
    require(
        all(math.isfinite(_largest(value)) for value in share.values()),
        PrivacyError,
        "a share holds NaN or infinity, which no factor can bound; refuse it before clipping",
    )
    if length <= bound:
        return {name: share[name] for name in sorted(share)}
    factor = bound / length * (1.0 - _MARGIN)
    return {name: _scaled(share[name], factor) for name in sorted(share)}


def _largest(value: Tensor) -> float:
    """Largest absolute entry; 0 for a tensor without entries; nan when an entry is."""
    return float(value.detach().to(torch.float64).abs().max()) if value.numel() else 0.0


def _scaled(value: Tensor, factor: float) -> Tensor:
    """``factor`` times the tensor, each entry rounded toward zero into the result's type."""
    exact = value.detach().to(torch.float64) * factor
    if value.dtype == torch.float64:
        return exact
    rounded = exact.to(torch.float32)
    too_long = rounded.to(torch.float64).abs() > exact.abs()
    return torch.where(too_long, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)
