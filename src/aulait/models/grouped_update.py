"""A frozen linear layer and the low-rank updates of many sites as one step of the backward pass.

Each site has a group of adjacent rows. What autograd would do in a dozen steps, each with a tensor
of its own, is done in place: the updates are added to the output of the frozen product, and their
gradients to that of the input.

Shape letters: S rows of all sites · K sites · M out · N in · R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

Factors = tuple[Tensor, Tensor, Tensor]
Sizes = Sequence[int] | None


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is a frozen matrix product at hand, and nothing waits for its call."""
    return (type(layer) is nn.Linear and "forward" not in vars(layer)
            and not layer._forward_hooks and not layer._forward_pre_hooks
            and not layer.weight.requires_grad and layer.weight.device.type != "meta")


def adapted(x: Tensor, layer: nn.Linear | None, worn: Factors, sizes: Sizes) -> Tensor:
    """What a layer says of its input plus scale_k · B_k A_k x for the rows of site k.

    Args:
        x: (..., N), rows of a site adjacent.
        layer: frozen; None for the updates alone, in the precision of the factors.
        worn: A_KRN, B_KMR and scale_K.
        sizes: rows of each site; None for equally many.
    """
    a_KRN, b_KMR, scale_K = worn
    weight, bias = (None, None) if layer is None else (layer.weight, layer.bias)
    x_SN = x.reshape(-1, x.shape[-1])
    if len(a_KRN) == 1:
        sizes = [len(x_SN)]  # one product is faster than a batch of one
    elif sizes is not None and len(set(sizes)) == 1:
        sizes = None
    out: Tensor = _Adapted.apply(  # type: ignore[no-untyped-call]
        x_SN, weight, bias, a_KRN, b_KMR, scale_K, sizes)
    return out.view(*x.shape[:-1], -1)


class _AdaptedContext(FunctionCtx):
    """What the backward pass finds of the forward pass."""

    sizes: Sizes
    weight: Tensor | None
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class _Adapted(torch.autograd.Function):
    """See ``adapted``; x_SN, and rows of one site or of several."""

    @staticmethod
    def forward(ctx: _AdaptedContext, x_SN: Tensor,  # noqa: PLR0913 (torch passes tensors singly)
                weight_MN: Tensor | None, bias_M: Tensor | None, a_KRN: Tensor, b_KMR: Tensor,
                scale_K: Tensor, sizes: Sizes) -> Tensor:
        scaled_KRN = a_KRN * scale_K[:, None, None]
        low = _down(scaled_KRN, x_SN.to(a_KRN.dtype), sizes)
        ctx.sizes, ctx.weight = sizes, weight_MN
        ctx.save_for_backward(x_SN, scaled_KRN, b_KMR, scale_K, low)
        if weight_MN is None:
            return _up(low, b_KMR.mT, sizes)
        return _plus(nn.functional.linear(x_SN, weight_MN, bias_M), low, b_KMR.mT, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _AdaptedContext, given_SM: Tensor) -> tuple[Tensor | None, ...]:
        x_SN, scaled_KRN, b_KMR, scale_K, low = ctx.saved_tensors
        wide_SM = given_SM.to(b_KMR.dtype)
        dx = da = db = low_grad = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            low_grad = _down(b_KMR.mT, wide_SM, ctx.sizes)
        if ctx.needs_input_grad[0] and low_grad is not None:
            dx = (_up(low_grad, scaled_KRN, ctx.sizes).to(x_SN.dtype) if ctx.weight is None
                  else _plus(given_SM @ ctx.weight, low_grad, scaled_KRN, ctx.sizes))
        if ctx.needs_input_grad[3] and low_grad is not None:
            da = _inner(low_grad, x_SN.to(b_KMR.dtype), ctx.sizes).mul_(scale_K[:, None, None])
        if ctx.needs_input_grad[4]:
            db = _inner(low, wide_SM, ctx.sizes).mT
        return dx, None, None, da, db, None, None


# What lies between the two factors has its ranks first: (R, S) where sites differ in their rows,
# (K, R, S / K) where they do not. Libraries multiply a low matrix by a wide one up to six times as
# fast as a wide one by a narrow one.


def _down(by_KRN: Tensor, x_SN: Tensor, sizes: Sizes) -> Tensor:
    """The rows of every site, brought down to its ranks."""
    if sizes is None:
        return torch.bmm(by_KRN, x_SN.reshape(len(by_KRN), -1, x_SN.shape[1]).mT)
    if len(sizes) == 1:
        return torch.mm(by_KRN[0], x_SN.T)
    low_RS = x_SN.new_empty(by_KRN.shape[1], len(x_SN))
    for by, x_NL, low in zip(by_KRN.unbind(0), torch.split(x_SN.T, list(sizes), dim=1),
                             torch.split(low_RS, list(sizes), dim=1), strict=True):
        torch.mm(by, x_NL, out=low)
    return low_RS


def _up(low: Tensor, by_KRM: Tensor, sizes: Sizes) -> Tensor:
    """What every site has between its factors, brought up from its ranks: (S, M)."""
    rows = low.shape[1] if sizes is not None else low.shape[0] * low.shape[2]
    return _plus(low.new_zeros(rows, by_KRM.shape[2]), low, by_KRM, sizes)


def _plus(y_SM: Tensor, low: Tensor, by_KRM: Tensor, sizes: Sizes) -> Tensor:
    """y, to which ``_up`` was added."""
    if y_SM.dtype != low.dtype:
        return y_SM.add_(_up(low, by_KRM, sizes).to(y_SM.dtype))
    if sizes is None:
        y_SM.view(len(by_KRM), -1, y_SM.shape[1]).baddbmm_(low.mT, by_KRM)
        return y_SM
    if len(sizes) == 1:
        return y_SM.addmm_(low.T, by_KRM[0])
    for y, own_LR, by in zip(torch.split(y_SM, list(sizes)), torch.split(low.T, list(sizes)),
                             by_KRM.unbind(0), strict=True):
        y.addmm_(own_LR, by)
    return y_SM


def _inner(low: Tensor, x_SN: Tensor, sizes: Sizes) -> Tensor:
    """Sums over the rows of every site of what it has between its factors times its rows:
    (K, R, N)."""
    if sizes is None:
        return torch.bmm(low, x_SN.reshape(len(low), -1, x_SN.shape[1]))
    if len(sizes) == 1:
        return torch.mm(low, x_SN)[None]
    out_KRN = x_SN.new_empty(len(sizes), len(low), x_SN.shape[1])
    for own, x, out in zip(torch.split(low, list(sizes), dim=1), torch.split(x_SN, list(sizes)),
                           out_KRN.unbind(0), strict=True):
        torch.mm(own, x, out=out)
    return out_KRN
