"""How a message travels between processes and machines: a head, a body, a signature, a checksum.

    magic 8 · head length 4 · signature length 2 · body length 8 · sha256 of the rest 32 · signature
    · head (JSON, see ``messages``) · body (safetensors, see ``tensor_codec``)

Standard library only: the process that Flower starts for every message loads this file and nothing
heavy. Nothing is unpickled or evaluated; lengths are checked against a limit before memory is
taken.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from aulait.core.errors import WireError

# The last byte is the version of layout and messages: two versions refuse each other by it.
MAGIC: Final = b"AULAIT\x00\x03"
LENGTHS: Final = struct.Struct(">IHQ")
START: Final = len(MAGIC) + LENGTHS.size + 32
MOST_HEAD_BYTES: Final = 16 * 1024 * 1024
MOST_SIGNATURE_BYTES: Final = 256


@dataclass(frozen=True)
class Packet:
    """One message as bytes.

    Attributes:
        head: what it is, JSON.
        body: its tensors; empty where there are none.
        signature: of ``content`` by the coordinator; empty on the way back, where Flower's node
            keys say who speaks.
    """

    head: bytes
    body: bytes = b""
    signature: bytes = b""

    def content(self) -> bytes:
        """What is signed: the head as it travels and the hash of the body."""
        return self.head + hashlib.sha256(self.body).digest()


HEALTH: Final = Packet(b'{"kind":"health"}')
"""The question after the worker's health: not signed, and asked on the worker's machine only."""


@dataclass(frozen=True)
class Frame:
    """The fixed part in front of a packet, once it has been looked at."""

    head_bytes: int
    signature_bytes: int
    body_bytes: int
    digest: bytes


def chunks(packet: Packet) -> Iterator[bytes]:
    """The bytes of a packet: all in front of the body, then the body, uncopied."""
    digest = hashlib.sha256(packet.signature + packet.head)
    digest.update(packet.body)
    lengths = LENGTHS.pack(len(packet.head), len(packet.signature), len(packet.body))
    yield MAGIC + lengths + digest.digest() + packet.signature + packet.head
    if packet.body:
        yield packet.body


def packet_bytes(packet: Packet) -> bytes:
    """The bytes of a packet in one piece."""
    return b"".join(chunks(packet))


def packet_from(raw: bytes, limit: int) -> Packet:
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

    packet = receive_packet(take, limit)
    if at != len(raw):
        raise WireError(f"a message has {len(raw) - at} bytes behind its end; expected none")
    return packet


def receive_packet(take: Callable[[int], bytes], limit: int) -> Packet:
    """A packet from a source of bytes; ``take(n)`` returns n of them, or fewer at the end.

    Raises:
        WireError: as ``packet_from``.
    """
    frame = frame_of(take(START), limit)
    signature, head = take(frame.signature_bytes), take(frame.head_bytes)
    body = take(frame.body_bytes) if frame.body_bytes else b""
    found = len(signature), len(head), len(body)
    if found != (frame.signature_bytes, frame.head_bytes, frame.body_bytes):
        raise WireError("a message ended early; it was cut on the way and has to be sent again")
    digest = hashlib.sha256(signature + head)
    digest.update(body)
    if digest.digest() != frame.digest:
        raise WireError("a message does not match its checksum; it was changed on the way and has "
                        "to be sent again")
    return Packet(head, body, signature)


def head_of(raw: bytes, limit: int) -> bytes:
    """The head in the bytes of a packet, the rest not looked at; for whoever only hands it on.

    Raises:
        WireError: as ``packet_from``, but for the checksum.
    """
    frame = frame_of(raw[:START], limit)
    at = START + frame.signature_bytes
    return raw[at : at + frame.head_bytes]


def frame_of(start: bytes, limit: int) -> Frame:
    """The fixed part, checked before anything behind it is read.

    Raises:
        WireError: as ``packet_from``.
    """
    if len(start) < START:
        raise WireError("a message ended before its head; it was cut on the way and has to be sent "
                        "again")
    if start[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise WireError("found bytes that are no message of aulait")
    if start[len(MAGIC) - 1] != MAGIC[-1]:
        raise WireError(f"a message has layout {start[len(MAGIC) - 1]}, expected {MAGIC[-1]}; run "
                        "the same version of aulait on both sides")
    head, signature, body = LENGTHS.unpack_from(start, len(MAGIC))
    if head > MOST_HEAD_BYTES or signature > MOST_SIGNATURE_BYTES or head + body > limit:
        raise WireError(f"a message of {head + body:,} bytes found, expected at most {limit:,} (a "
                        f"head of {MOST_HEAD_BYTES:,}); raise the limit message_bytes, or send "
                        "less")
    return Frame(head, signature, body, start[-32:])
