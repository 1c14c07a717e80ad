"""An exported adapter, read back by PEFT on the base that is already loaded.

The folder is read by the library that its users read it with, and held against what the run
measured, layer by layer. The base is not loaded a second time: for a while its linear layers stand
as transformers made them, PEFT wraps them, and then they are wrapped as before. Nothing of the
base's weights is changed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from aulait.core.errors import DataError, ModelError, require
from aulait.core.parsing import parsed_json
from aulait.core.tensor_file import read_tensor_file
from aulait.core.types import Adapter
from aulait.models.loading import Base

if TYPE_CHECKING:  # both take seconds to import
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

_SAME = 1e-5  # of the largest number of a factor
_ULPS = 4
_PREFIX = "base_model.model."


@contextmanager
def unwrapped(base: Base) -> Iterator[PreTrainedModel]:
    """The model with its linear layers as transformers made them; on leaving, or after an error,
    they are wrapped as before, whatever stands in their places by then."""
    try:
        for name, slot in base.slots.items():
            _place(base.model, name, slot.inner)
        yield base.model
    finally:
        for name, slot in base.slots.items():
            _place(base.model, name, slot)


@contextmanager
def read_by_peft(base: Base, folder: Path) -> Iterator[PeftModel]:
    """The base with the adapter of a folder on it, as PEFT makes it; the base is as before on
    leaving. Draws of random numbers go on as if nothing had been read.

    Raises:
        ModelError: PEFT refuses the folder.
    """
    with unwrapped(base) as model:
        hooked = bool(getattr(model, "_require_grads_hooks", None))
        spread = model.__dict__.pop("hf_device_map", None)  # PEFT would deal the base out anew
        try:
            yield _on_base(model, folder)
        finally:
            if spread is not None:
                model.hf_device_map = spread
            if not hooked:  # PEFT asks for it where activations are recomputed
                model.disable_input_require_grads()
            if hasattr(model, "peft_config"):
                del model.peft_config


def _on_base(model: PreTrainedModel, folder: Path) -> PeftModel:
    # takes seconds to import
    from peft import PeftModel

    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing is found by name
            return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"PEFT cannot read the exported adapter in {folder} ({cause}); expected the adapter "
            "that was measured; choose other adapter.targets") from error


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Layer name -> PEFT's layer, of those that hold an adapter."""
    return {name.removeprefix(_PREFIX): module for name, module in model.named_modules()
            if len(getattr(module, "lora_A", ()))}


def load_adapter(folder: Path) -> Adapter:
    """The adapter that ``peft_export.export`` wrote into a folder.

    Raises:
        DataError: the folder holds none.
    """
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    require(weights.is_file() and config.is_file(), DataError,
            f"{folder} holds no adapter, expected {weights.name} and {config.name}; finish the run")
    try:
        told, (found, _) = parsed_json(config.read_bytes()), read_tensor_file(weights)
        layers = sorted({name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in found})
        return Adapter({layer: (found[f"{_PREFIX}{layer}.lora_A.weight"],
                                found[f"{_PREFIX}{layer}.lora_B.weight"]) for layer in layers},
                       float(told["lora_alpha"]), None,
                       "rslora" if told.get("use_rslora") else "lora")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{folder} holds no adapter that can be read ({error}), expected one that "
                        "aulait wrote; restore it from a copy") from error


@torch.no_grad()
def layer_faults(model: PeftModel, adapter: Adapter) -> dict[str, str]:
    """Layers that PEFT holds otherwise than they were measured -> how, in a few words.

    The comparison is of factors, in float32, so that it is as sharp for an adapter that hardly
    moves the base as for one that moves it much.
    """
    held = lora_layers(model)
    faults = {name: "PEFT leaves it out" for name in adapter.factors if name not in held}
    faults |= {name: "PEFT adapts it, the run did not" for name in held
               if name not in adapter.factors}
    for name in adapter.factors.keys() & held.keys():
        layer = held[name]
        found = (layer.lora_A["default"].weight,
                 layer.lora_B["default"].weight * layer.scaling["default"])
        a_RN, b_MR = adapter.factors[name]
        if not (_same(found[0], a_RN) and _same(found[1], adapter.scale(name) * b_MR)):
            faults[name] = "PEFT holds other numbers"
    return dict(sorted(faults.items()))


