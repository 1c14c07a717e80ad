"""Messages as a stranger makes them: heads as plain tables, nothing in them checked."""

from __future__ import annotations

import json
from typing import Any

from aulait.engines.deployment.protocol.envelope import Packet, packet_bytes, packet_from
from aulait.engines.deployment.protocol.messages import Stamp
from aulait.engines.deployment.protocol.tensor_codec import pack_tensors, unpack_tensors

LIMIT = 2**31


def made(head: Any, body: bytes = b"", signature: bytes = b"") -> Packet:
    """A packet with this head."""
    return Packet(json.dumps(head).encode(), body, signature)


class Seen:
    """A packet with its head taken apart."""

    def __init__(self, packet: Packet) -> None:
        self.packet, self.body, self.signature = packet, packet.body, packet.signature
        self.head: dict[str, Any] = json.loads(packet.head)

    @property
    def kind(self) -> str:
        return self.head["kind"]

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.head["run"], self.head["epoch"], self.head["number"])

    @property
    def tensors(self) -> Any:
        return unpack_tensors(self.body)


def seen(raw: bytes) -> Seen:
    return Seen(packet_from(raw, LIMIT))


def remade(raw: bytes, **head: Any) -> bytes:
    """A message with another head, its checksum right."""
    old = seen(raw)
    return packet_bytes(made({**old.head, **head}, old.body))


def with_tensors(raw: bytes, change: Any) -> bytes:
    """A message whose tensors are changed one by one, its checksum right."""
    old = seen(raw)
    return packet_bytes(Packet(old.packet.head, pack_tensors({name: change(tensor) for name, tensor in old.tensors.items()}).raw))
