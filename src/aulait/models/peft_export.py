"""An adapter as files that PEFT reads: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from aulait.core.files import PRIVATE, PUBLIC, private_folder, replace_file
from aulait.core.types import Adapter
from aulait.models.loading import Base
from aulait.models.named import portable_name


def export(adapter: Adapter, base: Base, folder: Path, *, personal: bool = False,
           dropout: float = 0.0) -> None:
    """Write an adapter in PEFT's format: ``PeftModel.from_pretrained`` loads it on the same base.

    Args:
        adapter: what is written.
        base: that it belongs to.
        folder: where; made if it is missing.
        personal: it is a client's own, which has seen text without noise: only the owner of the
            files may read them.
        dropout: with which it was trained; for whoever trains it on.
    """
    if personal:
        private_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mode = PRIVATE if personal else PUBLIC
    ranks = {name: a.shape[0] for name, (a, _) in adapter.factors.items()}
    common = max(ranks.values())
    weights = {}
    for name, (a, b) in sorted(adapter.factors.items()):
        weights[f"base_model.model.{name}.lora_A.weight"] = a.contiguous().cpu()
        # PEFT multiplies by alpha / r of the layer, or alpha / sqrt(r); an adapter with a scale of
        # its own holds the difference in B
        divisor = a.shape[0] if adapter.scaling == "lora" else math.sqrt(a.shape[0])
        weights[f"base_model.model.{name}.lora_B.weight"] = (b
            * (adapter.scale(name) * divisor / adapter.alpha)).contiguous().cpu()
    replace_file(folder / "adapter_model.safetensors", save(weights, metadata={"format": "pt"}),
                 mode=mode)
    told = _peft_config(adapter, base, ranks, common) | {"lora_dropout": dropout}
    config = json.dumps(told, indent=2) + "\n"
    replace_file(folder / "adapter_config.json", config.encode(), mode=mode)


def _peft_config(adapter: Adapter, base: Base, ranks: Mapping[str, int], common: int) -> dict[str,
        Any]:
    # takes seconds to import
    from peft import LoraConfig, TaskType

    conv = any(type(base.slots[name].inner).__name__ == "Conv1D" for name in ranks)
    config = LoraConfig(
        r=common, lora_alpha=adapter.alpha, use_rslora=adapter.scaling == "rslora",
        target_modules=_target_modules(base, ranks), fan_in_fan_out=conv,
        rank_pattern={name: r for name, r in ranks.items() if r != common},
        task_type=TaskType.CAUSAL_LM if base.config.kind == "causal" else TaskType.SEQ_2_SEQ_LM,
        base_model_name_or_path=portable_name(base.config.name),
        inference_mode=True,
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value
            for key, value in config.items()}


def _target_modules(base: Base, adapted: Iterable[str]) -> list[str]:
    """Suffixes of names that mean the adapted layers and no other module of the base.

    Where experts are fused PEFT reads some suffixes as the names of experts, and the names stay
    whole.
    """
    wanted = set(adapted)
    if any("expert" in name for name, _ in base.model.named_parameters()):
        return sorted(wanted)
    inner = {f"{name}.inner" for name in base.slots}
    others = [name for name, _ in base.model.named_modules() if name and name not in inner]
    return shortest_suffixes(wanted, others)


def shortest_suffixes(wanted: set[str], names: Iterable[str]) -> list[str]:
    """The fewest parts from the end of every wanted name that no other name ends in, sorted.

    Args:
        wanted: names of dotted parts.
        names: all there are, the wanted ones among them.
    """
    foreign = {suffix for name in names if name not in wanted for suffix in _suffixes(name)}
    return sorted({next((suffix for suffix in _suffixes(name) if suffix not in foreign), name)
                   for name in wanted})


def _suffixes(name: str) -> Iterator[str]:
    """"c", "b.c", "a.b.c" of "a.b.c"."""
    parts = name.split(".")
    return (".".join(parts[i:]) for i in reversed(range(len(parts))))
