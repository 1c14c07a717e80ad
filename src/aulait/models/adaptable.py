"""Which linear layers an adapter can be measured on *and* exported from.

Every file that a run writes is read by PEFT. Of some architectures PEFT refuses layers, or takes
their names for those of fused experts and leaves them out without a word; some blocks read a
layer's weights instead of calling the layer, so that an adapter on it would do nothing; no text
passes through the towers of a model that also sees; and a routed expert reads some tokens only.
Such layers are left out of "all-linear" and "attention", and refused when they are named. Where
names do not tell, a pass of made-up tokens does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from aulait.core.errors import ModelError
from aulait.models.spread import first_device

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

# State-space blocks hand the weights of these layers to a fused kernel.
_STATE_SPACE = {
    "falcon_h1": {"out_proj", "conv1d"}, "falcon_mamba": {"out_proj", "conv1d", "dt_proj"},
    "mamba": {"out_proj", "conv1d", "dt_proj"}, "mamba2": {"out_proj", "conv1d"},
    "nemotron_h": {"out_proj", "conv1d"}}
ROUTED: Final = "it is a routed expert, which reads some tokens only"
_UNREACHED: Final = ("it does not read every token of a text in turn: it is for other input, or "
                     "its block reads the weights instead of calling the layer")
_TOKENS = 6  # of the made-up pass


def not_adaptable(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers that cannot carry an adapter -> why, in one clause.

    Args:
        model: whose layers they are.
        layers: its linear layers by their full names, as they stand in the model.

    Raises:
        ModelError: the model cannot read plain tokens.
    """
    names = list(layers)
    kind = str(getattr(model.config, "model_type", ""))
    lost = {name: "its block reads the weights instead of calling the layer, and PEFT refuses it"
            for name in names if name.rpartition(".")[2] in _STATE_SPACE.get(kind, ())}
    lost |= {name: ROUTED for name in names if name not in lost and _is_expert(name)}
    if any("expert" in name for name, _ in model.named_parameters()):
        lost |= _taken_for_experts(model, [name for name in names if name not in lost])
    left = {name: module for name, module in layers.items() if name not in lost}
    return lost | dict.fromkeys(_unreached(model, left), _UNREACHED)


def routed_parameters(model: PreTrainedModel) -> int:
    """Numbers in the weights of routed experts, one matrix an expert or fused over all of them."""
    return sum(p.numel() for name, p in model.named_parameters() if _is_expert(name))


def _is_expert(name: str) -> bool:
    """Whether a layer or a parameter is one of routed experts; shared ones read every token."""
    return "experts" in name.split(".")


def _unreached(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> list[str]:
    """Layers that do not read every token of a text, the rows of a batch one after the other.

    Sites train together as groups of neighbouring rows, so what a layer reads of the first of two
    rows must be what it reads of that row alone.
    """
    device = first_device(model)
    if device.type == "meta":
        return []
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = (torch.arange(3, 3 + 2 * _TOKENS, device=device) % vocabulary).view(2, _TOKENS)
    both, alone = _read(model, layers, ids), _read(model, layers, ids[:1])
    return [name for name in layers if not both[name] or len(both[name]) != len(alone[name])
            or not all(map(_begins_with, both[name], alone[name]))]


def _begins_with(both: Tensor, alone: Tensor) -> bool:
    """Whether the first half of what was read is what was read alone, up to rounding."""
    if both.numel() != 2 * alone.numel():
        return False
    first, wanted = both.flatten()[: alone.numel()].float(), alone.flatten().float()
    return bool((first - wanted).norm() <= 0.1 * wanted.norm() + 1e-6)


@torch.no_grad()
def _read(model: PreTrainedModel, layers: Mapping[str, nn.Module],
          ids: Tensor) -> dict[str, list[Tensor]]:
    """What every layer is given in a pass of these tokens, call by call.

    Raises:
        ModelError: the pass fails.
    """
    given: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [module.register_forward_pre_hook(
        lambda _, args, kept=given[name]: kept.append(args[0]))
        for name, module in layers.items()]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        model(input_ids=ids, use_cache=False, **more)
    # whatever a stranger's code raises on a text
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise ModelError(
            f"a pass of {_TOKENS} made-up tokens through {type(model).__name__} fails "
            f"({type(error).__name__}: {reason}); expected a model that reads tokens alone; choose "
            "another base") from error
    finally:
        for hook in hooks:
            hook.remove()
    return given


def _taken_for_experts(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Layers of a mixture of experts whose names PEFT takes for those of fused experts."""
    # takes seconds to import
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    lost = {}
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several names that only together stand for experts
            config.target_modules = set()
        if name not in (config.target_modules or ()):
            lost[name] = "PEFT takes its name for that of fused experts and would leave it out"
    return lost
