"""Public texts, or public pairs of a prompt and its response: what stage 1 starts from. Nothing
private is read here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeVar

from aulait.core.errors import DataError, require
from aulait.core.types import Record
from aulait.data import formats, sources
from aulait.data.row_fields import RowFields
from aulait.data.source_row import Asked

Parsed = TypeVar("Parsed")
PublicFaults = list[tuple[str, str]]


def read_public(source: str, asked: Asked, form: RowFields | None,
                ) -> tuple[tuple[str, ...] | tuple[Record, ...], PublicFaults]:
    """Distinct public texts, all of one kind, in an order that depends on their content only and
    favours none.

    Args:
        source: a built-in name, a path, or ``hf:...``.
        asked: which fields are looked at; ``text`` is that of a plain text.
        form: how a row that is a pair or a conversation is read; where any row is one, rows are
            pairs, of a conversation its first question and the answer. None: plain texts.

    Returns:
        The texts or pairs, and (place, fault) of the rows that are none.

    Raises:
        DataError: no row can be used.
    """
    field = asked.text
    if form is not None:
        pairs, wrong = _rows(source, asked,
                             lambda fields: first_exchange(formats.record_of(fields, form)))
        if pairs:
            return tuple(sorted(pairs, key=lambda pair: _place(pair.full))), wrong
    texts, wrong = _rows(source, asked, lambda fields: sources.text_field(fields, field))
    require(bool(texts), DataError,
            f"data.public '{source}': found no text in field '{field}'; give texts or public = ''")
    return tuple(sorted(texts, key=_place)), wrong


def first_exchange(record: Record) -> Record:
    """The first user's turn of a conversation that the assistant answers at once, with the answer;
    a pair as it is.

    Raises:
        ValueError: no user's turn is answered at once.
    """
    if not record.before:
        return record
    for asked, answer in pairwise(record.turns):
        if (asked.role, answer.role) == ("user", "assistant"):
            return Record(answer.content, asked.content)
    raise ValueError("no user's turn is followed by the assistant's")


def _place(text: str) -> bytes:
    """By hash, not by alphabet: whoever takes the first texts gets a fair sample."""
    return hashlib.sha256(text.encode()).digest()


def _rows(source: str, asked: Asked, make: Callable[[Mapping[str, object]], Parsed],
          ) -> tuple[set[Parsed], PublicFaults]:
    found: set[Parsed] = set()
    wrong: PublicFaults = []
    for row in sources.rows(source, asked):
        try:
            if row.fields is None:
                raise ValueError(row.fault)
            found.add(make(row.fields))
        except ValueError as error:
            wrong.append((row.place, str(error)))
    return found, wrong
