"""Which records of a client are protected together.

With ``privacy.unit = "record"`` a unit is one record, told by its content; with
``privacy.unit_field`` all records of one value of that field are one unit. Everything that follows
from a unit alone (its place in a hold-out, its gradient, its votes) is looked up by the unit's key,
so that another unit more or less changes nothing about it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from aulait.core.types import Record

RecordGroup = tuple[Record, ...]


def unit_key(record: Record) -> str:
    """Names the unit that a record belongs to; sensitive.

    Records of the same turns, or of the same prompt and text, are the same unit, whatever their
    labels.
    """
    if record.unit is not None:
        return f"unit|{record.unit}"
    if record.before:
        return "chat|" + json.dumps([[turn.role, turn.content] for turn in record.turns])
    return f"record|{len(record.prompt or '')}|{record.prompt is None}|{record.prompt or ''}" \
           f"{record.text}"


def units(records: Iterable[Record]) -> list[RecordGroup]:
    """The records unit by unit, units in the order of their first record."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(unit_key(record), []).append(record)
    return [tuple(members) for members in found.values()]


def placeholders(count: int) -> RecordGroup:
    """Stand-ins for so many units whose records lie elsewhere; each is a unit of its own."""
    return tuple(Record("", unit=str(index)) for index in range(count))


def unit_place(purpose: int, key: str) -> float:
    """Where a unit falls in [0, 1), uniformly: a keyed hash of its key, and of nothing else.

    Whoever decides about units by this number decides about each as if there were no other.

    Args:
        purpose: of the decision, a number from the run's seed (``Seeds.integer``).
        key: of the unit, from ``unit_key``.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=purpose.to_bytes(8, "big")).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
