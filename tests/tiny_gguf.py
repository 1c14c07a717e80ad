"""Tiny llama models with random weights as GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter, TokenType
from tests.tiny_bases import CONFIGS, byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
          "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
          "post_attention_layernorm": "ffn_norm"}


WORDS = [word for word, _ in sorted(byte_tokenizer().get_vocab().items(), key=lambda pair: pair[1])] + ["Ġt"]
MERGES = ["Ġ t"]  # readers take a file without any for one of another kind


def model(seed: int = 0) -> LlamaForCausalLM:
    """The model that ``write`` writes."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**CONFIGS["llama"].to_dict() | {"vocab_size": len(WORDS)})).eval()


def write(path: Path, seed: int = 0) -> LlamaForCausalLM:
    """Write a GGUF file of float32 weights with a tokenizer of bytes; returns the model that is in it."""
    made = model(seed)
    own = made.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(own.max_position_embeddings)
    writer.add_embedding_length(own.hidden_size)
    writer.add_block_count(own.num_hidden_layers)
    writer.add_feed_forward_length(own.intermediate_size)
    writer.add_head_count(own.num_attention_heads)
    writer.add_head_count_kv(own.num_key_value_heads)
    writer.add_rope_freq_base(own.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(own.head_dim)
    writer.add_layer_norm_rms_eps(own.rms_norm_eps)
    writer.add_vocab_size(own.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([TokenType.CONTROL if word.startswith("<") and len(word) > 1 else TokenType.NORMAL for word in WORDS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    for name, weight in made.state_dict().items():
        writer.add_tensor(_place(name), _turned(name, weight, own))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def _place(name: str) -> str:
    short = name.removesuffix(".weight")
    if short.startswith("model.layers."):
        _, _, block, inner = short.split(".", 3)
        return f"blk.{block}.{_NAMES[inner]}.weight"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[short] + ".weight"


def _turned(name: str, weight: torch.Tensor, own) -> np.ndarray:
    """llama.cpp pairs neighbouring coordinates in its rotation where transformers pairs halves."""
    heads = own.num_attention_heads if "q_proj" in name else own.num_key_value_heads if "k_proj" in name else None
    found = weight.numpy()
    if heads is None:
        return found
    rows, columns = found.shape
    return np.ascontiguousarray(found.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns))
