"""Tensors as bytes and back: a safetensors file in memory, which keeps their order.

Adapters may travel narrower (``engine.wire``): factors of float32 as "float16" or "int8" with a
scale a row, by the code and with the error bounds of ``training/activation_codec.py``; everything
else, bfloat16 too, travels as it is. Whoever packs measures the error.

safetensors sorts by kind of number and name, and the order of a sum decides its last bit. So the
name of a tensor in the file is "000012|part|name": its place, the part of a coded tensor ("" where
it is whole) and its own name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from aulait.core.errors import WireError, require
from aulait.core.types import Tensors
from aulait.training.activation_codec import Wire, decode, encode

KINDS: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
                "float64": torch.float64, "int8": torch.int8, "uint8": torch.uint8,
                "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
                "bool": torch.bool}
MOST_TENSORS: Final = 100_000
MOST_DIMENSIONS: Final = 8
MOST_NAME: Final = 400
MOST_LIST_BYTES: Final = 16 * 1024 * 1024  # of safetensors' own head, which lists the tensors
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_KEY: Final = re.compile(r"(\d{6})\|(data|unit|scale|)\|(.*)", re.DOTALL)


@dataclass(frozen=True)
class Body:
    """Tensors ready to travel; made once for all sites that are sent the same.

    Attributes:
        raw: their bytes; empty where there are no tensors.
        error: largest error that a narrower wire made, over the largest value of its tensor; 0
            where nothing was coded.
    """

    raw: bytes
    error: float = 0.0


def pack_tensors(tensors: Tensors, wire: Wire = "float32") -> Body:
    """Tensors as bytes.

    Raises:
        WireError: a tensor is of a kind that cannot travel, or there are too many.
    """
    if not tensors:
        return Body(b"")
    require(len(tensors) <= MOST_TENSORS, WireError, f"{len(tensors):,} tensors cannot travel")
    flat, worst = {}, 0.0
    for place, (name, tensor) in enumerate(tensors.items()):
        require(len(name) <= MOST_NAME, WireError,
                f"the name of a tensor, '{name[:40]}', cannot travel")
        coded = _coded(tensor, wire)
        if "" not in coded:
            worst = max(worst, _error(tensor, coded))
        for part, own in coded.items():
            flat[f"{place:06d}|{part}|{name}"] = _dense(name, own)
    return Body(tensors_to_bytes(_apart(flat)), worst)


def unpack_tensors(raw: bytes) -> Tensors:
    """Tensors from bytes, decoded, in the order in which they were packed.

    Raises:
        WireError: the bytes are not what ``pack_tensors`` makes.
    """
    if not raw:
        return {}
    require(len(raw) >= 8 and int.from_bytes(raw[:8], "little") <= MOST_LIST_BYTES, WireError,
            "the list of tensors of a message is none, or too long")
    try:
        flat = tensors_from_bytes(raw)
    except Exception as error:  # safetensors' own error, or what a strange kind or shape raises
        raise WireError("the tensors of a message cannot be read "
                        f"({type(error).__name__}: {str(error)[:200]})") from error
    require(len(flat) <= 3 * MOST_TENSORS, WireError, "a message holds too many tensors")
    coded: dict[tuple[int, str], Tensors] = {}
    for key, tensor in flat.items():
        place, part, name = _parsed_key(key, tensor)
        coded.setdefault((place, name), {})[part] = tensor
    return _whole(coded)


def data_bytes(raw: bytes) -> int:
    """Bytes of the numbers alone in what ``pack_tensors`` made, without the list of tensors."""
    return max(0, len(raw) - 8 - int.from_bytes(raw[:8], "little")) if raw else 0


def _parsed_key(key: str, tensor: Tensor) -> tuple[int, str, str]:
    """Place, part and name of a tensor of the file.

    Raises:
        WireError: it is none of ours.
    """
    found = _KEY.fullmatch(key)
    if found is None or len(found[3]) > MOST_NAME:
        raise WireError(f"a message holds a tensor under the name '{key[:80]}'")
    require(tensor.dtype in _NAMES and tensor.ndim <= MOST_DIMENSIONS, WireError,
            f"a message holds a tensor of {tensor.dtype} with {tensor.ndim} dimensions")
    return int(found[1]), found[2], found[3]


def _whole(coded: dict[tuple[int, str], Tensors]) -> Tensors:
    """Coded tensors decoded, by name, in order of their places."""
    whole: Tensors = {}
    places = sorted(place for place, _ in coded)
    require(places == [*range(len(coded))], WireError, "the tensors of a message are not in order")
    for (_, name), parts in sorted(coded.items(), key=lambda item: item[0][0]):
        require(name not in whole, WireError, f"tensor '{name[:80]}' is in a message twice")
        if "" in parts:
            require(len(parts) == 1, WireError, f"tensor '{name[:80]}' is in a message twice")
            whole[name] = parts[""]
            continue
        data = decode(parts)
        require(data.ndim == 3 and len(data) == 1, WireError,
                f"tensor '{name[:80]}' is coded and has not two dimensions")
        whole[name] = data[0]
    return whole


def _coded(tensor: Tensor, wire: Wire) -> Tensors:
    """The parts of a tensor as it travels; one part "" where it travels as it is."""
    factor = tensor.dtype == torch.float32 and tensor.ndim == 2 and tensor.numel() > 0
    if wire == "float32" or not factor or not bool(torch.isfinite(tensor.detach()).all()):
        return {"": tensor}
    return encode(tensor[None], wire)


def _error(tensor: Tensor, coded: Tensors) -> float:
    """Largest error of a coded tensor over its largest value."""
    largest = float(tensor.abs().max())
    if not math.isfinite(largest) or largest == 0:
        return 0.0
    return float((decode(coded)[0] - tensor).abs().max()) / largest


def _dense(name: str, tensor: Tensor) -> Tensor:
    """A tensor as safetensors takes it: on the processor, its numbers side by side.

    Raises:
        WireError: it is of a kind that cannot travel.
    """
    require(tensor.dtype in _NAMES and tensor.layout == torch.strided
            and tensor.ndim <= MOST_DIMENSIONS, WireError,
            f"tensor '{name}' of {tensor.dtype} cannot travel; expected a dense one of "
            f"{', '.join(KINDS)}")
    return tensor.detach().to("cpu").contiguous()


def _apart(tensors: Tensors) -> Tensors:
    """The same tensors, none of which shares memory with another: safetensors refuses those."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found
