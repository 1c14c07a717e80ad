"""A model with an adapter merged in, as a folder that transformers loads, read back after it was
written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aulait.core.errors import ModelError, require
from aulait.models.quiet import quiet

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model and its tokenizer, and read both back.

    Args:
        model: a plain transformers model.
        tokenizer: its tokenizer.
        folder: where; it exists.

    Raises:
        ModelError: what transformers reads is not what was written; tensors are named.
    """
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    check_merged(model, tokenizer, folder)


@torch.no_grad()
def check_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
                 folder: Path) -> None:
    """Hold a written folder against the model in memory, bit for bit.

    Raises:
        ModelError: something differs, or transformers cannot read the folder.
    """
    # takes seconds to import
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with quiet():
            found = auto.from_pretrained(folder, dtype=model.dtype)
            words = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(f"transformers cannot read the merged model in {folder} ({cause}); "
                         "expected the model that was written; export again") from error
    held, wanted = found.state_dict(), model.state_dict()
    faults = sorted(held.keys() ^ wanted.keys())
    faults += [name for name in wanted.keys() & held.keys()
               if not torch.equal(held[name].cpu(), wanted[name].cpu())]
    faults += ["the vocabulary"] if words.get_vocab() != tokenizer.get_vocab() else []
    faults += ["the chat template"] if words.chat_template != tokenizer.chat_template else []
    require(not faults, ModelError,
            f"the merged model in {folder} does not read back as it was written: {len(faults)} "
            f"differ ({', '.join(faults[:6])}); expected the same numbers; export again")
