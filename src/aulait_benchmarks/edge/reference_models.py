"""Families of models by their published sizes, with random weights: to be timed and counted, not to
be used.

FLAN-T5: Chung et al., "Scaling Instruction-Finetuned Language Models", 2022; its sizes are those
of T5 v1.1 with an output head of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from aulait.core.errors import ModelError, did_you_mean, require
from aulait.models.attention import is_attention
from aulait.models.loading import Base, ModelConfig, load_base, wrap
from aulait.models.named import EXPECTED, folder_of
from aulait.models.shape import from_config
from aulait.resources.cost_model import ModelShape


@dataclass(frozen=True)
class Member:
    """One size of a family.

    Attributes:
        name: as the figures show it; an id or a path where ``sizes`` is empty.
        sizes: widths and depths of a T5 with a gated feed-forward layer; empty for a model that is
            loaded.
    """

    name: str
    sizes: Mapping[str, int]


def _t5(name: str, sizes: tuple[int, int, int, int], vocabulary: int = 32128,
        head: int = 64) -> Member:
    """``sizes``: width, inner width, heads, blocks."""
    keys = ("d_model", "d_ff", "num_heads", "num_layers")
    return Member(name, {**dict(zip(keys, sizes, strict=True)), "d_kv": head,
                         "vocab_size": vocabulary})


FAMILIES: Mapping[str, tuple[Member, ...]] = {
    "flan-t5": (
        _t5("FLAN-T5 small", (512, 1024, 6, 8)),
        _t5("FLAN-T5 base", (768, 2048, 12, 12)),
        _t5("FLAN-T5 large", (1024, 2816, 16, 24)),
        _t5("FLAN-T5 XL", (2048, 5120, 32, 24)),
    ),
    "tiny": (
        _t5("tiny", (32, 64, 2, 2), vocabulary=512, head=16),
        _t5("less tiny", (64, 128, 2, 4), vocabulary=512, head=32),
    ),
}


def members(family: str, model: str | None = None) -> tuple[Member, ...]:
    """The sizes of a family, or the one model that is named instead.

    Raises:
        ModelError: the family is unknown.
    """
    if model is not None:
        return (Member(model, {}),)
    require(family in FAMILIES, ModelError,
            f"family '{family}' is unknown; {did_you_mean(family, list(FAMILIES))}")
    return FAMILIES[family]


def configuration(member: Member) -> PretrainedConfig:
    """The transformers configuration of a size; no weights are made.

    Raises:
        ModelError: the id or path cannot be read.
    """
    if member.sizes:
        return T5Config(**member.sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0,
                        decoder_start_token_id=0,
                        pad_token_id=0, eos_token_id=1, tie_word_embeddings=False)
    try:
        return AutoConfig.from_pretrained(folder_of(member.name))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model '{member.name}' cannot be read ({str(error).splitlines()[0][:120]}); expected "
            f"{EXPECTED}") from error


def base(member: Member, dtype: str, device: str, context: int) -> Base:
    """The model on a device, its linear layers wrapped; random weights for a size of a family.

    Args:
        member: the size, or the model to load.
        dtype: of the weights, "float32" or "bfloat16".
        device: "auto", "cpu", "cuda".
        context: tokens of a sequence.
    """
    found = configuration(member)
    config = ModelConfig(name=member.name, dtype=dtype, device=device, context=context,
                         kind="seq2seq" if found.is_encoder_decoder else "causal")
    if not member.sizes:
        return load_base(config)
    place = (
        torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto"
        else torch.device(device)
    )
    with torch.device(place):
        model = AutoModelForSeq2SeqLM.from_config(found, dtype=getattr(torch, dtype))
        # transformers 5 shares the head with the embedding in every T5 it makes; the published
        # FLAN-T5 have a head of their own
        model.lm_head = nn.Linear(found.d_model, found.vocab_size, bias=False,
                                  dtype=getattr(torch, dtype))
    made = Base(model.requires_grad_(False).eval(), _numbered_words(found.vocab_size), place,
                config)
    wrap(made)
    return made


def _numbered_words(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are "w3", "w4", ...: token i is the word of its number."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{number}": number
        for number in range(3, vocabulary)}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))  # nosec B106  # a word of the vocabulary
    inner.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment,unused-ignore]
    return PreTrainedTokenizerFast(  # nosec B106  # words of the vocabulary
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def counted(member: Member) -> ModelShape:
    """The size as the cost model sees it, by names and numbers of ``base``; no weights are made."""
    found = configuration(member)
    body = from_config(found)
    own_head = found.d_model * found.vocab_size if member.sizes else 0  # see ``base``
    return replace(body, parameters=body.parameters + own_head)


def adapted(body: ModelShape) -> dict[str, tuple[int, int]]:
    """(M, N) of the attention layers by name, which carry LoRA in the study."""
    return {name: shape for block in body.blocks for name, shape in block.layers.items()
            if is_attention(name)}
