"""Rows of a data source, one at a time, each with the name of its place; a broken row is named,
never fatal.

A source is a registered name (``docstrings``); a path: a file of rows (.jsonl, .ndjson, .json,
.csv, .tsv, each also with .gz, or .parquet), a folder or a pattern of such files or of single texts
(.txt, .md), see ``path_source``; or ``hf:<dataset>[:<config>][:<split>]`` where the dataset is an
id of the Hugging Face hub or a local folder. Public texts may also be one .txt file, a text a
line.

Names of places and reasons never repeat a row's content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from aulait.core.errors import ConfigError, DataError
from aulait.core.places import is_folder
from aulait.core.registry import Registry
from aulait.data import path_source
from aulait.data.delimited_files import table_columns, table_form, table_rows
from aulait.data.field_values import name_field as name_field
from aulait.data.field_values import text_field as text_field
from aulait.data.field_values import unit_field as unit_field
from aulait.data.hub_datasets import hub_rows
from aulait.data.json_files import is_array, json_rows
from aulait.data.parquet_files import parquet_columns, parquet_rows
from aulait.data.path_source import SourceFile, suffix
from aulait.data.source_row import EVERYTHING, Asked, SourceRow
from aulait.data.text_lines import TextLines, is_torn, read_text

SUFFIXES = path_source.SUFFIXES
# a source by name: called without arguments, gives one mapping of fields a row
SOURCES: Registry[Callable[[], Iterable[Mapping[str, object]]]] = Registry("source", {
    "docstrings": "aulait.data.builtin:docstrings",
    "stdlib": "aulait.data.builtin:standard_library",
    "mixed": "aulait.data.builtin:mixed",
}, lambda source: "" if callable(source) else "it cannot be called")
JSON = (".jsonl", ".ndjson", ".json")
LOOKED_AT = 20  # rows by which the fields of a file are known
PUBLIC_SUFFIXES = (*SUFFIXES, ".txt", ".txt.gz")


def problem(source: str, suffixes: tuple[str, ...] = SUFFIXES) -> str | None:
    """What is wrong with the name of a source, on one line, or None; the source itself is not
    read."""
    if not source.strip():
        return "is empty; give a path, a built-in name or hf:<dataset>"
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
    return path_source.problem(source, suffixes)


def rows(source: str, asked: Asked = EVERYTHING) -> Iterator[SourceRow]:
    """All rows of a source in their order.

    Args:
        source: see the module's first lines.
        asked: which fields are looked at.

    Raises:
        DataError: the source is missing or cannot be read at all.
    """
    wrong = problem(source, PUBLIC_SUFFIXES)
    if wrong:
        raise DataError(f"data source: {wrong}")
    if source.startswith("hf:"):
        return hub_rows(source, asked)
    if _is_name(source):
        return (SourceRow(f"{source} row {n}", fields)
                for n, fields in enumerate(SOURCES.find(source)(), 1))
    return (row for file in path_source.files(source) for row in _file_rows(file, asked))


def first_fields(source: str, asked: Asked) -> list[str]:
    """The fields of the first rows of a source; none where it cannot be read (what reads it all
    says why)."""
    try:
        return field_names(source, asked)
    except DataError:
        return []


def field_names(source: str, asked: Asked) -> list[str]:
    """The fields that the first rows of a source have, in their order; of a table, those of its
    header.

    Raises:
        DataError: the source is missing or cannot be read at all.
    """
    found = list(islice(rows(source, asked), LOOKED_AT))
    names = [name for row in found for name in row.fields or ()]
    if is_file(source):
        file = path_source.files(source)[0]
        if suffix(file.path) in (".csv", ".tsv"):
            names = [*table_columns(file, asked), *names]
        elif suffix(file.path) == ".parquet":
            names = [*parquet_columns(file), *names]
    return list(dict.fromkeys(names))


def read_as(source: str, asked: Asked = EVERYTHING) -> str:
    """How the files of a source are taken, in words; empty where there is nothing to tell.

    Raises:
        DataError: the source is missing or cannot be read at all.
    """
    if not is_file(source) or problem(source, PUBLIC_SUFFIXES):
        return ""
    files = path_source.files(source)
    first = files[0]
    count = f"{len(files):,} files" if len(files) > 1 else first.place
    kind = suffix(first.path)
    json = kind in JSON and is_array(first, asked)
    forms = {**dict.fromkeys(JSON, "a JSON array" if json else "a JSON object a line"),
             ".parquet": "Parquet"}
    form = ("each one text" if first.document else "a text a line" if kind == ".txt"
            else forms.get(kind) or str(table_form(first, asked)))
    whose = {True: f", owners from what stands for {path_source.OWNER}",
             False: ", owners from the names of folders"}
    told = whose[path_source.OWNER in source] if first.owner is not None else ""
    return f"{count}, {form}{'' if kind == '.parquet' else f', {asked.encoding}'}{told}"


def is_file(source: str) -> bool:
    """Whether the source is written as a path, so that its first rows are cheap to look at."""
    return not source.startswith("hf:") and not _is_name(source)


def _is_name(source: str) -> bool:
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", source) is not None
    return plain and (source in SOURCES or not is_folder(source))


def _file_rows(file: SourceFile, asked: Asked) -> Iterator[SourceRow]:
    """Rows of one file, with the owner that its path tells."""
    if file.document:
        yield _document(file, asked)
        return
    kind = suffix(file.path)
    read = {".txt": _text_rows, ".parquet": parquet_rows, ".csv": table_rows,
            ".tsv": table_rows}.get(kind, json_rows)
    for row in read(file, asked):
        if file.owner is None or row.fields is None:
            yield row
        else:
            yield row._replace(fields={**row.fields, asked.owner: file.owner})


def _document(file: SourceFile, asked: Asked) -> SourceRow:
    """A file that is one text of its owner."""
    text, fault, line = read_text(file.path, asked)
    if fault:
        return SourceRow(f"{file.place} line {line}", None, fault)
    return SourceRow(file.place, {asked.text: text.strip(), asked.owner: file.owner})


def _text_rows(file: SourceFile, asked: Asked) -> Iterator[SourceRow]:
    """A text a line."""
    lines = TextLines(file.path, asked)
    for number, line, torn in lines:
        if not line.strip():
            continue
        place = f"{file.place} line {number}"
        if torn and is_torn([line]):
            yield SourceRow(place, None, lines.torn(number))
        else:
            yield SourceRow(place, {asked.text: line.strip()})
    lines.check()
