"""Orders and updates to packets and back: tensors as raw bytes, each with its name, kind of number
and shape.

Adapters may travel narrower (``engine.wire``): factors of float32 as "float16" or "int8" with a
scale a row, by the code and with the error bounds of ``encoding``; everything else travels as it
is. Whoever packs measures the error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aulait.core.errors import WireError, require
from aulait.core.types import REQUESTS, ClientRequest, ClientUpdate, Tensors
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.training.activation_codec import Wire, decode, encode

KINDS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
         "float64": torch.float64, "int8": torch.int8,
         "uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
         "bool": torch.bool}
_NAMES = {kind: name for name, kind in KINDS.items()}
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 8
MOST_NAME = 400
LARGEST_NUMBER = 1e30  # as a weight or in info
FOLD, FACTOR = "fold/", "factor/"  # in front of names of tensors that begin a split round
_ALIGNED = 8
_PARTS = "\x1f"  # between the name of a coded tensor and the part of it


@dataclass(frozen=True)
class Stamp:
    """Which message of which run this is; a update bears the stamp of what it answers.

    Attributes:
        run: 32 hexadecimal digits, one run folder.
        epoch: how often the coordinator has been started for it.
        number: of the message within the epoch and its client, counted from 1.
    """

    run: str
    epoch: int
    number: int

    def head(self) -> dict[str, Any]:
        """As it stands in a head."""
        return {"run": self.run, "epoch": self.epoch, "number": self.number}

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Stamp:
        """From a head.

        Raises:
            WireError: the head bears none.
        """
        run, epoch, number = head.get("run"), head.get("epoch"), head.get("number")
        sound = isinstance(run, str) and len(run) == 32 and set(run) <= set("0123456789abcdef")
        require(sound and _whole(epoch) and _whole(number), WireError,
                "a message bears no sound stamp (run, epoch, number)")
        return cls(str(run), int(str(epoch)), int(str(number)))


@dataclass(frozen=True)
class Body:
    """Tensors ready to travel; made once for all sites that are sent the same.

    Attributes:
        listed: for each tensor its name, kind of number and shape.
        raw: their bytes.
        error: largest error that a narrower wire made, over the largest value of its tensor; 0
            where nothing was coded.
    """

    listed: list[list[Any]]
    raw: bytes
    error: float = 0.0


def body(tensors: Tensors, wire: Wire = "float32") -> Body:
    """Tensors as bytes.

    Raises:
        WireError: a tensor is of a kind that cannot travel.
    """
    listed: list[list[Any]] = []
    parts: list[bytes] = []
    worst = 0.0
    for name in tensors:
        require(_PARTS not in name and len(name) <= MOST_NAME, WireError,
                f"the name of a tensor, '{name[:40]}', cannot travel")
        for key, tensor in _coded(name, tensors[name], wire).items():
            raw = _bytes(key, tensor)
            listed.append([key, _NAMES[tensor.dtype], list(tensor.shape)])
            parts.append(raw + bytes(-len(raw) % _ALIGNED))
        if wire != "float32" and _is_factor(tensors[name]):
            worst = max(worst, _error(tensors[name], wire))
    return Body(listed, b"".join(parts), worst)


def tensors(listed: Any, raw: bytes) -> Tensors:
    """Tensors from bytes, decoded.

    Raises:
        WireError: the list and the bytes do not belong together.
    """
    require(isinstance(listed, list) and len(listed) <= MOST_TENSORS, WireError,
            "the list of tensors of a message is none, or too long")
    buffer, at = bytearray(raw), 0
    flat: Tensors = {}
    for entry in listed:
        name, kind, shape = _entry(entry)
        require(name not in flat, WireError, f"tensor '{name}' is in a message twice")
        size = math.prod(shape) * KINDS[kind].itemsize
        require(at + size <= len(buffer), WireError,
                f"tensor '{name}' of shape {shape} is longer than the message")
        flat[name] = (torch.frombuffer(buffer, dtype=KINDS[kind], count=math.prod(shape),
            offset=at).reshape(shape).clone() if size
                      else torch.empty(shape, dtype=KINDS[kind]))
        at += size + -size % _ALIGNED
    require(at == len(buffer), WireError,
            f"a message has {len(buffer) - at} bytes that belong to no tensor")
    return _decoded(flat)


def request(given: ClientRequest, stamp: Stamp, brief: str, made: Body) -> Packet:
    """An order as it travels, not yet signed.

    Args:
        given: the order.
        stamp: which message it is.
        brief: digest of the brief it belongs to.
        made: its tensors.
    """
    return Packet({"kind": "order", **stamp.head(), "brief": brief, "client": given.client,
                   "stage": given.stage, "round": given.round,
                   "settings": dict(given.settings), "tensors": made.listed}, made.raw)


def read_order(packet: Packet) -> ClientRequest:
    """The order in a packet.

    Raises:
        WireError: it is none.
    """
    head = packet.head
    client, stage, round, settings = (head.get(key) for key in ("client", "stage", "round",
        "settings"))
    require(isinstance(client, str) and isinstance(stage, str) and _whole(round)
            and isinstance(settings, dict), WireError,
            "an order lacks its client, stage, round or settings")
    require(str(stage) in REQUESTS, WireError, "an order of an unknown stage")
    return REQUESTS[str(stage)](str(client), int(str(round)),
                                tensors(head.get("tensors"), packet.body), dict(head["settings"]))


def update(given: ClientUpdate, stamp: Stamp, wire: Wire = "float32") -> Packet:
    """A update as it travels. Sensitive."""
    made = body(given.tensors, wire)
    require(math.isfinite(given.weight), WireError, "the weight of a reply is not finite")
    info = {name: float(value) for name, value in given.info.items() if math.isfinite(float(value))}
    return Packet({"kind": "reply", **stamp.head(), "client": given.client, "weight": given.weight,
                   "info": info, "error": made.error,
                   "tensors": made.listed}, made.raw)


def read_reply(packet: Packet) -> ClientUpdate:
    """The update in a packet; what its tensors are worth is for the aggregator to judge.

    Raises:
        WireError: it is none.
    """
    client, weight, info = (packet.head.get(key) for key in ("client", "weight", "info"))
    require(isinstance(client, str) and _number(weight) and isinstance(info, dict)
            and len(info) <= 1000, WireError,
            "a reply lacks its client, weight or info")
    told = dict(packet.head["info"])
    require(all(isinstance(name, str) and _number(value) for name, value in told.items()),
            WireError,
            "the info of a reply holds something else than numbers")
    return ClientUpdate(str(client), tensors(packet.head.get("tensors"), packet.body),
                 float(packet.head["weight"]),
                 {name: float(value) for name, value in told.items()})


def refusal(stamp: Stamp, reason: str, why: str = "refused") -> Packet:
    """What a site answers instead of a update.

    Args:
        stamp: of what it refuses.
        reason: one line for the coordinator; it must not depend on the site's records.
        why: "refused" by the site's limits, "brief" when it does not know the run, "past" or
            "failed".
    """
    return Packet({"kind": "refusal", **stamp.head(), "reason": reason, "why": why})


def digest(text: str) -> str:
    """A short name of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _is_factor(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.ndim == 2 and tensor.numel() > 0


def _coded(name: str, tensor: Tensor, wire: Wire) -> Tensors:
    if wire == "float32" or not _is_factor(tensor) or not bool(
        torch.isfinite(tensor.detach()).all()):
        return {name: tensor}
    return {f"{name}{_PARTS}{part}": own for part, own in encode(tensor[None], wire).items()}


def _decoded(flat: Tensors) -> Tensors:
    whole: Tensors = {}
    coded: dict[str, Tensors] = {}
    for key, tensor in flat.items():
        name, apart, part = key.partition(_PARTS)
        if apart:
            coded.setdefault(name, {})[part] = tensor
        else:
            whole[name] = tensor
    for name, parts in coded.items():
        require(name not in whole, WireError, f"tensor '{name}' is in a message twice")
        data = decode(parts)
        require(data.ndim == 3 and len(data) == 1, WireError,
                f"tensor '{name}' is coded and has not two dimensions")
        whole[name] = data[0]
    return whole


def _error(tensor: Tensor, wire: Wire) -> float:
    largest = float(tensor.abs().max())
    if not math.isfinite(largest) or largest == 0:
        return 0.0
    return float((decode(encode(tensor[None], wire))[0] - tensor).abs().max()) / largest


def _bytes(name: str, tensor: Tensor) -> bytes:
    require(tensor.dtype in _NAMES and tensor.layout == torch.strided
            and tensor.ndim <= MOST_DIMENSIONS, WireError,
            f"tensor '{name}' of {tensor.dtype} cannot travel; expected a dense one of "
            f"{', '.join(KINDS)}")
    return (
        bytes(tensor.detach().to("cpu").contiguous().reshape(-1).view(
            torch.uint8).numpy().tobytes()) if tensor.numel() else b""
    )


def _entry(entry: Any) -> tuple[str, str, list[int]]:
    sound = (isinstance(entry, list) and len(entry) == 3 and all(isinstance(word, str)
        for word in entry[:2]) and entry[1] in KINDS
             and isinstance(entry[2], list))
    require(sound and len(entry[0]) <= MOST_NAME + 10 and len(entry[2]) <= MOST_DIMENSIONS
            and all(_whole(size) for size in entry[2]),
            WireError, "the list of tensors of a message holds what is no tensor")
    require(math.prod(max(1, size) for size in entry[2]) < 2**53, WireError,
            f"tensor '{entry[0][:80]}' has more cells than can be")
    return entry[0], entry[1], entry[2]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _number(value: Any) -> bool:
    """A number of which many can be summed."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool)
        and abs(value) <= LARGEST_NUMBER
    )
