"""Which linear layers an adapter can be measured on *and* exported from.

Every file that a run writes is read by PEFT. Of some architectures PEFT refuses layers, or takes
their names for those of fused experts and leaves them out without a word; and some blocks read a
layer's weights instead of calling the layer, so that an adapter on it would do nothing. Such
layers are left out of "all-linear" and "attention", and refused when they are named.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

# State-space blocks hand the weights of these layers to a fused kernel.
_STATE_SPACE = {
    "falcon_h1": {"out_proj", "conv1d"}, "falcon_mamba": {"out_proj", "conv1d", "dt_proj"},
    "mamba": {"out_proj", "conv1d", "dt_proj"}, "mamba2": {"out_proj", "conv1d"},
    "nemotron_h": {"out_proj", "conv1d"}}


def not_adaptable(model: PreTrainedModel, layers: Iterable[str]) -> dict[str, str]:
    """Layers that cannot carry an adapter -> why, in one clause.

    Args:
        model: whose layers they are.
        layers: full names of its linear layers.
    """
    names = list(layers)
    kind = str(getattr(model.config, "model_type", ""))
    lost = {name: "its block reads the weights instead of calling the layer, and PEFT refuses it"
            for name in names if name.rpartition(".")[2] in _STATE_SPACE.get(kind, ())}
    if any("expert" in name for name, _ in model.named_parameters()):
        lost |= _taken_for_experts(model, [name for name in names if name not in lost])
    return lost


def _taken_for_experts(model: PreTrainedModel, names: list[str]) -> dict[str, str]:
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
