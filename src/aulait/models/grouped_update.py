"""A frozen linear layer and the low-rank updates of many sites as one step of the backward pass.

Each site has a group of adjacent rows. What autograd would do in a dozen steps, each with a tensor
of its own, is done in place: the updates are added to the output of the frozen product, and their
gradients to that of the input.

Shape letters: S rows of all sites · K sites · M out · N in · R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        low_SR = _times(x_SN.to(a_KRN.dtype), scaled_KRN.mT, sizes)
        ctx.sizes, ctx.weight = sizes, weight_MN
        ctx.save_for_backward(x_SN, scaled_KRN, b_KMR, scale_K, low_SR)
        if weight_MN is None:
            return _times(low_SR, b_KMR.mT, sizes)
        return _plus(nn.functional.linear(x_SN, weight_MN, bias_M), low_SR, b_KMR.mT, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _AdaptedContext, given_SM: Tensor) -> tuple[Tensor | None, ...]:
        x_SN, scaled_KRN, b_KMR, scale_K, low_SR = ctx.saved_tensors
        wide_SM = given_SM.to(b_KMR.dtype)
        low_grad_SR = _times(wide_SM, b_KMR, ctx.sizes)
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            dx = (_times(low_grad_SR, scaled_KRN, ctx.sizes).to(x_SN.dtype) if ctx.weight is None
                  else _plus(given_SM @ ctx.weight, low_grad_SR, scaled_KRN, ctx.sizes))
        if ctx.needs_input_grad[3]:
            da = _inner(low_grad_SR, x_SN.to(b_KMR.dtype), scaled_KRN, ctx.sizes)
            da.mul_(scale_K[:, None, None])
        if ctx.needs_input_grad[4]:
            db = _inner(wide_SM, low_SR, b_KMR, ctx.sizes)
        return dx, None, None, da, db, None, None


def _times(x_SN: Tensor, by_KNM: Tensor, sizes: Sizes) -> Tensor:
    """The rows of every site times its own matrix."""
    sites = len(by_KNM)
    if sizes is None:
        return torch.bmm(x_SN.reshape(sites, -1, x_SN.shape[1]), by_KNM).flatten(0, 1)
    out_SM = x_SN.new_empty(len(x_SN), by_KNM.shape[2])
    for x, by, out in _each(sizes, (x_SN,), (by_KNM,), (out_SM,)):
        torch.mm(x, by, out=out)
    return out_SM


def _plus(y_SM: Tensor, x_SR: Tensor, by_KRM: Tensor, sizes: Sizes) -> Tensor:
    """y, to which the rows of every site times its own matrix were added."""
    if y_SM.dtype != x_SR.dtype:
        return y_SM.add_(_times(x_SR, by_KRM, sizes).to(y_SM.dtype))
    sites = len(by_KRM)
    if sizes is None:
        y_SM.view(sites, -1, y_SM.shape[1]).baddbmm_(x_SR.view(sites, -1, x_SR.shape[1]), by_KRM)
        return y_SM
    for y, x, by in _each(sizes, (y_SM, x_SR), (by_KRM,), ()):
        y.addmm_(x, by)
    return y_SM


def _inner(x_SN: Tensor, y_SM: Tensor, like_KNM: Tensor, sizes: Sizes) -> Tensor:
    """Sums over the rows of every site of x y^T: (K, N, M)."""
    sites = len(like_KNM)
    if sizes is None:
        return torch.bmm(x_SN.reshape(sites, -1, x_SN.shape[1]).mT,
                         y_SM.reshape(sites, -1, y_SM.shape[1]))
    out_KNM = torch.empty_like(like_KNM)
    for x, y, out in _each(sizes, (x_SN, y_SM), (out_KNM,), ()):
        torch.mm(x.T, y, out=out)
    return out_KNM


def _each(sizes: Sequence[int], rows: Sequence[Tensor], of_sites: Sequence[Tensor],
          more: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The rows of each site, what is its own, and more rows of it."""
    return zip(*(torch.split(x, list(sizes)) for x in rows), *(x.unbind(0) for x in of_sites),
               *(torch.split(x, list(sizes)) for x in more), strict=True)
