"""What is asked of a data source, and one row of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from aulait.core.errors import DataError


class SourceRow(NamedTuple):
    """One row as it was found.

    Attributes:
        place: file name and line (or row), counted from 1: ``data.jsonl line 17``.
        fields: the values by field name; None when the row is malformed.
        fault: why it is malformed; empty when it is not.
    """

    place: str
    fields: Mapping[str, object] | None
    fault: str = ""


@dataclass(frozen=True)
class Asked:
    """What of a source is looked at; the rest of it may be anything.

    Attributes:
        fields: the fields that are read and decoded; empty: all of them.
        text: the field under which a file that is one text, or a line of a .txt file, is given.
        owner: the field under which the owner that a path tells is given.
        encoding: of the bytes of text files.
        setting: the key that says so, for messages.
    """

    fields: tuple[str, ...] = ()
    text: str = "text"
    owner: str = "client"
    encoding: str = "utf-8"
    setting: str = "data.encoding"


EVERYTHING = Asked()


def unreadable(source: object, error: Exception) -> DataError:
    """What is raised where a source cannot be read at all."""
    reason = " ".join(str(error).split())[:300]
    return DataError(
        f"data source '{source}' cannot be read ({type(error).__name__}: {reason}); check the file")


def occurs_twice(source: object, field: str) -> DataError:
    """What is raised where a table has two columns of a name that is asked for."""
    return DataError(f"data source '{source}' has more than one column '{field}', expected one; "
                     "rename the others")
