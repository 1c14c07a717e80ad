"""Changes of inputs that are accepted: of bytes, of the tree that a text holds, of a packet or a
file of tensors whose lengths and checksums stay right."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import tomli_w

from aulait.core.parsing import parsed_toml
from aulait.engines.deployment.protocol.envelope import Packet, packet_bytes, packet_from
from aulait.privacy.ledger import first_link

Mutator = Callable[[bytes, random.Random], bytes]
WORDS = [
    b"",
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b'"',
    b"'",
    b"[",
    b"{",
    b"]}",
    b",",
    b"\n",
    b"\r\n",
    b"=",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 25,
    b"9" * 5000,
    b"null",
    b"true",
    b"[" * 200,
    b"\xed\xa0\x80",
    "ünï\u202e".encode(),
    b"../..",
    b"~nobody",
    b"a" * 5000,
    b"%s{0}",
    b"{{",
    b"\\ud800",
]
LEAVES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    2**31,
    2**53,
    2**63,
    2**64 - 1,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "auto",
    "x",
    "x" * 5000,
    "\0",
    "\ud800",
    "../x",
    "~nobody/x",
    "nan",
    "1e999",
    "é",
    [],
    {},
    [[]],
    {"": 1},
    [1] * 300,
]


def of_bytes(raw: bytes, dice: random.Random) -> bytes:
    """A few bytes elsewhere, gone, doubled, or a strange word among them."""
    found = bytearray(raw)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at, kind = dice.randrange(len(found) + 1), dice.randrange(6)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            found[at:at] = dice.choice(WORDS)
        elif kind == 2:
            del found[at : at + dice.choice((1, 2, 8, 64))]
        elif kind == 3:
            found[at:at] = found[at : at + dice.choice((1, 4, 32))]
        elif kind == 4:
            found[at : at + 4] = dice.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(
                4, dice.choice(("little", "big"))
            )
        else:
            del found[at:]
    return bytes(found)


def changed_tree(tree: Any, dice: random.Random) -> Any:
    """A tree of plain values with one node replaced, gone, moved or renamed."""
    if isinstance(tree, dict) and tree and dice.random() < 0.9:
        key = dice.choice(sorted(tree, key=str))
        kind = dice.randrange(12)
        if kind == 0:
            return {name: value for name, value in tree.items() if name != key}
        if kind == 1:
            return tree | {dice.choice(["", "more", key + "x", "\0"]): tree[key]}
        if kind == 2:
            return tree | {key: tree[dice.choice(sorted(tree, key=str))]}
        return tree | {key: changed_tree(tree[key], dice)}
    if isinstance(tree, list) and tree and dice.random() < 0.9:
        at, kind = dice.randrange(len(tree)), dice.randrange(8)
        if kind == 0:
            return tree[:at] + tree[at + 1 :]
        if kind == 1:
            return [*tree[:at], tree[at], *tree[at:]]
        return [*tree[:at], changed_tree(tree[at], dice), *tree[at + 1 :]]
    if isinstance(tree, int | float) and not isinstance(tree, bool) and dice.random() < 0.3:
        return dice.choice([-tree, tree + 1, tree * 10**9, [tree], 0])
    if isinstance(tree, str) and dice.random() < 0.3:
        return dice.choice([tree + "x", tree[:-1], tree * 50, tree.upper(), [tree]])
    if isinstance(tree, str) and tree[:1] in "{[" and dice.random() < 0.9:
        return of_json(tree.encode(), dice).decode(errors="replace")
    return dice.choice(LEAVES)


def of_json(raw: bytes, dice: random.Random) -> bytes:
    """A changed tree, at times changed bytes."""
    try:
        tree = json.loads(raw) if dice.random() < 0.85 else None
    except (ValueError, RecursionError):
        tree = None
    if tree is None:
        return of_bytes(raw, dice)
    for _ in range(dice.choice((1, 1, 2))):
        tree = changed_tree(tree, dice)
    return json.dumps(tree).encode()


def of_lines(raw: bytes, dice: random.Random) -> bytes:
    """One line of JSON changed, gone, doubled or moved."""
    lines = raw.splitlines(keepends=True) or [b""]
    at, kind = dice.randrange(len(lines)), dice.randrange(8)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        return of_bytes(raw, dice)
    else:
        end = b"\n" if lines[at].endswith(b"\n") else b""
        lines[at] = of_json(lines[at].rstrip(b"\n"), dice) + end
    return b"".join(lines)


def of_ledger(raw: bytes, dice: random.Random) -> bytes:
    """Lines changed; at times the chain of their hashes is made whole again, as whoever can
    write to the folder could do."""
    import hashlib

    found = of_lines(raw, dice)
    if dice.random() < 0.3:
        return found
    linked, last = [], first_link("0" * 32)
    for line in found.splitlines():
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError):
            tree = None
        if isinstance(tree, dict) and "previous" in tree:
            line = json.dumps(tree | {"previous": last}).encode()
        last = hashlib.sha256(line).hexdigest()
        linked.append(line + b"\n")
    return b"".join(linked)


def of_toml(raw: bytes, dice: random.Random) -> bytes:
    """A changed tree, written again; at times changed bytes."""
    if dice.random() < 0.7:
        try:
            tree = parsed_toml(raw)
            for _ in range(dice.choice((1, 1, 2))):
                tree = changed_tree(tree, dice)
            return tomli_w.dumps(tree).encode()
        except Exception:  # a value that TOML does not have
            return of_bytes(raw, dice)
    return of_bytes(raw, dice)


def of_tensors(raw: bytes, dice: random.Random) -> bytes:
    """The head of a safetensors file changed, its length right; at times changed bytes."""
    size = int.from_bytes(raw[:8], "little")
    if dice.random() < 0.2 or size > len(raw):
        return of_bytes(raw, dice)
    head = of_json(raw[8 : 8 + size], dice)
    return len(head).to_bytes(8, "little") + head + raw[8 + size :]


def of_packet(raw: bytes, dice: random.Random) -> bytes:
    """Head or tensors of a message changed, lengths and checksum right; at times changed bytes."""
    try:
        packet = packet_from(raw, 2**31)
    except Exception:
        return of_bytes(raw, dice)
    if dice.random() < 0.1:
        return of_bytes(raw, dice)
    if packet.body and dice.random() < 0.4:
        return packet_bytes(Packet(packet.head, of_tensors(packet.body, dice)))
    return packet_bytes(Packet(of_json(packet.head, dice), packet.body))
