"""Rows of a Parquet file: only the columns that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from aulait.data.path_source import SourceFile
from aulait.data.source_row import Asked, SourceRow, occurs_twice, unreadable

_AT_ONCE = 4_096  # rows


def parquet_rows(file: SourceFile, asked: Asked) -> Iterator[SourceRow]:
    """The rows of a .parquet file.

    Raises:
        DataError: it cannot be read, or a column that is asked for stands twice.
    """
    # slow to import, and only this format needs it
    import pyarrow as arrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with parquet.ParquetFile(file.path) as table:
            names = list(table.schema_arrow.names)
            wanted = [name for name in names if not asked.fields or name in asked.fields]
            for name in wanted:
                if wanted.count(name) > 1:
                    raise occurs_twice(file.path, name)
            for batch in table.iter_batches(_AT_ONCE, columns=wanted):
                for fields, fault in _values(batch.select(wanted)):
                    number += 1
                    yield SourceRow(f"{file.place} row {number}", fields, fault)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise unreadable(file.path, error) from error


def parquet_columns(file: SourceFile) -> list[str]:
    """The names of a table's columns.

    Raises:
        DataError: the file cannot be read.
    """
    # slow to import, and only this format needs it
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        return list(parquet.read_schema(file.path).names)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise unreadable(file.path, error) from error


def _values(batch: Any) -> Sequence[tuple[dict[str, object] | None, str]]:
    try:
        return [(fields, "") for fields in batch.to_pylist()]
    # one broken value fails the whole batch: look at its rows one at a time
    except (ValueError, OverflowError):
        return [_one_value(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _one_value(row: Any) -> tuple[dict[str, object] | None, str]:
    found: dict[str, object] = {}
    for name in row.schema.names:
        try:
            found[name] = row.column(name).to_pylist()[0]
        except UnicodeDecodeError:
            return None, "not UTF-8"
        except (ValueError, OverflowError):
            return None, f"field '{name}' holds a value outside Python's range"
    return found, ""
