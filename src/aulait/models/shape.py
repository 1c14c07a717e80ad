"""A base as the cost model sees it: its blocks and their linear layers, read off a loaded model or
off a configuration.

A configuration is built on torch's "meta" device: shapes without numbers, so that a model of
billions of parameters can be costed on a laptop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from aulait.models.loading import AdapterConfig, Base, is_linear, shape_of, targets
from aulait.resources.cost_model import Block, ModelShape

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PretrainedConfig, PreTrainedModel


def model_shape(base: Base) -> ModelShape:
    """The model shape of a loaded base."""
    shapes = targets(base, AdapterConfig())
    weight_bytes = sum(p.numel() * p.element_size() for p in base.model.parameters())
    return _counted(base.model, shapes, base.config.kind, base.split_head, weight_bytes)


def from_config(config: PretrainedConfig, dtype: str = "float32") -> ModelShape:
    """The model shape of the model that a transformers configuration describes; no weight is made
    or loaded.

    Args:
        config: a transformers configuration, of a causal or an encoder-decoder model.
        dtype: precision the weights would have.
    """
    # takes seconds to import
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    with torch.device("meta"):
        model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_config(config,
            dtype=getattr(torch, dtype))
    head = model.get_output_embeddings()
    shapes = {name: shape_of(module) for name, module in model.named_modules() if module is not head
              and is_linear(module)}
    # Models that cap or scale their logits run the head on every position (``model.load`` finds out
    # by trying).
    capped = any(getattr(config, key, None) for key in ("final_logit_softcapping", "logit_scale",
        "logits_scaling"))
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    return _counted(model, shapes, "seq2seq" if seq2seq else "causal", not seq2seq and not capped,
                    weight_bytes)


def _counted(model: PreTrainedModel, shapes: Mapping[str, tuple[int, int]],
             kind: Literal["causal", "seq2seq"], split_head: bool,
             weight_bytes: int) -> ModelShape:
    config = model.config.get_text_config(decoder=True)
    blocks = tuple(_blocks(shapes, config, kind))
    embeddings = {id(p): p.numel() for p in _embeddings(model, shapes)}
    return ModelShape(
        blocks=blocks,
        width=int(config.hidden_size),
        vocabulary=int(model.get_output_embeddings().weight.shape[0]),
        parameters=sum(m * n for m, n in shapes.values()) + sum(
            p.numel() for name, p in model.named_parameters() if not _is_matrix(name, shapes)),
        embedding_parameters=sum(embeddings.values()),
        weight_bytes=weight_bytes,
        kind=kind,
        split_head=split_head,
    )


def _blocks(shapes: Mapping[str, tuple[int, int]], config: PretrainedConfig,
            kind: str) -> Iterable[Block]:
    """Layers grouped by the first number in their names, per side, the encoder's blocks first;
    those in no block (OPT-350m projects its embeddings) count with the first."""
    grouped: dict[tuple[bool, int], dict[str, tuple[int, int]]] = {}
    for name, (m, n) in shapes.items():
        number = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        encoder = kind == "seq2seq" and "encoder" in name.split(".")
        grouped.setdefault((not encoder, number), {})[name] = (m, n)
    heads = int(getattr(config, "num_attention_heads", 0) or config.num_heads)
    per_head = (
        getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size
        // heads
    )
    for (decoder, _), layers in sorted(grouped.items(), key=lambda pair: pair[0]):
        yield Block(layers, heads * int(per_head), "decoder" if decoder else "encoder",
                    decoder and kind == "seq2seq")


def _embeddings(model: PreTrainedModel, shapes: Mapping[str, tuple[int, int]]) -> Iterable[Tensor]:
    """Input embeddings of tokens and positions; those inside blocks are biases of the attention,
    not embeddings."""
    prefixes = {name[: found.start()] for name in shapes if (found := re.search(r"\.\d+\.", name))}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and not any(name.startswith(prefix + ".")
                for prefix in prefixes):
            yield module.weight


def _is_matrix(parameter: str, shapes: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a parameter is the matrix of a layer in a block; quantised ones hold fewer elements
    than they stand for."""
    return (
        parameter.removesuffix(".weight").removesuffix(".inner") in shapes
        and parameter.endswith(".weight")
    )
