"""Distinct records of a client, sorted by their content, so that the order of the rows in a file
changes nothing.

Where records lie in a file, most are sorted by the first letters of what they are sorted by, and
only those that begin alike are looked at.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from aulait.core.types import Record

_LETTERS = 7  # bytes of a text in its lead


def distinct(records: Iterable[Record]) -> list[Record]:
    """Sorted by unit and content; of records that differ in the label only, the one with the first
    label."""
    first: dict[tuple[object, ...], Record] = {}
    for record in sorted(records, key=lambda r: (*_content(r), r.label or "")):
        first.setdefault(_content(record), record)
    return list(first.values())


def distinct_numbers(numbers: Iterable[int], leads: Sequence[int],
                     record: Callable[[int], Record]) -> array[int]:
    """Numbers of the distinct records among some, sorted as ``distinct`` sorts records.

    Args:
        numbers: of one client's records, any of them more than once.
        leads: of the records of all numbers.
        record: of a number.
    """
    found = array("I")
    for _, group in groupby(sorted(numbers, key=leads.__getitem__), key=leads.__getitem__):
        alike = list(group)
        if len(alike) > 1:
            first: dict[Record, int] = {}
            for number in alike:
                first.setdefault(record(number), number)
            alike = [first[own] for own in distinct(first)]
        found.extend(alike)
    return found


def lead(record: Record) -> int:
    """A number of 64 bits: of two records with different leads, the one with the smaller lead is
    sorted first, and they differ in more than their labels."""
    if record.unit:
        kind, text = 2, record.unit
    elif record.prompt:
        kind, text = 1, record.prompt
    else:
        kind, text = 0, record.text
    letters = text[:_LETTERS].encode()[:_LETTERS]  # UTF-8 sorts as its letters do
    return int.from_bytes(letters, "big") << 8 * (_LETTERS - len(letters)) | kind << 8 * _LETTERS


def _content(record: Record) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
    """What tells records apart, in the order by which they are sorted."""
    return (record.unit or "", record.prompt or "", record.text,
            tuple((turn.role, turn.content) for turn in record.before))
