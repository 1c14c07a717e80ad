"""The frozen base model: load it, let it wear adapters, export an adapter.

A base is loaded once and shared by all sites of the process. Every linear layer that may carry LoRA
is wrapped by ``SharedLinear``, which adds the low-rank updates of K sites to K groups of rows in
one pass over the frozen weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from aulait.core import hub, lora
from aulait.core.errors import ModelError, did_you_mean, install, require
from aulait.core.files import JsonObject
from aulait.core.lora import Shapes
from aulait.core.places import is_there, user_path
from aulait.core.types import Adapter, Scaling
from aulait.models import precision
from aulait.models import prefix_cache as prefix
from aulait.models.adaptable import not_adaptable
from aulait.models.adapter_dropout import layer_number
from aulait.models.attention import is_attention
from aulait.models.checkpointing import recompute_blocks
from aulait.models.grouped_update import is_plain
from aulait.models.head_loss import head_losses
from aulait.models.multi_lora_linear import SharedLinear
from aulait.models.named import BREW as BREW
from aulait.models.named import BUILT_IN, EXPECTED, folder_of, gguf_path
from aulait.models.packing import can_pack, gain, packed, register
from aulait.models.padding import (
    check_positions,
    check_tokens,
    embedding_rows,
    padding_id,
)
from aulait.models.prefix_cache import Prefix, lengths_of
from aulait.models.quiet import quiet
from aulait.models.spread import first_device, is_offloaded, spread_options

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

_GROUPS: Mapping[str, Callable[[str], bool]] = {"all-linear": lambda _: True,
                                                 "attention": is_attention}
_LINEAR = ("Conv1D", "Linear4bit", "Linear8bitLt")
LEAST_GAIN = 1.03  # padded over true tokens of a pass from which on it is packed


class ModelConfig(BaseModel):
    """``[model]``: the frozen base.

    Attributes:
        name: "brew" (built in), "smollm2" (extra ``smollm2``), a folder, a .gguf file or a folder
            with one (extra ``gguf``), or a Hugging Face id.
        kind: "causal" or "seq2seq".
        dtype: precision of the frozen weights; the adapter is always trained in float32. "auto" is
            bfloat16 where that is faster and has the same loss, else float32 (``precision``).
            "float16" is for accelerators: processors compute it slowly.
        context: tokens of a training sequence; longer texts are treated as ``data.too_long`` says.
        quant: "4bit" or "8bit" through bitsandbytes (extra ``quant``, needs CUDA); None for none.
        device: "auto" takes CUDA when there is one.
        device_map: spreads a base that does not fit one device, as transformers and accelerate do:
            "auto", or name of a module -> a device, "cpu" or "disk"; None puts all on ``device``.
        gradient_checkpointing: compute blocks again in the backward pass instead of remembering
            them: less memory, the same results, about a third more time.
        packing: read texts of unequal length behind one another without padding, where the model
            allows it and the device is a processor: faster, the same results to rounding.
        template: "auto" writes pairs and conversations in the chat template of the model's
            tokenizer where it has one; "plain" writes them plainly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "brew"
    kind: Literal["causal", "seq2seq"] = "causal"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context: int = Field(256, ge=8)
    quant: Literal["4bit", "8bit"] | None = None
    device: str = "auto"
    device_map: str | dict[str, int | str] | None = None
    gradient_checkpointing: bool = False
    packing: bool = True
    template: Literal["auto", "plain"] = "auto"


def or_auto(schema: JsonObject) -> None:
    """To the JSON schema of a number that may also be "auto" in a file."""
    kind = {key: schema.pop(key) for key in ("type", "minimum", "exclusiveMinimum", "anyOf")
            if key in schema}
    schema["anyOf"] = [*kind.get("anyOf", [kind]), {"const": "auto"}]