def file_faults(folder: Path, adapter: Adapter) -> dict[str, str]:
    """As ``layer_faults``, of the numbers in a folder's file alone: for one whose layers and ranks
    are those of a folder that PEFT was seen to read rightly.

    Args:
        folder: as ``peft_export.export`` writes it.
        adapter: what was measured.
    """
    faults: dict[str, str] = {}
    try:
        found, _ = read_tensor_file(folder / "adapter_model.safetensors")
    except ValueError as error:
        return dict.fromkeys(sorted(adapter.factors), f"the file cannot be read ({error})")
    for name, (a_RN, b_MR) in sorted(adapter.factors.items()):
        a, b = (found.pop(f"{_PREFIX}{name}.lora_{factor}.weight", None) for factor in "AB")
        if a is None or b is None:
            faults[name] = "the file leaves it out"
            continue
        scale = adapter.alpha / (len(a) if adapter.scaling == "lora" else math.sqrt(len(a)))
        if not (_same(a, a_RN) and _same(b * scale, adapter.scale(name) * b_MR)):
            faults[name] = "the file holds other numbers"
    return faults | {name: "the run has no such layer" for name in sorted(found)}


@contextmanager
def merged_on_read(model: PeftModel) -> Iterator[None]:
    """Let every adapted layer be what merging makes of it, weights with the update added and no
    adapter, each made when it is read: one layer's weights are in memory beside the base's, and
    nothing is written to those."""
    held = lora_layers(model)
    try:
        for name, layer in held.items():
            _place(model.base_model.model, name, MergedLinear(layer))
        yield
    finally:
        for name, layer in held.items():
            _place(model.base_model.model, name, layer)


class MergedLinear(nn.Module):
    """A linear layer whose weights are those of a frozen one plus PEFT's update, added and rounded
    as PEFT does it."""

    def __init__(self, layer: LoraLayer) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        """The merged weights, in the layout and the precision of the frozen ones."""
        frozen: Tensor = self.layer.get_base_layer().weight
        update = self.layer.get_delta_weight("default")
        merged: Tensor = (frozen + update).to(frozen.dtype)
        return merged

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.layer.get_base_layer().bias  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """What the merged layer says."""
        weight = self.weight
        if type(self.layer.get_base_layer()).__name__ == "Conv1D":
            weight = weight.T
        return nn.functional.linear(x, weight, self.bias)


@contextmanager
def rounded_otherwise(base: Base, layers: Iterable[str]) -> Iterator[None]:
    """Let the named layers of a wrapped base answer as if their sums had been rounded otherwise:
    with a relative error of some units in the last place, drawn anew from the same seed."""
    dice = torch.Generator().manual_seed(0)

    def stir(slot: nn.Module, given: tuple[Tensor, ...], said: Tensor) -> Tensor:
        frozen = slot.get_submodule("inner")(given[0])
        size = frozen.float().square().mean().sqrt() + (
            said.float() - frozen.float()).square().mean().sqrt()
        noise = torch.randn(said.shape, generator=dice).to(said.device)
        moved: Tensor = said + (_ULPS * torch.finfo(said.dtype).eps * size * noise).to(said.dtype)
        return moved

    hooks = [base.slots[name].register_forward_hook(stir) for name in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def outputs_kept(model: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """What the named layers say in the passes that follow, the last of each, in float32."""
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> RemovableHandle:
        def keep(_: nn.Module, __: object, said: Tensor) -> None:
            kept[name] = said.detach().float()

        return model.get_submodule(name).register_forward_hook(keep)

    hooks = [keeper(name) for name in layers]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _same(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    left, right = found.detach().cpu().float(), wanted.detach().cpu().float()
    return bool((left - right).abs().max() <= _SAME * right.abs().max())


def _place(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
