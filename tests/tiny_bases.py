"""Random models of a few thousand parameters with a tokenizer of bytes, written to folders and loaded by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from aulait.core import lora
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, Record
from aulait.models.loading import Base, ModelConfig, load_base

VOCABULARY = 259
_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**_IDS, **_WIDE, intermediate_size=24, num_key_value_heads=1, tie_word_embeddings=False),
    "gpt2": GPT2Config(**_IDS, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "neox": GPTNeoXConfig(**_IDS, **_WIDE, intermediate_size=24),
    "opt": OPTConfig(**_IDS, **_WIDE, ffn_dim=24, word_embed_proj_dim=16, dropout=0.0),
    "gemma2": Gemma2Config(
        **_IDS, **_WIDE, intermediate_size=24, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
        final_logit_softcapping=2.0, initializer_range=0.3),
    "t5": T5Config(
        vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, d_model=16, d_kv=8, d_ff=24,
        num_layers=2, num_heads=2, dropout_rate=0.0),
}
CAUSAL = [name for name in CONFIGS if name != "t5"]


def byte_tokenizer(begin: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte after <pad>, <s>, </s>; with ``begin`` it sets <s> before a text."""
    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if begin:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B",
                                                             special_tokens=[("<s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if begin else {})
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def write(folder: Path, kind: str) -> Path:
    """A model of this kind with random weights; the same weights every time."""
    path = folder / kind
    if not path.exists():
        auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
        state = torch.random.get_rng_state()
        torch.manual_seed(7)
        auto.from_config(CONFIGS[kind]).save_pretrained(path)
        torch.random.set_rng_state(state)
        byte_tokenizer(begin=kind != "t5").save_pretrained(path)
    return path


def tiny(folder: Path, kind: str = "llama", context: int = 24, dtype: str = "float32") -> Base:
    """A loaded tiny base."""
    words = "seq2seq" if kind == "t5" else "causal"
    return load_base(ModelConfig(name=str(write(folder, kind)), kind=words, context=context, device="cpu",
                                 dtype=dtype))


def filled(shapes: lora.Shapes, rank: int, alpha: float = 4.0, seed: int = 0, size: float = 0.1) -> Adapter:
    """An adapter whose B is not zero, so that both factors have gradients."""
    start = lora.initial(shapes, rank, alpha, Seeds(seed))
    generator = torch.Generator().manual_seed(seed + 100)
    return Adapter(
        {n: (a, size * torch.randn(b.shape, generator=generator)) for n, (a, b) in start.factors.items()}, alpha)


def records(count: int, seed: int = 0, prompt: bool = False, longest: int = 18) -> tuple[Record, ...]:
    """Short made-up texts of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(count):
        length = int(torch.randint(3, longest, (1,), generator=generator))
        letters = torch.randint(97, 123, (length,), generator=generator).tolist()
        texts.append("".join(chr(letter) for letter in letters))
    return tuple(Record(text, prompt=text[:2] + "?" if prompt else None) for text in texts)
