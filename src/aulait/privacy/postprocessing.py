"""Post-processing of released sums that costs no privacy: a public subspace, and shrinkage by the
known noise.

Shape letters: D coordinates of a flattened update · K public updates · S dimensions of the
subspace.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aulait.core.errors import DataError, require
from aulait.core.types import Tensors

# Directions whose energy is below this share of the strongest one are rounding errors of the Gram
# matrix.
_SMALLEST_ENERGY = 1e-10


def flatten(update: Tensors) -> Tensor:
    """All tensors of an update in the order of sorted names as one vector of shape (D,), float64,
    on the CPU."""
    parts = [update[name].detach().to("cpu", torch.float64).reshape(-1) for name in sorted(update)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def unflatten(vector: Tensor, template: Tensors) -> Tensors:
    """The vector of shape (D,) cut into the names, shapes and types of ``template``."""
    names = sorted(template)
    parts = vector.split_with_sizes([template[name].numel() for name in names])
    return {
        name: part.reshape(template[name].shape).to(template[name].dtype).clone()
        for name, part in zip(names, parts, strict=True)
    }


def basis(public_updates: Sequence[Tensors], k: int) -> Tensor:
    """The strongest directions of public updates: left singular vectors of the matrix that has them
    as columns.

    Args:
        public_updates: updates that are public already, such as those of proxies; all of the same
            names and shapes.
        k: largest number of directions, at least 1.

    Returns:
        Tensor (D, S), float64, with orthonormal columns; S <= k, fewer when the updates span less.

    Raises:
        DataError: there is no update or k is below 1.
    """
    require(len(public_updates) > 0 and k >= 1, DataError,
            f"{len(public_updates)} public updates for {k} directions, expected at least one of "
            "each; add a proxy")
    U_DK = torch.stack([flatten(update) for update in public_updates], dim=1)
    energy_K, V_KK = torch.linalg.eigh(U_DK.T @ U_DK)
    energy_K, V_KK = energy_K.flip(0), V_KK.flip(1)
    kept = int((energy_K > _SMALLEST_ENERGY * energy_K[0].clamp_min(0.0)).sum())
    V_KS = V_KK[:, : min(k, kept)]
    # QR removes what the Gram matrix lost in precision; it does not change the span.
    Q_DS: Tensor = torch.linalg.qr(U_DK @ V_KS).Q
    return Q_DS


def project(update: Tensors, basis: Tensor) -> Tensors:
    """The part of an update inside the span of ``basis`` (D, S); names, shapes and types stay."""
    return unflatten(basis @ (basis.T @ flatten(update)), update)


def shrink(total: Tensors, noise_std: float, blocks: bool, basis: Tensor | None = None) -> Tensors:
    """A noised sum, shrunk toward zero by its known signal-to-noise ratio.

    Every part y with d dimensions is multiplied by max(0, 1 - d noise_std^2 / |y|^2), the
    positive-part James-Stein factor (James and Stein 1961). Parts are the whole vector or every
    named tensor; with a basis, the part inside its span is one part of its own and the others hold
    what lies outside.

    Args:
        total: a released sum.
        noise_std: standard deviation of the noise in each coordinate; 0 returns the sum as it is.
        blocks: whether every named tensor is a part of its own.
        basis: (D, S) with orthonormal columns, public; None for none.

    Returns:
        Names, shapes and types of ``total``.
    """
    if noise_std == 0 or not total:
        return dict(total)
    outside = flatten(total)
    inside = torch.zeros_like(outside)
    # In each coordinate the noise outside the span has variance noise_std^2 times (1 - squared
    # length of its row).
    freedom = torch.ones_like(outside)
    if basis is not None:
        inside = basis @ (basis.T @ outside)
        outside = outside - inside
        freedom = 1.0 - (basis**2).sum(dim=1)
        inside = inside * _factor(inside, basis.shape[1], noise_std)
    sizes = [total[name].numel() for name in sorted(total)] if blocks else [outside.numel()]
    parts = zip(outside.split_with_sizes(sizes), freedom.split_with_sizes(sizes), strict=True)
    shrunk = [part * _factor(part, float(free.sum()), noise_std) for part, free in parts]
    return unflatten(inside + torch.cat(shrunk), total)


def _factor(part: Tensor, dimensions: float, noise_std: float) -> float:
    energy = float((part**2).sum())
    return max(0.0, 1.0 - dimensions * noise_std**2 / energy) if energy > 0 else 0.0
