"""Gradient checkpointing: blocks are computed again in the backward pass instead of remembered.

Memory of a training pass then grows with the states between blocks, not with all that happens in
them; it costs about one forward pass more. Results are those without it. The library's own switch
works in training mode only, in which the base's dropout would be on, and knows nothing of adapters
that are taken off before the backward pass; so blocks are wrapped here.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from aulait.core.errors import ModelError, require
from aulait.models.multi_lora_linear import SharedLinear
from aulait.models.packing import replay

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

_WORN = ("worn", "dropout", "basis")  # of a layer, while it is applied


def recompute_blocks(model: PreTrainedModel, name: str) -> None:
    """Let every block of a model be computed again when gradients pass through it.

    Args:
        model: whose linear layers are wrapped already.
        name: what the user calls it.

    Raises:
        ModelError: its blocks are not found.
    """
    # takes seconds to import
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in model.modules()
              if isinstance(module, GradientCheckpointingLayer)]
    require(bool(blocks), ModelError,
            f"model.gradient_checkpointing is true and {name} has no block that can be computed "
            "again; set it to false")
    for block in blocks:
        setattr(block, "forward", _again(block.forward, block))  # noqa: B010


def _again(forward: Callable[..., object], block: nn.Module) -> Callable[..., object]:
    """The block's forward pass, run once more in the backward pass with what its layers wore."""
    slots = [module for module in block.modules() if isinstance(module, SharedLinear)]

    @wraps(forward)
    def once(*args: object, **kwargs: object) -> object:
        if not torch.is_grad_enabled() or (all(slot.worn is None for slot in slots) and not any(
                isinstance(own, torch.Tensor) and own.requires_grad for own in args)):
            return forward(*args, **kwargs)
        worn = [{key: getattr(slot, key) for key in _WORN} for slot in slots]
        same_pass = replay()

        def replayed(*own: object, **more: object) -> object:
            now = [{key: getattr(slot, key) for key in _WORN} for slot in slots]
            _put(slots, worn)
            try:
                with same_pass():
                    return forward(*own, **more)
            finally:
                _put(slots, now)

        return checkpoint(partial(replayed, **kwargs), *args, use_reentrant=False,
                          preserve_rng_state=False)

    return once


def _put(slots: list[SharedLinear], worn: list[dict[str, object]]) -> None:
    for slot, own in zip(slots, worn, strict=True):
        for key, value in own.items():
            setattr(slot, key, value)