class AdapterConfig(BaseModel):
    """``[adapter]``: which layers carry LoRA, and how much of it.

    Attributes:
        rank: R, numbers that an adapter has for each column and row of a layer. "auto": as large as
            the noise allows, 8 without privacy.
        alpha: the update is alpha / R · B A. "auto", or left out where rank is "auto", follows the
            rank: 4 times it where clients are protected, else 2 times, so that a step is as long at
            every rank.
        scaling: "lora", or "rslora": alpha / sqrt(R) (PEFT's ``use_rslora``), which keeps larger
            ranks from learning more slowly.
        dropout: probability with which an entry of what an adapter reads is left out in training,
            in [0, 1) (PEFT's ``lora_dropout``). That of the base is always off.
        targets: "all-linear", "attention", or names of modules ("q_proj").
        layers: "all", or the number of last transformer blocks that carry an adapter, of the
            encoder and of the decoder where there are both. Fewer layers mean fewer coordinates
            under noise and a shorter backward pass.
        auto: which of rank, layers and alpha were "auto" in the file: rank and layers are then as
            large as noise allows (``privacy.target_ratio``), and stand here as they were chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: int = Field(8, ge=1, json_schema_extra=or_auto)
    alpha: float = Field(16.0, gt=0, json_schema_extra=or_auto)
    scaling: Scaling = "lora"
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"
    layers: Literal["all"] | int = Field("all", json_schema_extra=or_auto)
    auto: tuple[Literal["rank", "layers", "alpha"], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_auto(cls, given: object) -> object:
        """"auto" for a number, as a name in ``auto`` and the value to begin with."""
        if not isinstance(given, Mapping):
            return given
        first = {"rank": 1, "layers": "all", "alpha": 16.0}
        named = [name for name in first if given.get(name) == "auto"]
        if "rank" in named and "alpha" not in given:
            named.append("alpha")
        if not named:
            return given
        known = [*(given.get("auto") or ()), *named]
        return {**given, **{name: first[name] for name in named},
                "auto": tuple(name for name in first if name in known)}


@dataclass
class Base:
    """A loaded base model.

    Attributes:
        model: the Hugging Face model, frozen, in evaluation mode, its linear layers wrapped.
        tokenizer: its tokenizer.
        device: where the weights lie.
        config: what it was loaded from, its ``dtype`` settled.
        slots: name of every wrapped layer -> its wrapper.
        split_head: whether logits equal head(hidden states), so that the head may run on chosen
            positions only.
        prefix: remembers what leading blocks without an adapter say; None where the model does not
            allow it.
        packs: whether sequences of unequal length are read behind one another (``packing``).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    config: ModelConfig
    slots: dict[str, SharedLinear] = field(default_factory=dict)
    split_head: bool = False
    prefix: Prefix | None = None
    packs: bool = False

    @property
    def pad(self) -> int:
        """The token that fills rows up."""
        return padding_id(self.model, self.tokenizer)

    @cached_property
    def unadaptable(self) -> Mapping[str, str]:
        """Wrapped layers that cannot carry an adapter -> why, in one clause."""
        return not_adaptable(self.model, self.slots)

    @property
    def parameters(self) -> int:
        """Number of frozen parameters."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        """Memory of the frozen parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


