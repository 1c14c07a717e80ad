"""Families of models by their published sizes, with random weights: to be timed and counted, not to be used.

Arrows on this floor: ``model`` (the base) and ``shared_linear`` (what wraps its layers). FLAN-T5: Chung et al., "Scaling
Instruction-Finetuned Language Models", 2022; its sizes are those of T5 v1.1 with an output head of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aulait.errors import ModelError
from aulait.model import ATTENTION, BREW, Base, ModelConfig, load
from aulait.registry import nearest, require
from aulait.shared_linear import SharedLinear


@dataclass(frozen=True)
class Member:
    """One size of a family.

    Attributes:
        name: as the figures show it; an id or a path where ``sizes`` is empty.
        sizes: widths and depths of a T5 with a gated feed-forward layer; empty for a model that is loaded.
    """

    name: str
    sizes: Mapping[str, int]


def _t5(name: str, width: int, inner: int, heads: int, blocks: int, vocabulary: int = 32128, head: int = 64) -> Member:
    return Member(name, {"d_model": width, "d_ff": inner, "num_heads": heads, "num_layers": blocks, "d_kv": head, "vocab_size": vocabulary})


FAMILIES: Mapping[str, tuple[Member, ...]] = {
    "flan-t5": (
        _t5("FLAN-T5 small", 512, 1024, 6, 8),
        _t5("FLAN-T5 base", 768, 2048, 12, 12),
        _t5("FLAN-T5 large", 1024, 2816, 16, 24),
        _t5("FLAN-T5 XL", 2048, 5120, 32, 24),
    ),
    "tiny": (
        _t5("tiny", 32, 64, 2, 2, vocabulary=512, head=16),
        _t5("less tiny", 64, 128, 2, 4, vocabulary=512, head=32),
    ),
}


def members(family: str, model: str | None = None) -> tuple[Member, ...]:
    """The sizes of a family, or the one model that is named instead.

    Raises:
        ModelError: the family is unknown.
    """
    if model is not None:
        return (Member(model, {}),)
    require(family in FAMILIES, ModelError, f"family '{family}' is unknown; {nearest(family, list(FAMILIES))}")
    return FAMILIES[family]


def configuration(member: Member) -> Any:
    """The transformers configuration of a size; no weights are made.

    Raises:
        ModelError: the id or path cannot be read.
    """
    from transformers import AutoConfig, T5Config

    if member.sizes:
        return T5Config(**member.sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0,
                        pad_token_id=0, eos_token_id=1, tie_word_embeddings=False)
    try:
        return AutoConfig.from_pretrained(BREW if member.name == "brew" else member.name)
    except (OSError, ValueError) as error:
        raise ModelError(f"model '{member.name}' cannot be read ({str(error).splitlines()[0][:120]}); expected 'brew', a folder "
                         "with config.json, or a Hugging Face id and a network to reach it") from error


def base(member: Member, dtype: str, device: str, context: int) -> Base:
    """The model on a device, its linear layers wrapped; random weights for a size of a family.

    Args:
        member: the size, or the model to load.
        dtype: of the weights, "float32" or "bfloat16".
        device: "auto", "cpu", "cuda".
        context: tokens of a sequence.
    """
    found = configuration(member)
    kind: Any = "seq2seq" if found.is_encoder_decoder else "causal"
    config = ModelConfig(name=member.name, kind=kind, dtype=dtype, device=device, context=context)
    if not member.sizes:
        return load(config)
    from transformers import AutoModelForSeq2SeqLM

    place = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    with torch.device(place):
        model = AutoModelForSeq2SeqLM.from_config(found, dtype=getattr(torch, dtype))
        # transformers 5 shares the head with the embedding in every T5 it makes; the published FLAN-T5 have a head of their own
        model.lm_head = nn.Linear(found.d_model, found.vocab_size, bias=False, dtype=getattr(torch, dtype))
    made = Base(model.requires_grad_(False).eval(), _numbered_words(found.vocab_size), place, config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            made.slots[name] = SharedLinear(module)
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], made.slots[name])
    return made


def _numbered_words(vocabulary: int) -> Any:
    """A tokenizer whose words are "w3", "w4", ...: token i is the word of its number."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{number}": number for number in range(3, vocabulary)}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment,unused-ignore]
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def layers(member: Member) -> tuple[dict[str, tuple[int, int]], int]:
    """(M, N) of the attention layers by name, as ``base`` names them, and the number of all weights; no weights are made."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    found = configuration(member)
    auto = AutoModelForSeq2SeqLM if found.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(found)
    own_head = found.d_model * found.vocab_size if member.sizes else 0  # see ``base``
    linear = {name: module.weight.shape for name, module in model.named_modules() if name.rpartition(".")[2] in ATTENTION
              and type(module).__name__ in ("Linear", "Conv1D")}
    turned = any(type(module).__name__ == "Conv1D" for module in model.modules())  # GPT-2 keeps (in, out)
    shapes = {name: (shape[1], shape[0]) if turned else (shape[0], shape[1]) for name, shape in linear.items()}
    return shapes, own_head + sum(weight.numel() for weight in model.parameters())
