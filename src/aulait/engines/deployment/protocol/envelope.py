"""What travels between processes and machines: a head of plain values and a body of bytes, sealed
by a checksum.

    magic 8 · head length 4 · signature length 2 · body length 8 · sha256 of the rest 32 · signature
    · head (JSON) · body

Standard library only: the process that Flower starts for every message loads this file and nothing
heavy. Nothing is
ever unpickled or evaluated; lengths are checked against a limit before memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aulait.core.errors import WireError

MAGIC = b"AULAIT\x00\x01"  # the last byte is the version of this layout
_LENGTHS = struct.Struct(">IHQ")
START = len(MAGIC) + _LENGTHS.size + 32
MOST_HEAD_BYTES = 16 * 1024 * 1024
MOST_SIGNATURE_BYTES = 256
# of a whole number: what is larger cannot become a float and would raise far from here
MOST_DIGITS = 20
MOST_DEPTH = 32  # of lists in lists: what is deeper cannot be written to a log again


@dataclass(frozen=True)
class Packet:
    """One message.

    Attributes:
        head: what it is, as JSON values; "kind" always. NaN and infinity cannot travel in it.
        body: tensors one after the other; the head says which.
        signature: of ``content`` by the coordinator; empty on the way back, where Flower's node
            keys say who speaks.
    """

    head: Mapping[str, Any]
    body: bytes = b""
    signature: bytes = b""

    @property
    def kind(self) -> str:
        """Of message."""
        return str(self.head.get("kind", ""))

    def content(self) -> bytes:
        """What is signed: the head as it travels and the hash of the body."""
        return _head(self.head) + hashlib.sha256(self.body).digest()


@dataclass
class Seal:
    """The fixed part in front, once it has been looked at."""

    head_bytes: int
    signature_bytes: int
    body_bytes: int
    digest: bytes
    seen: Any = field(default_factory=hashlib.sha256)


def chunks(packet: Packet) -> Iterator[bytes]:
    """The bytes of a packet, front first, the body uncopied."""
    head = _head(packet.head)
    digest = hashlib.sha256(packet.signature + head)
    digest.update(packet.body)
    yield MAGIC + _LENGTHS.pack(len(head), len(packet.signature),
                                len(packet.body)) + digest.digest() + packet.signature + head
    if packet.body:
        yield packet.body


def dumps(packet: Packet) -> bytes:
    """The bytes of a packet in one piece."""
    return b"".join(chunks(packet))


def loads(raw: bytes, limit: int) -> Packet:
    """A packet from its bytes.

    Args:
        raw: all of them, and nothing behind.
        limit: most bytes of head and body.

    Raises:
        WireError: it is no packet, of another version, too large, cut or changed on the way.
    """
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        part = raw[at : at + count]
        at += count
        return part

    packet = read(take, limit)
    if at != len(raw):
        raise WireError(f"a message has {len(raw) - at} bytes behind its end; expected none")
    return packet


def read(take: Callable[[int], bytes], limit: int) -> Packet:
    """A packet from a source of bytes; ``take(n)`` returns n of them, or fewer at the end.

    Raises:
        WireError: as ``loads``.
    """
    seal = opened(take(START), limit)
    signature, head = take(seal.signature_bytes), take(seal.head_bytes)
    body = take(seal.body_bytes) if seal.body_bytes else b""
    if len(signature) + len(head) + len(
        body) != seal.signature_bytes + seal.head_bytes + seal.body_bytes:
        raise WireError("a message ended early; it was cut on the way and has to be sent again")
    for part in (signature, head, body):
        seal.seen.update(part)
    if seal.seen.digest() != seal.digest:
        raise WireError(
            "a message does not match its checksum; it was changed on the way and has to be sent "
            "again")
    return Packet(_parsed(head), body, signature)


def kind_of(raw: bytes, limit: int) -> str:
    """The kind of a packet, its body not looked at; for whoever only hands it on.

    Raises:
        WireError: as ``loads``, but for the checksum.
    """
    seal = opened(raw[:START], limit)
    at = START + seal.signature_bytes
    return str(_parsed(raw[at : at + seal.head_bytes])["kind"])


def opened(start: bytes, limit: int) -> Seal:
    """The fixed part, checked before anything behind it is read.

    Raises:
        WireError: as ``loads``.
    """
    if len(start) < START:
        raise WireError(
            "a message ended before its head; it was cut on the way and has to be sent again")
    if start[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise WireError("found bytes that are no message of aulait")
    if start[len(MAGIC) - 1] != MAGIC[-1]:
        raise WireError(
            f"a message has layout {start[len(MAGIC) - 1]}, expected {MAGIC[-1]}; run the same "
            "version of aulait on both sides")
    head, signature, body = _LENGTHS.unpack_from(start, len(MAGIC))
    if head > MOST_HEAD_BYTES or signature > MOST_SIGNATURE_BYTES or head + body > limit:
        raise WireError(
            f"a message of {head + body:,} bytes found, expected at most {limit:,} (a head of "
            f"{MOST_HEAD_BYTES:,}); raise the "
                        "limit message_bytes, or send less")
    return Seal(head, signature, body, start[-32:])


def _head(head: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(head, sort_keys=True, allow_nan=False, ensure_ascii=False,
                          separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise WireError(f"the head of a message holds what JSON does not: {error}") from error


def _parsed(raw: bytes) -> dict[str, Any]:
    def refuse(text: str) -> Any:
        raise ValueError(f"{text[:40]} is no number of a message")

    def whole(text: str) -> int:
        return int(text) if len(text) <= MOST_DIGITS else int(refuse(text))

    def broken(text: str) -> float:
        return float(text) if math.isfinite(float(text)) else float(refuse(text))

    try:
        head = json.loads(raw.decode("utf-8"), parse_constant=refuse, parse_int=whole,
                          parse_float=broken)
        _look_at(head)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the head of a message is no JSON: {error}") from error
    if not isinstance(head, dict) or not isinstance(head.get("kind"), str):
        raise WireError("the head of a message is no table with a 'kind'")
    return head


def _look_at(head: Any) -> None:
    """Refuse what a later hand could not write down again: lists too deep, half characters.

    Raises:
        ValueError: there is such a thing.
    """
    level = [head]
    for _ in range(MOST_DEPTH):
        for value in level:
            if isinstance(value, str) and not value.isascii():
                value.encode()  # raises for half a character
        inner = [part for value in level if isinstance(value, dict) for pair in value.items()
                 for part in pair]
        level = inner + [part for value in level if isinstance(value, list) for part in value]
        if not level:
            return
    raise ValueError(f"lists more than {MOST_DEPTH} deep")
