"""Records that a program has in its hands, as a data source of this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Final

from aulait.core.errors import DataError, require
from aulait.data.sources import SOURCES

PREFIX: Final = "records-"
GivenRecords = Iterable[Mapping[str, object]]


def source_of(records: GivenRecords) -> str:
    """The name under which ``data.source`` finds these records in this process. It follows from
    what they hold, so that a run goes on with the same records alone; none of it is written to
    disk.

    Args:
        records: rows as mappings of fields: a list, a generator, a ``datasets.Dataset``.

    Raises:
        DataError: there are none, or one is no mapping.
    """
    rows, digest = [], hashlib.sha256()
    for number, row in enumerate(records, 1):
        require(isinstance(row, Mapping), DataError,
                f"record {number} is of type {type(row).__name__}, expected a mapping of fields, "
                "as {\"client\": \"ward-3\", \"text\": \"...\"}; wrap it")
        rows.append(dict(row))
        digest.update(json.dumps(rows[-1], sort_keys=True, default=str).encode() + b"\n")
    require(bool(rows), DataError, "found no records, expected at least one; check what gives them")
    name = PREFIX + digest.hexdigest()[:16]
    if name not in SOURCES:
        SOURCES.register(name)(lambda: rows)
    return name
