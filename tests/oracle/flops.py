"""FLOP and memory of a step as they happen: torch counts the products it runs and the bytes it holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    addmm_flop,
    baddbmm_flop,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _forward(query, key, value, *args, out_shape=None, **extra) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(grad, query, key, value, *args, out_shape=None, **extra) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _added(into, left, right, *args, out_shape=None, **extra) -> int:
    """Of a product that is added in place, which torch does not count."""
    return (addmm_flop if len(left) == 2 else baddbmm_flop)(into, left, right)


IN_PLACE = {torch.ops.aten.addmm_: _added, torch.ops.aten.baddbmm_: _added}


def executed(work: Callable[[], object]) -> int:
    """FLOP of all products that the work runs; the processor's fused attention, which torch does not know, included."""
    with FlopCounterMode(display=False, custom_mapping={FORWARD: _forward, BACKWARD: _backward, **IN_PLACE}) as counter:
        work()
    return counter.get_total_flops()


def kept_bytes(forward: Callable[[], Tensor], model: torch.nn.Module) -> int:
    """Bytes of distinct tensors that a forward pass saves for its backward pass, parameters of the model left out."""
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor is kept so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(size for size, _ in held.values())


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that the work's own tensors hold at one time, by the profiler's record of every allocation."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    held = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
