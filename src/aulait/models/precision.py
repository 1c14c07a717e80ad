"""The precision of the frozen weights that ``model.dtype = "auto"`` takes.

bfloat16 where it is faster and says the same, else float32. Faster: on a processor with
instructions for it, in models at least ``WIDE`` wide; narrower ones gain little and lose it in
casts. The same: the loss of the loaded model on a fixed text differs by at most ``AGREES`` of the
float32 loss. Measured in results/bench-simulate.md. The choice is made once, when a run begins, and
kept in its config.toml.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WIDE: Final = 512  # hidden units
AGREES: Final = 0.01  # of the loss in float32
TEXT: Final = (
    "The ferry leaves at seven in the morning and reaches the island before noon. On the way it "
    "passes two lighthouses, one of which has not been lit since 1954. Passengers who want to see "
    "them should stand on the left side of the deck and bring a warm coat.")
_INSTRUCTIONS: Final = frozenset(["avx512_bf16", "amx_bf16", "bf16"])  # x86, x86, ARM
_CPUINFO: Final = Path("/proc/cpuinfo")


def computes_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16; False where the system does
    not tell."""
    try:
        return not _INSTRUCTIONS.isdisjoint(_CPUINFO.read_text("utf-8", "replace").split())
    except OSError:
        return False


def worth_trying(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether bfloat16 would be faster than float32 for this model."""
    sizes = (getattr(model.config, name, None) for name in ("hidden_size", "d_model"))
    width = next((size for size in sizes if size is not None), 0)
    return device.type == "cpu" and width >= WIDE and computes_bfloat16()


def says_the_same(narrow: PreTrainedModel, full: PreTrainedModel,
                  tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the losses of two loads of one model on ``TEXT`` agree."""
    found, wanted = _loss(narrow, tokenizer), _loss(full, tokenizer)
    return math.isfinite(found) and abs(found - wanted) <= AGREES * wanted


@torch.no_grad()
def _loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    return float(model.eval()(input_ids=ids, labels=ids).loss)
