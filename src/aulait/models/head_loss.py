"""The loss of a decoder's head at scored positions, in blocks of positions.

Logits of a large vocabulary are the largest tensor of a training pass. Here a block of them is
made, turned into losses and, where gradients are asked for, into the gradient of the hidden states,
and dropped: the products are those of autograd, but no more than a block of logits is held.

Shape letters: X positions · D width · V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

BLOCK = 1 << 22  # numbers of a block of logits


def head_losses(head: nn.Linear, hidden_XD: Tensor, target_X: Tensor) -> Tensor:
    """Nats (X,) of every target, float32.

    Args:
        head: frozen.
        hidden_XD: what the head reads.
        target_X: token ids.
    """
    found: Tensor = _HeadLosses.apply(  # type: ignore[no-untyped-call]
        hidden_XD, head.weight, head.bias, target_X)
    return found


class _HeadContext(FunctionCtx):
    """What the backward pass finds of the forward pass."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class _HeadLosses(torch.autograd.Function):
    """See ``head_losses``."""

    @staticmethod
    def forward(ctx: _HeadContext, hidden_XD: Tensor, weight_VD: Tensor, bias_V: Tensor | None,
                target_X: Tensor) -> Tensor:
        losses_X = torch.empty(len(target_X), device=hidden_XD.device)
        wanted = ctx.needs_input_grad[0]
        slope_XD = torch.empty_like(hidden_XD) if wanted else None
        size = max(16, BLOCK // len(weight_VD))
        for i in range(0, len(target_X), size):
            part, target = slice(i, i + size), target_X[i : i + size, None]
            p_BV = nn.functional.linear(hidden_XD[part], weight_VD, bias_V).float()
            most_B1 = p_BV.amax(1, keepdim=True)
            own_B1 = p_BV.gather(1, target) - most_B1
            total_B1 = p_BV.sub_(most_B1).exp_().sum(1, keepdim=True)
            losses_X[part] = (total_B1.log() - own_B1)[:, 0]
            if slope_XD is not None:
                p_BV.div_(total_B1).scatter_add_(1, target, torch.full_like(own_B1, -1.0))
                torch.mm(p_BV.to(weight_VD.dtype), weight_VD, out=slope_XD[part])
        if slope_XD is not None:
            ctx.save_for_backward(slope_XD)
        return losses_X

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _HeadContext, given_X: Tensor) -> tuple[Tensor | None, ...]:
        (slope_XD,) = ctx.saved_tensors
        return slope_XD * given_X[:, None].to(slope_XD.dtype), None, None, None