def load_base(config: ModelConfig) -> Base:
    """Load, freeze and wrap a base model.

    Raises:
        ModelError: the name is neither built in, nor a folder or a file, nor reachable; or the
            extra it needs is missing.
    """
    device = torch.device("cuda" if torch.cuda.is_available()
                          else "cpu") if config.device == "auto" else torch.device(
        config.device)
    config, model, tokenizer = _in_its_precision(config, device)
    check_tokens(model, tokenizer, config.name)
    check_positions(model, config.context, config.name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.requires_grad_(False).eval()
    if config.device_map is not None:
        device = first_device(model)
    base = Base(model, tokenizer, device, config)
    wrap(base)
    if config.gradient_checkpointing:
        recompute_blocks(model, config.name)
    if config.dtype == "float16":
        _check_finite(base)
    base.split_head = config.kind == "causal" and _head_splits(base)
    if base.split_head and config.device_map is None:
        base.prefix = prefix.prefix_of(model.get_decoder())
        base.packs = config.packing and can_pack(model.get_decoder(), config.context)
    return base


def check_reachable(name: str) -> None:
    """That a Hugging Face id can be asked for, or was kept when it could be: a glance, for before
    the work that precedes loading.

    Raises:
        ModelError: the hub cannot be reached, and nothing of the model was kept.
    """
    if name in BUILT_IN or gguf_path(name) is not None or is_there(user_path(name)):
        return
    hub.settle(name)
    if not hub.offline():
        return
    # takes a while to import
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        kept = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return  # what is wrong with the name is told where it is loaded
    require(kept, ModelError,
            f"model.name = '{name}' cannot be loaded (the hub cannot be reached, and nothing of "
            f"that name is kept on this machine); expected {EXPECTED}")


def _in_its_precision(config: ModelConfig, device: torch.device,
                      ) -> tuple[ModelConfig, PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in the precision asked for, and with "auto" in the one that suits it."""
    if config.dtype != "auto":
        return config, *_fetch(config, device)
    full = config.model_copy(update={"dtype": "float32"})
    model, tokenizer = _fetch(full, device)
    alone = config.quant is None and config.device_map is None
    if alone and precision.worth_trying(model, device):
        half = config.model_copy(update={"dtype": "bfloat16"})
        narrow, _ = _fetch(half, device)
        if precision.says_the_same(narrow, model, tokenizer):
            return half, narrow, tokenizer
    return full, model, tokenizer


def _fetch(config: ModelConfig, device: torch.device,
           ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    # takes seconds to import
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    register(ALL_ATTENTION_FUNCTIONS)
    name = folder_of(config.name)
    auto = AutoModelForCausalLM if config.kind == "causal" else AutoModelForSeq2SeqLM
    options: dict[str, object] = {"dtype": getattr(torch, config.dtype)}
    if config.quant:
        options["quantization_config"] = _quantisation(config.quant)
        options["device_map"] = {"": device}
    if config.device_map is not None:
        options |= spread_options(config.device_map)
    hub.settle(str(name))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = auto.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = (
            str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        )
        raise ModelError(
            f"model.name = '{config.name}' cannot be loaded ({reason}); expected {EXPECTED}"
        ) from error
    placed = config.quant or config.device_map is not None
    return (model if placed else model.to(device)), tokenizer


def _quantisation(quant: str) -> QuantizationConfigMixin:
    try:
        # optional
        import bitsandbytes  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise ModelError(
            f"model.quant needs bitsandbytes and it is missing; {install('quant')}") from error
    require(torch.cuda.is_available(), ModelError,
            "model.quant needs a CUDA device and none was found; remove model.quant")
    return BitsAndBytesConfig(load_in_4bit=quant == "4bit", load_in_8bit=quant == "8bit")


def wrap(base: Base) -> None:
    """Wrap every linear layer but the output head, in the order of the forward pass."""
    head = base.model.get_output_embeddings()
    found = [(name, module) for name, module in base.model.named_modules() if is_linear(module)
             and module is not head]
    for name, module in found:
        parent = base.model.get_submodule(name.rpartition(".")[0])
        base.slots[name] = SharedLinear(module, layer_number(name))
        setattr(parent, name.rpartition(".")[2], base.slots[name])


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, also GPT-2's and quantised ones, and what is derived from
    one and answers as one: routers of experts do not."""
    if type(module) is nn.Linear or type(module).__name__ in _LINEAR:
        return True
    return isinstance(module, nn.Linear) and _answers_as_linear(module)


@torch.no_grad()
def _answers_as_linear(module: nn.Linear) -> bool:
    """Whether two made-up rows come out as weights times rows plus bias."""
    rows = torch.linspace(-1.0, 1.0, 2 * module.in_features).view(2, -1).to(module.weight)
    found = module(rows)
    wanted = nn.functional.linear(rows, module.weight, module.bias)
    return isinstance(found, Tensor) and found.shape == wanted.shape and bool(
        torch.allclose(found, wanted, rtol=1e-2, atol=1e-3))


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(M, N): Conv1D of GPT-2 stores (in, out), everything else (out, in)."""
    if type(module).__name__ == "Conv1D":
        return int(module.weight.shape[1]), int(module.weight.shape[0])  # type: ignore[index]
    return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]


def targets(base: Base, config: AdapterConfig) -> Shapes:
    """Layer name -> (M, N) of the layers that carry the adapter.

    Raises:
        ModelError: nothing matches; the message names the nearest module.
    """
    if isinstance(config.targets, str) and config.targets in _GROUPS:
        group = _GROUPS[config.targets]
        chosen = {name for name in base.slots if group(name)} - set(base.unadaptable)
        require(bool(chosen), ModelError,
                f"adapter.targets = '{config.targets}' leaves no layer of {base.config.name} that "
                "can carry an adapter; name its layers, or choose another base")
    else:
        chosen = _named(base, {config.targets} if isinstance(config.targets, str)
                        else set(config.targets))
    if config.layers != "all":
        chosen &= _last_blocks(base, int(config.layers))
    return {name: shape_of(base.slots[name].inner) for name in base.slots if name in chosen}


def _named(base: Base, words: set[str]) -> set[str]:
    """Layers by their full or last names.

    Raises:
        ModelError: one names nothing, or a layer that cannot carry an adapter.
    """
    short = {name: name.rpartition(".")[2] for name in base.slots}
    for word in sorted(words):
        require(any(word in (name, short[name]) for name in base.slots), ModelError,
                f"adapter.targets names '{word}', which matches no linear layer of "
                f"{base.config.name}; {did_you_mean(word, set(short.values()))}")
    chosen: set[str] = set()
    for word in words:
        meant = {name for name in base.slots if word in (name, short[name])}
        left = meant - set(base.unadaptable)
        for name in sorted(meant) if not left else ():
            raise ModelError(
                f"adapter.targets names '{name}' of {base.config.name}, which cannot carry an "
                f"adapter: {base.unadaptable[name]}; name other layers, or 'all-linear' for all "
                "that can")
        chosen |= left
    require(bool(chosen), ModelError,
            f"adapter.targets is empty; expected 'all-linear', 'attention' or some of: "
            f"{', '.join(sorted(set(short.values())))}")
    return chosen


def block_count(base: Base) -> int:
    """Transformer blocks; of an encoder-decoder those of the longer stack."""
    return max(map(len, _blocks(base)[1].values()), default=0)


def _blocks(base: Base) -> tuple[dict[str, tuple[str, int]], dict[str, list[int]]]:
    """Layer -> its stack and block, and stack -> the numbers of its blocks: an encoder-decoder has
    two."""
    places = {name: (stack, int(number)) for name in base.slots
              for stack, number in re.findall(r"^(.*?)\.(\d+)\.", name)}
    stacks: dict[str, list[int]] = {stack: [] for stack, _ in places.values()}
    for stack, number in sorted(set(places.values())):
        stacks[stack].append(number)
    return places, stacks


def _last_blocks(base: Base, count: int) -> set[str]:
    """Layers of the last blocks of every stack."""
    places, stacks = _blocks(base)
    most = max(map(len, stacks.values()), default=0)
    require(0 < count <= most, ModelError,
            f"adapter.layers = {count}; expected 'all' or 1 to {most}, the blocks of "
            f"{base.config.name}")
    return {name for name, (stack, number) in places.items() if number in stacks[stack][-count:]}


@contextmanager
def wearing(base: Base, adapters: Sequence[Adapter]) -> Iterator[None]:
    """Let the base wear K adapters of the same layers, ranks padded to the largest; on leaving it
    is bare again."""
    layers = list(adapters[0].factors) if adapters else []
    try:
        for name in layers:
            rank = max(adapter.factors[name][0].shape[0] for adapter in adapters)
            pairs = [lora.pad(*adapter.factors[name], rank) for adapter in adapters]
            base.slots[name].worn = (
                torch.stack([a for a, _ in pairs]).to(base.device),
                torch.stack([b for _, b in pairs]).to(base.device),
                torch.tensor([adapter.scale(name) for adapter in adapters], device=base.device),
            )
        yield
    finally:
        for name in layers:
            base.slots[name].worn = None


@contextmanager
def in_basis(base: Base, basis: Mapping[str, tuple[Tensor, Tensor]] | None) -> Iterator[None]:
    """Let the adapters of some layers be coordinates in a basis.

    Args:
        base: what wears them.
        basis: layer -> (V_PN, U_MP): factors A (R, P) and B (P, R) then mean the update
            U · scale · B A · V; None for factors as they are.
    """
    layers = dict(basis or {})
    try:
        for name, (v_PN, u_MP) in layers.items():
            base.slots[name].basis = (v_PN.to(base.device), u_MP.to(base.device))
        yield
    finally:
        for name in layers:
            base.slots[name].basis = None


def check_foldable(base: Base) -> None:
    """Raise when dense updates cannot be added to the weights of a base.

    Raises:
        ModelError: it is quantised, or lies partly off its devices.
    """
    require(not is_offloaded(base.model), ModelError,
            "a base that lies partly off its devices (model.device_map) cannot hold dense updates; "
            "choose a method that never folds ('fedit', 'ffa', 'flexlora'), or a device_map "
            "without 'cpu' beside GPUs and without 'disk'")
    require(not base.config.quant, ModelError,
            "a quantised base cannot hold dense updates; choose a method that never folds "
            "('fedit', 'ffa', 'flexlora'), or no model.quant")


@contextmanager
def folded(base: Base, updates: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Let the frozen weights of some layers hold dense updates (M, N); on leaving they are bit for
    bit as before.

    Raises:
        ModelError: the base is quantised or lies partly off its devices, so that nothing can be
            added to its weights.
    """
    if updates:
        check_foldable(base)
    held: dict[str, Tensor] = {}
    try:
        for name, update_MN in (updates or {}).items():
            inner: Any = base.slots[name].inner
            held[name] = inner.weight.data
            turned = update_MN.T if type(inner).__name__ == "Conv1D" else update_MN
            inner.weight.data = (held[name].float() + turned.to(held[name].device)).to(
                held[name].dtype)
        yield
    finally:
        for name, weight in held.items():
            base.slots[name].inner.weight.data = weight


@torch.no_grad()
def _check_finite(base: Base) -> None:
    """Raise when float16 is too narrow for a base: what it says of made-up tokens overflows.

    Raises:
        ModelError: in one line.
    """
    ids = torch.arange(8, device=base.device)[None] % embedding_rows(base.model)
    more = {"decoder_input_ids": ids} if base.config.kind == "seq2seq" else {}
    out = base.model(input_ids=ids, use_cache=False, **more).logits
    require(bool(out.isfinite().all()), ModelError,
            f"model.dtype = 'float16' is too narrow for {base.config.name}, whose logits overflow; "
            "set model.dtype = 'bfloat16' or 'float32'")


@torch.no_grad()
def _head_splits(base: Base) -> bool:
    """Whether logits are exactly head(last hidden state): not so for models that cap or scale their
    logits."""
    head = base.model.get_output_embeddings()
    decoder = base.model.get_decoder() if hasattr(base.model, "get_decoder") else None
    if head is None or decoder is None or decoder is base.model:
        return False
    ids = torch.arange(4, device=base.device)[None]
    hidden = decoder(input_ids=ids, use_cache=False)[0]
    return bool(torch.allclose(head(hidden).float(),
        base.model(input_ids=ids, use_cache=False).logits.float(), atol=1e-5))


def logits(base: Base, ids_BT: Tensor, chosen_BT: Tensor, **extra: Any) -> Tensor:
    """Logits (number chosen, V) in float32 at the chosen positions of right-padded sequences.

    Right padding needs no mask in a causal model: no real token ever looks at what follows it.
    """
    if base.split_head:
        hidden_XD = _chosen_states(base, ids_BT, chosen_BT).to(base.device)
        out: Tensor = base.model.get_output_embeddings()(hidden_XD)
        return out.to(base.device).float()
    full: Tensor = base.model(input_ids=ids_BT, use_cache=False, **extra).logits
    return full.to(base.device)[chosen_BT].float()


def token_losses(base: Base, ids_BT: Tensor, chosen_BT: Tensor, target_X: Tensor) -> Tensor:
    """Nats (X,) of the targets of chosen positions of right-padded sequences."""
    head = base.model.get_output_embeddings()
    if base.split_head and is_plain(head):
        hidden_XD = _chosen_states(base, ids_BT, chosen_BT).to(head.weight.device)
        return head_losses(head, hidden_XD, target_X.to(head.weight.device)).to(base.device)
    return nn.functional.cross_entropy(logits(base, ids_BT, chosen_BT), target_X, reduction="none")


def _chosen_states(base: Base, ids_BT: Tensor, chosen_BT: Tensor) -> Tensor:
    """Last hidden states at the chosen positions of right-padded sequences. What follows the last
    chosen position of a sequence is not read."""
    decoder, lengths_B = base.model.get_decoder(), lengths_of(chosen_BT)
    width = int(lengths_B.max())
    ids_BT, chosen_BT = ids_BT[:, :width], chosen_BT[:, :width]
    if base.packs and gain(lengths_B.tolist(), width) > LEAST_GAIN:
        rows = packed(ids_BT, lengths_B)
        states = base.prefix.packed(rows) if base.prefix else rows.states(decoder)
        kept_BT = torch.arange(width, device=ids_BT.device) < lengths_B[:, None]
        return states[0][chosen_BT[kept_BT]]
    hidden: Tensor = (base.prefix.hidden(ids_BT, chosen_BT) if base.prefix
                      else decoder(input_ids=ids_BT, use_cache=False)[0])
    return hidden[chosen_BT]
