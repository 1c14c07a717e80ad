"""Public texts, or public pairs of a prompt and its response: what stage 1 starts from. Nothing
private is read here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from aulait.core.errors import DataError, require
from aulait.core.types import Record
from aulait.data import sources

Parsed = TypeVar("Parsed")
PublicFaults = list[tuple[str, str]]


def read_public(source: str, field: str, pair: tuple[str, str] | None,
                ) -> tuple[tuple[str, ...] | tuple[Record, ...], PublicFaults]:
    """Distinct public texts, all of one kind, in an order that depends on their content only and
    favours none.

    Args:
        source: a built-in name, a path, or ``hf:...``.
        field: of a plain text.
        pair: fields of a prompt and its response; where any row has both, rows are pairs. None:
            plain texts.

    Returns:
        The texts or pairs, and (place, fault) of the rows that are none.

    Raises:
        DataError: no row can be used.
    """
    if pair is not None:
        prompt, response = pair
        pairs, wrong = _rows(source, field,
                             lambda fields: Record(sources.text_field(fields, response),
            sources.text_field(fields, prompt)))
        if pairs:
            return tuple(sorted(pairs, key=lambda pair: _place(pair.full))), wrong
    texts, wrong = _rows(source, field, lambda fields: sources.text_field(fields, field))
    require(bool(texts), DataError,
            f"data.public '{source}': found no text in field '{field}'; give texts or public = ''")
    return tuple(sorted(texts, key=_place)), wrong


def _place(text: str) -> bytes:
    """By hash, not by alphabet: whoever takes the first texts gets a fair sample."""
    return hashlib.sha256(text.encode()).digest()


def _rows(source: str, field: str, make: Callable[[Mapping[str, object]], Parsed],
          ) -> tuple[set[Parsed], PublicFaults]:
    found: set[Parsed] = set()
    wrong: PublicFaults = []
    for row in sources.rows(source, field):
        try:
            if row.fields is None:
                raise ValueError(row.fault)
            found.add(make(row.fields))
        except ValueError as error:
            wrong.append((row.place, str(error)))
    return found, wrong
