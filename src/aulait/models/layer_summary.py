"""Which layers of a base an adapter is on, which it is not on and why, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from aulait.core.files import JsonObject
from aulait.core.lora import Shapes
from aulait.models.adaptable import routed_parameters
from aulait.models.loading import Base

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel


def summarise_layers(base: Base, shapes: Shapes) -> JsonObject:
    """The adapted layers by their last names, those that cannot be adapted by the reason, and what
    of the base takes no part.

    Args:
        base: the loaded base.
        shapes: of the adapted layers.
    """
    why: dict[str, list[str]] = {}
    for name, reason in base.unadaptable.items():
        why.setdefault(reason, []).append(name)
    return {
        "layers": len(shapes),
        "modules": counted(shapes),
        "skipped": [{"layers": len(names), "modules": counted(names), "why": reason}
                    for reason, names in why.items()],
        "routed_expert_parameters": routed_parameters(base.model),
        "base_dropout": base_dropout(base.model),
    }


def counted(layers: Iterable[str]) -> dict[str, int]:
    """Last name -> how many layers have it, in the order in which they are met."""
    return dict(Counter(name.rpartition(".")[2] for name in layers))


def base_dropout(model: PreTrainedModel) -> float:
    """The largest dropout rate that the base was made with; it is off in training here."""
    rates = [float(module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    told = model.config.get_text_config().to_dict()
    rates += [float(value) for key, value in told.items()
              if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float)
              and key != "classifier_dropout"]
    return max(rates, default=0.0)
