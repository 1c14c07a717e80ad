"""A packet in a Flower message and back: two arrays of raw bytes, which Flower cuts into pieces and
stores once.

Sites that are sent the same tensors share one array, so that a broadcast lies in the SuperLink
once. Raw bytes instead of Flower's own arrays, because those go through numpy, which has no
bfloat16, and their shapes would have to agree.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from aulait.core.errors import WireError, require
from aulait.engines.deployment.protocol.envelope import Packet, chunks, packet_from

NAME = "aulait"
FRONT, BODY = "front", "body"
_STYPE = "aulait.bytes"


def array(raw: bytes) -> Array:
    """Bytes as Flower stores them."""
    return Array("uint8", (len(raw),), _STYPE, raw)


def records(packet: Packet, body: Array | None = None) -> RecordDict:
    """A packet as the content of a message.

    Args:
        packet: what travels.
        body: its body as an array that other messages share; None makes one.
    """
    front = next(iter(chunks(packet)))
    parts = {FRONT: array(front)}
    if packet.body:
        parts[BODY] = body if body is not None else array(packet.body)
    return RecordDict({NAME: ArrayRecord(parts)})


def raw(content: RecordDict, limit: int) -> bytes:
    """The bytes of the packet in a message, as they go on to the worker; its checksum is looked at
    there.

    Raises:
        WireError: there is none, or it is too large.
    """
    record = content.get(NAME)
    require(isinstance(record, ArrayRecord) and FRONT in record and set(record) <= {FRONT, BODY},
            WireError,
            "found a message of another application, expected one of aulait")
    assert isinstance(record, ArrayRecord)
    parts = [record[name] for name in (FRONT, BODY) if name in record]
    require(all(part.stype == _STYPE for part in parts), WireError,
            "a message holds arrays of another kind, expected raw bytes")
    size = sum(len(part.data) for part in parts)
    require(size <= limit, WireError,
            f"a message of {size:,} bytes found, expected at most {limit:,}; raise "
            "limits.message_bytes")
    return b"".join(part.data for part in parts)


def packet(content: RecordDict, limit: int) -> Packet:
    """The packet in a message.

    Raises:
        WireError: there is none, or it is too large or damaged.
    """
    return packet_from(raw(content, limit), limit)
