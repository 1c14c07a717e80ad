"""A base spread over several devices, or partly off them, as transformers and accelerate do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from aulait.core.places import user_cache

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel


def spread_options(device_map: str | dict[str, int | str]) -> dict[str, object]:
    """What ``from_pretrained`` is told. Weights for the disk that are no safetensors files are put
    into the user's cache."""
    return {"device_map": device_map, "offload_folder": str(user_cache() / "offload")}


def first_device(model: PreTrainedModel) -> torch.device:
    """Where tokens enter: the device of the embedding, or the one it is brought to when it is
    called."""
    weight = model.get_input_embeddings().weight
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    where = getattr(hook, "execution_device", None)
    return weight.device if where is None else torch.device(where)


def is_offloaded(model: PreTrainedModel) -> bool:
    """Whether some weights are brought to their device only when they are called."""
    return any(parameter.is_meta for parameter in model.parameters())
