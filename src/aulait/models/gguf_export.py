"""A model as one GGUF file, which llama.cpp and Ollama run, written with the ``gguf`` package and
read back with transformers.

Only architectures whose file both readers understand alike are written. llama.cpp rotates
neighbouring coordinates of queries and keys where transformers rotates halves, so their rows change
places for the architectures that it files under "llama".

Shape letters: M out features · N in features · H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from aulait.core.errors import ModelError, install, require
from aulait.models.gguf_tokens import GgufTokens, gguf_tokens
from aulait.models.quiet import quiet

if TYPE_CHECKING:  # transformers takes seconds to import, gguf is optional
    from gguf import GGMLQuantizationType, GGUFWriter, TensorNameMap
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["f32", "f16", "bf16", "q8_0"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
FILE: Final = "model.gguf"
_SMALL: Final = 250_000_000  # parameters that are 1 GB in float32
_TOKENS: Final = 64  # of the made-up sequence that both readings are scored on
# Rounding of a weight as a share of the largest of its block of 32, and of logits as a share of
# their spread.
_ROUNDING: Final[Mapping[Precision, tuple[float, float]]] = {
    "f32": (1e-6, 1e-4), "f16": (5e-4, 2e-2), "bf16": (4e-3, 1e-1), "q8_0": (5e-3, 1e-1)}
_BLOCK: Final = 32
_QWEN3_WIDTH: Final = 128


@dataclass(frozen=True)
class GgufArchitecture:
    """How an architecture of transformers stands in GGUF.

    Attributes:
        name: there.
        turned: whether rows of queries and keys change places.
    """

    name: str
    turned: bool


ARCHITECTURES: Final[Mapping[str, GgufArchitecture]] = {
    "llama": GgufArchitecture("llama", True),
    "mistral": GgufArchitecture("llama", True),
    "qwen2": GgufArchitecture("qwen2", False),
    "qwen3": GgufArchitecture("qwen3", False),
}
"""``model_type`` of transformers -> how it is written."""


def gguf_problems(config: PretrainedConfig) -> list[str]:
    """Why a model cannot be written, one line each; empty where it can, as far as its configuration
    tells."""
    kind = str(getattr(config, "model_type", ""))
    if kind not in ARCHITECTURES:
        return [f"a base of the architecture '{kind}' cannot be written as GGUF; expected one of "
                f"{', '.join(ARCHITECTURES)}; export with --merge, and convert that folder"]
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    found = []
    if rope != "default":
        found.append(f"rotary positions of the kind '{rope}'")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        found.append(f"a sliding window of {window} positions")
    if getattr(config, "mlp_bias", False):
        found.append("biases in the feed-forward layers")
    if kind in ("llama", "mistral") and getattr(config, "attention_bias", False):
        found.append("biases in the attention layers")  # transformers' reader leaves them out
    width = int(getattr(config, "head_dim", None) or 0)
    if kind == "qwen3" and width != _QWEN3_WIDTH:
        found.append(f"heads of {width} coordinates")  # transformers' reader knows one width
    if getattr(config, "hidden_act", "silu") != "silu":
        found.append(f"the activation '{config.hidden_act}'")
    return [f"a base with {what} cannot be written as GGUF; expected none; export with --merge, "
            "and convert that folder" for what in found]


def default_precision(model: PreTrainedModel) -> Precision:
    """float32 where the file stays within 1 GB, so that it writes what the merged model writes to
    the last word; above it float16, which rounds: where two words are nearly equally likely, it may
    write the other one."""
    tied = bool(model.config.tie_word_embeddings)
    held = sum(weight.numel() for name, weight in model.state_dict().items()
               if not (tied and name == "lm_head.weight"))
    return "f32" if held <= _SMALL else "f16"


def require_writer() -> None:
    """Raise in one line where the package that writes GGUF files is missing."""
    try:
        import gguf  # noqa: F401  # optional
    except ImportError as error:
        raise ModelError(
            f"a GGUF file needs the package gguf, and it is missing; {install('gguf')}") from error


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path,
               precision: Precision, name: str) -> Path:
    """Write a model and its tokenizer as ``model.gguf``, beside it the ``Modelfile`` that Ollama
    asks for, and read the file back.

    Args:
        model: a plain transformers model.
        tokenizer: its tokenizer.
        folder: where; it exists.
        precision: of matrices, where their rows are whole blocks of 32 numbers for "q8_0"; other
            tensors are float32.
        name: that the file gives the model.

    Returns:
        The file.

    Raises:
        ModelError: gguf is missing, the model or the tokenizer is of a kind that cannot be written,
            or the file does not read back as it was written.
    """
    require_writer()
    problems = gguf_problems(model.config)
    require(not problems, ModelError, "; ".join(problems))
    tokens = gguf_tokens(tokenizer, int(model.get_input_embeddings().weight.shape[0]))
    from gguf import GGUFWriter  # optional

    form, file = ARCHITECTURES[model.config.model_type], folder / FILE
    writer = GGUFWriter(file, form.name)
    _write_shape(writer, model.config, precision, name)
    _write_tokens(writer, tokens)
    for place, weight in _tensors(model, form):
        kind = _kind(place, weight, precision)
        writer.add_tensor(place, _quantised(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "Modelfile").write_text(f"FROM ./{FILE}\n", encoding="utf-8")  # for Ollama
    check_gguf(file, model, tokenizer, precision)
    return file


def _write_shape(writer: GGUFWriter, config: PretrainedConfig, precision: Precision,
                 name: str) -> None:
    """What a reader must know to build the model."""
    from gguf import LlamaFileType  # optional

    kinds = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16,
             "bf16": LlamaFileType.MOSTLY_BF16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    writer.add_name(name)
    writer.add_file_type(kinds[precision])
    writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))


def _write_tokens(writer: GGUFWriter, tokens: GgufTokens) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens.split)
    writer.add_token_list(tokens.tokens)
    writer.add_token_types(tokens.kinds)
    writer.add_token_merges(tokens.merges)
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id),
                      ("unk", writer.add_unk_token_id), ("pad", writer.add_pad_token_id)):
        if name in tokens.special:
            add(tokens.special[name])
    writer.add_add_bos_token(tokens.begins)
    writer.add_add_eos_token(tokens.ends)
    if tokens.template is not None:
        writer.add_chat_template(tokens.template)


def _tensors(model: PreTrainedModel, form: GgufArchitecture) -> Iterator[tuple[str, Tensor]]:
    """Name in GGUF and value of every tensor, in float32; a tied head once."""
    places, config = _places(model, form), model.config
    tied = bool(config.tie_word_embeddings)
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        place = places.get_name(name, try_suffixes=(".weight", ".bias"))
        require(place is not None, ModelError,
                f"the tensor '{name}' has no place in a GGUF file of the architecture "
                f"'{form.name}'; expected the tensors of that architecture alone; export with "
                "--merge, and convert that folder")
        value = weight.detach().cpu().float()
        heads = int(config.num_attention_heads if ".q_proj." in name
                    else config.num_key_value_heads if ".k_proj." in name else 0)
        yield str(place), _neighbours(value, heads) if form.turned and heads else value


def _places(model: PreTrainedModel, form: GgufArchitecture) -> TensorNameMap:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map  # optional

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == form.name)
    return get_tensor_name_map(arch, int(model.config.num_hidden_layers))


def _neighbours(weight_MX: Tensor, heads: int) -> Tensor:
    """Rows of every head, its first half and its second, in turns: from pairs half a head apart to
    pairs of neighbours."""
    halves = weight_MX.reshape(heads, 2, -1, *weight_MX.shape[1:])
    return halves.transpose(1, 2).reshape(weight_MX.shape)


def _kind(place: str, weight: Tensor, precision: Precision) -> GGMLQuantizationType:
    """How a tensor is stored: vectors in float32, and matrices that do not divide into blocks in
    float16."""
    from gguf import GGMLQuantizationType as Kind  # optional

    if weight.ndim < 2 or place.endswith("_norm.weight"):
        return Kind.F32
    if precision == "q8_0" and weight.shape[-1] % _BLOCK:
        return Kind.F16
    return {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}[precision]


def _quantised(weight: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    from gguf import GGMLQuantizationType as Kind  # optional
    from gguf import quantize  # optional

    if kind is Kind.F16:
        most = float(torch.finfo(torch.float16).max)
        require(bool(weight.abs().max() <= most), ModelError,
                "a weight is larger than float16 can hold; expected smaller ones; choose "
                "--precision bf16")
    return quantize(np.ascontiguousarray(weight.numpy()), kind)


@torch.no_grad()
def check_gguf(file: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
               precision: Precision) -> None:
    """Read a file with transformers and hold weights, logits and vocabulary against what was
    written.

    Raises:
        ModelError: something differs by more than the precision rounds; tensors are named.
    """
    # takes seconds to import
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            found = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32).eval()
            words = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(f"transformers cannot read {file} ({cause}); expected the model that was "
                         "written; export with --merge, and convert that folder") from error
    weights, logits = _ROUNDING[precision]
    held, wanted = found.state_dict(), model.state_dict()
    faults = [name for name in wanted
              if name not in held or not _near(held[name], wanted[name].cpu().float(), weights)]
    if not faults:
        vocabulary = int(model.config.vocab_size)
        ids = (torch.arange(_TOKENS) * 7919 % vocabulary)[None]
        ours = model(input_ids=ids.to(model.device), use_cache=False).logits.cpu().float()
        theirs = found(input_ids=ids, use_cache=False).logits
        apart = float((ours - theirs).square().mean().sqrt()) / max(float(ours.std()), 1e-3)
        faults += [] if apart <= logits else ["the logits"]
    known: Mapping[str, int] = words.get_vocab()
    own: Mapping[str, int] = tokenizer.get_vocab()
    faults += ["the vocabulary"] if any(known.get(word) != i for word, i in own.items()) else []
    faults += [f"{name}_token_id" for name in ("bos", "eos") if getattr(
        words, f"{name}_token_id") != getattr(tokenizer, f"{name}_token_id")]
    require(not faults, ModelError,
            f"{file} does not read back as it was written: {len(faults)} differ "
            f"({', '.join(faults[:6])}); expected the merged model; export with --merge, and "
            "convert that folder")


def _near(found: Tensor, wanted: Tensor, share: float) -> bool:
    """Whether numbers agree to a share of the largest of their block, whatever the block's
    place."""
    if found.shape != wanted.shape:
        return False
    apart, size = (found - wanted).abs().flatten(), wanted.abs().flatten()
    short = -len(size) % _BLOCK
    apart, size = (torch.nn.functional.pad(one, (0, short)).view(-1, _BLOCK)
                   for one in (apart, size))
    return bool((apart.amax(1) <= share * size.amax(1) + 1e-12).all())
