"""Which linear layers are projections of an attention, read off their full names.

Architectures agree on little: one matrix or three (``q_proj``; fused ``qkv_proj``,
``query_key_value``, ``c_attn``), and an output projection that may be called as one of the
feed-forward part (GPT-2's ``c_proj``, the ``dense`` of GPT-NeoX, Bloom and Falcon). What tells is
the module that a layer lies in, and where that is called otherwise (a ``mixer``, a
``temporal_block``) the layer's own name. A name alone suffices, so that both sides of a federation
agree without a model at hand.
"""

from __future__ import annotations

# modules that hold the projections of an attention and nothing else
BLOCKS = frozenset([
    "self_attn", "self_attention", "attn", "attention", "linear_attn",  # decoders
    "SelfAttention", "LocalSelfAttention", "TransientGlobalSelfAttention", "EncDecAttention",  # T5
    "encoder_attn", "cross_attn", "cross_attention", "crossattention",  # decoder looks at encoder
    "multi_head_attention", "encdec_attn", "attentions", "cross_attn_layers",  # CTRL, XLM, BLT
])
# names that only projections of an attention have
LAYERS = frozenset([
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv",
    "q_lin", "k_lin", "v_lin", "out_lin"])


def is_attention(layer: str) -> bool:
    """Whether the linear layer of this full name is a projection of an attention."""
    *modules, own = layer.split(".")
    return own in LAYERS or not BLOCKS.isdisjoint(modules)
