"""A low-pass filter on the gradients of factors, against noise that is white.

    g' = (I - strength · Laplacian)^-1 g     over both axes of a factor, which are taken as rings

Solved exactly by the fast Fourier transform: the wave (i, j) of a matrix (X, Y) is divided by
1 + strength · (4 - 2 cos(2 pi i / X) - 2 cos(2 pi j / Y)). The mean of a matrix stays as it is and
no wave grows, so the norm cannot grow. Of a noised gradient this is post-processing.

Source: Liu et al., "Rethinking LoRA for Privacy-Preserving Federated Learning in Large Models"
(LA-LoRA), ICLR 2026, arXiv 2602.19926; the filter after Osher et al., "Laplacian Smoothing Gradient
Descent", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def smoothed(gradient: Tensor, strength: float) -> Tensor:
    """The gradient of one factor (X, Y), or of K of them (K, X, Y), after the filter."""
    if strength == 0:
        return gradient
    rows, columns = gradient.shape[-2:]
    divisor = (1 + strength * (_waves(rows)[:, None] + _waves(columns))).to(gradient.device)
    found: Tensor = torch.fft.ifft2(torch.fft.fft2(gradient) / divisor).real
    return found.to(gradient.dtype)


@torch.no_grad()
def smooth(leaves: Sequence[Tensor], strength: float) -> None:
    """Filter the gradients of these leaves in place."""
    for leaf in leaves if strength else ():
        if leaf.grad is not None:
            leaf.grad.copy_(smoothed(leaf.grad, strength))


def _waves(size: int) -> Tensor:
    """2 - 2 cos(2 pi i / size), the eigenvalues of minus the Laplacian of a ring."""
    return 2 - 2 * torch.cos(2 * math.pi * torch.arange(size, dtype=torch.float32) / size)
