"""Rows of a data source, one at a time, each with the name of its place; a broken row is named,
never fatal.

A source is a registered name (``docstrings``), a path that ends in .jsonl, .jsonl.gz, .csv,
.parquet or .txt, or ``hf:<dataset>[:<config>][:<split>]`` where the dataset is an id of the Hugging
Face hub or a local folder.

Names of places and reasons never repeat a row's content.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from aulait.core.errors import ConfigError, DataError
from aulait.core.registry import Registry

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
# a source by name: called without arguments, gives one mapping of fields a row
SOURCES: Registry[Callable[[], Iterable[Mapping[str, object]]]] = Registry("source", {
    "docstrings": "aulait.data.builtin:docstrings",
    "stdlib": "aulait.data.builtin:standard_library",
}, lambda source: "" if callable(source) else "it cannot be called")
PUBLIC_SUFFIXES = (*SUFFIXES, ".txt")
LOOKED_AT = 20  # first rows whose fields tell what a row holds
_FIELD_CHARACTERS = 1 << 24
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHOLE_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.0*)?")


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


def problem(source: str, suffixes: tuple[str, ...] = SUFFIXES) -> str | None:
    """What is wrong with the name of a source, on one line, or None; the source itself is not
    read."""
    if source.startswith("hf:"):
        return (
            None if source[3:].strip()
            else "found 'hf:' without a dataset; write hf:<dataset> or hf:<folder>"
        )
    if _is_name(source):
        if unknown := SOURCES.unknown(source):
            return f"{unknown} (a file is written with its suffix: {', '.join(suffixes)})"
        try:
            SOURCES.find(source)
        except ConfigError as error:
            return str(error)
        return None
    path = Path(source).expanduser()
    if not path.name.lower().endswith(suffixes):
        return (
            f"found '{source}', expected a path that ends in {', '.join(suffixes)}, or hf:<dataset>"
        )
    return (
        None if path.is_file() else f"found no file '{source}'; give the path of an existing file"
    )


def rows(source: str, text_field: str = "text") -> Iterator[SourceRow]:
    """All rows of a source in their order.

    Args:
        source: see the module's first lines.
        text_field: the field name under which a line of a .txt file (one text a line) is given.

    Raises:
        DataError: the source is missing or cannot be read at all.
    """
    wrong = problem(source, PUBLIC_SUFFIXES)
    if wrong:
        raise DataError(f"data source: {wrong}")
    if source.startswith("hf:"):
        return _hub_rows(source)
    if _is_name(source):
        return (SourceRow(f"{source} row {n}", fields)
                for n, fields in enumerate(SOURCES.find(source)(), 1))
    path = Path(source).expanduser()
    if path.suffix.lower() == ".txt":
        return _text_rows(path, text_field)
    if path.suffix.lower() == ".csv":
        return _csv_rows(path)
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else _json_rows(path)


def first_fields(source: str, text_field: str = "text") -> list[str]:
    """The fields of the first rows of a source, in their order; none where it cannot be read (what
    reads it all says why)."""
    try:
        some = list(islice(rows(source, text_field), LOOKED_AT))
    except DataError:
        return []
    return list(dict.fromkeys(name for row in some for name in row.fields or ()))


def is_file(source: str) -> bool:
    """Whether the source is written as a path, so that its first rows are cheap to look at."""
    return not source.startswith("hf:") and not _is_name(source)


def text_field(fields: Mapping[str, object], field: str) -> str:
    """A text that is not empty.

    Raises:
        ValueError: anything else; the message says what was found, without its content.
    """
    if field not in fields:
        raise ValueError(f"no field '{field}'")
    value = fields[field]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"field '{field}' is empty")
    if not isinstance(value, str):
        raise ValueError(f"field '{field}' is {type(value).__name__}, expected text")
    if not is_unicode(value):
        raise ValueError(f"field '{field}' holds half a character (a lone surrogate)")
    return value


def name_field(fields: Mapping[str, object], field: str) -> str:
    """A client or a label: a text, or a number written as text; ``ValueError`` as for ``text``."""
    value = fields.get(field)
    return str(value) if isinstance(value, int | float) else text_field(fields, field)


def unit_field(fields: Mapping[str, object], field: str) -> str:
    """The value that names a unit of protection, in one form however a file writes it.

    A text without outer white space, in Unicode's composed form (NFC); a whole number in digits,
    whether the file has 17, 17.0 or "17". Leading zeros stay: "017" is another unit.

    Raises:
        ValueError: as for ``text_field``; a missing number (NaN) is an empty field.
    """
    value = fields.get(field)
    if isinstance(value, float | Decimal) and math.isnan(value):
        raise ValueError(f"field '{field}' is empty")
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(value)
    text = unicodedata.normalize("NFC", text_field(fields, field)).strip()
    whole = _WHOLE_NUMBER.fullmatch(text)
    if whole is None:
        return text
    sign, digits = whole.groups()
    return digits if digits == "0" else sign + digits


def _is_name(source: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+", source) is not None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _unreadable(source: object, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300]
    return DataError(
        f"data source '{source}' cannot be read ({type(error).__name__}: {reason}); check the file")


def _json_rows(path: Path) -> Iterator[SourceRow]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"{path.name} line {number}"
        try:
            fields = json.loads(line.decode())
        except UnicodeDecodeError:
            yield SourceRow(place, None, "not UTF-8")
        except (ValueError, RecursionError):
            yield SourceRow(place, None, "not JSON")
        else:
            if isinstance(fields, dict):
                yield SourceRow(place, fields)
            else:
                yield SourceRow(place, None,
                                f"found {type(fields).__name__}, expected a JSON object")


def _text_rows(path: Path, text_field: str) -> Iterator[SourceRow]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            yield SourceRow(f"{path.name} line {number}", {text_field: line.decode().strip()})
        except UnicodeDecodeError:
            yield SourceRow(f"{path.name} line {number}", None, "not UTF-8")


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    # The csv module's limit of 131,072 characters would tear a long text into false rows; it can
    # only be set globally.
    csv.field_size_limit(max(_FIELD_CHARACTERS, csv.field_size_limit()))
    # Strict, because otherwise one open quote swallows the rest of the file without a word.
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for _, line in _lines(path)),
                        strict=True)
    header: list[str] = []
    while True:
        first = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield SourceRow(_span(path, first, reader.line_num), None, f"not CSV ({error})")
            continue
        if not header:
            header = values
        elif not values:
            continue
        elif not is_unicode("".join(values)):
            yield SourceRow(_span(path, first, reader.line_num), None, "not UTF-8")
        elif len(values) != len(header):
            reason = f"found {len(values)} columns, expected {len(header)}"
            yield SourceRow(_span(path, first, reader.line_num), None, reason)
        else:
            yield SourceRow(f"{path.name} line {first}", dict(zip(header, values, strict=True)))


def _span(path: Path, first: int, last: int) -> str:
    return f"{path.name} line {first}" if last <= first else f"{path.name} lines {first} to {last}"


def is_unicode(value: str) -> bool:
    """Whether a text has no half characters (lone surrogates)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    # slow to import, and only this format needs it
    import pyarrow as arrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for fields in _values(batch):
                    number += 1
                    yield SourceRow(f"{path.name} row {number}", fields, "" if fields
                                    else "not UTF-8")
    except (OSError, arrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _values(batch: Any) -> list[dict[str, object] | None]:
    try:
        return list(batch.to_pylist())
    # one broken value fails the whole batch: look at its rows one at a time
    except UnicodeDecodeError:
        return [_one_value(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _one_value(batch: Any) -> dict[str, object] | None:
    try:
        return dict(batch.to_pylist()[0])
    except UnicodeDecodeError:
        return None


def _hub_rows(source: str) -> Iterator[SourceRow]:
    dataset, config, split = _hub_parts(source[3:])
    folder = Path(dataset).expanduser()
    try:
        # takes seconds to import
        import datasets

        if any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(folder))
            table = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            table = datasets.load_dataset(str(folder) if folder.is_dir() else dataset, config,
                split=split)
    except Exception as error:  # the library raises many kinds; all mean that there are no data
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"data source '{source}' cannot be loaded ({type(error).__name__}: {reason}); expected "
            "a dataset of the Hugging Face hub or a local folder; check its name, the split and "
            "the network"
        ) from error
    for number, fields in enumerate(table, 1):
        yield SourceRow(f"{source} row {number}", fields)


def _hub_parts(written: str) -> tuple[str, str | None, str]:
    """Dataset, configuration (None: the default one) and split; colons inside a path belong to the
    path."""
    head, *words = re.split(r":(?![^:]*[/\\])", written)
    if len(words) > 1:
        return head, words[0] or None, words[1] or "train"
    return head, None, words[0] if words and words[0] else "train"
