"""Rows of text tables: columns apart by commas, semicolons, tabs or bars, told apart by the
header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from aulait.core.errors import DataError, require
from aulait.data.path_source import SourceFile, suffix
from aulait.data.source_row import Asked, SourceRow, occurs_twice
from aulait.data.text_lines import TextLines, is_torn

_FIELD_CHARACTERS = 1 << 24
_TAIL = 2  # lines that a file may break off in, within one row
_LOOKED_AT = 200  # lines by which the form is told
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_TOLD = re.compile('"?sep=([,;\t|])"?\\s*', re.IGNORECASE)  # a first line that spreadsheets write


@dataclass(frozen=True)
class TableForm:
    """How a table is written.

    Attributes:
        delimiter: what stands between columns.
        quotes: whether a field may stand in double quotes, so that it may hold delimiters and
            line ends; False: a quote is a letter.
        told: whether a line before the header says the delimiter (``sep=;``).
    """

    delimiter: str = ","
    quotes: bool = True
    told: bool = False

    def __str__(self) -> str:
        return (f"columns apart by {_NAMES[self.delimiter]}"
                f"{'' if self.quotes else ', double quotes are text'}")

    def reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Rows of such a table; strict, because otherwise one open quote swallows the rest of the
        file without a word."""
        # The csv module's limit of 131,072 characters would tear a long text into false rows; it
        # can only be set globally.
        csv.field_size_limit(max(_FIELD_CHARACTERS, csv.field_size_limit()))
        lines = islice(lines, 1 if self.told else 0, None)
        return csv.reader(lines, delimiter=self.delimiter, strict=True,
                          quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE)


def table_form(file: SourceFile, asked: Asked) -> TableForm:
    """How a table is written, told by its first lines: the delimiter whose columns have the names
    that are asked for, or with which most rows have as many columns as the header."""
    lines = [line for _, line, _ in islice(TextLines(file.path, asked), _LOOKED_AT)]
    told = _TOLD.fullmatch(lines[0]) if lines else None
    marks = tuple(_NAMES)
    if told or suffix(file.path) == ".tsv":
        marks = (told[1] if told else "\t",)
    forms = [TableForm(mark, quotes, told is not None) for mark in marks
             for quotes in (True, False) if quotes or mark == "\t"]
    return max(forms, key=lambda form: (_fit(form, lines, asked), form.quotes))


def _fit(form: TableForm, lines: Sequence[str], asked: Asked) -> tuple[int, int, int]:
    """Columns found of those asked for, rows as wide as the header less those that are no rows, and
    columns."""
    header: list[str] = []
    good = 0
    # the sample may end within a quoted field, which is no fault of the form
    rows = form.reader(lines)
    while True:
        try:
            values = next(rows, None)
        except csv.Error as error:
            good -= "unexpected end" not in str(error)
            continue
        if values is None:
            break
        if not header:
            header = values
        elif values:
            good += 1 if len(values) == len(header) else -1
    return len({*header} & {*asked.fields}), good if len(header) > 1 else 0, len(header)


def table_columns(file: SourceFile, asked: Asked) -> list[str]:
    """The names in the header of a table.

    Raises:
        DataError: the file cannot be read, or its header is not CSV.
    """
    form = table_form(file, asked)
    try:
        return next(form.reader(line for _, line, _ in TextLines(file.path, asked)), [])
    except csv.Error as error:
        raise _no_header(file, str(error)) from error


def table_rows(file: SourceFile, asked: Asked) -> Iterator[SourceRow]:
    """The rows of a .csv or .tsv file; of each the columns that are asked for.

    Raises:
        DataError: the file cannot be read or has another encoding, its header is not CSV, or a
            column that is asked for stands twice.
    """
    form = table_form(file, asked)
    lines = _Watched(TextLines(file.path, asked))
    reader = form.reader(lines.texts())
    columns: list[tuple[str, int]] = []
    width = 0
    while True:
        first = lines.number + 1
        lines.begin()
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            quote = lines.open_quote()
            if quote.endswith("is not closed"):
                require(lines.number - first < _TAIL, DataError,
                        f"data source '{file.path}': {quote}, and takes in the "
                        f"{lines.number - first} lines after it; close it, or write two quotes for "
                        "one within a text")
            if not width:
                raise _no_header(file, f"{error}{quote and f'; {quote}'}") from error
            yield SourceRow(_span(file, first, lines.number), None,
                            f"not CSV ({error}{quote and f'; {quote}'})")
            continue
        if not width:
            columns, width = _columns(file, values, asked), len(values)
        elif not values:
            continue
        elif len(values) != width:
            yield SourceRow(_span(file, first, lines.number), None,
                            f"found {len(values)} columns, expected {width}")
        elif lines.torn and is_torn(values[index] for _, index in columns):
            yield SourceRow(_span(file, first, lines.number), None, lines.source.torn(first))
        else:
            yield SourceRow(f"{file.place} line {first}",
                            {name: values[index] for name, index in columns})
    lines.source.check()


def _no_header(file: SourceFile, fault: str) -> DataError:
    return DataError(f"data source '{file.path}': its header is not CSV ({fault}); correct the "
                     "names of the columns, whose quotes are written twice within a name")


def _columns(file: SourceFile, header: Sequence[str], asked: Asked) -> list[tuple[str, int]]:
    """(name, index) of the columns that are asked for."""
    wanted = [(name, index) for index, name in enumerate(header)
              if not asked.fields or name in asked.fields]
    for name, index in wanted:
        if index != header.index(name):
            raise occurs_twice(file.path, name)
    return wanted


class _Watched:
    """Lines on their way to the csv module: which ones the row took.

    Attributes:
        source: the lines.
        number: of the last line given out.
        torn: whether one of this row holds bytes that could not be decoded.
    """

    def __init__(self, source: TextLines) -> None:
        self.source = source
        self.number = 0
        self.torn = False
        self._row: list[str] = []

    def begin(self) -> None:
        """A new row begins."""
        self.torn = False
        self._row = []

    def texts(self) -> Iterator[str]:
        """The lines."""
        for number, line, torn in self.source:
            self.number = number
            self.torn = self.torn or torn
            self._row.append(line)
            yield line

    def open_quote(self) -> str:
        """Where the last quote of a broken row opens; empty where the row is one line."""
        inside, opened = False, 0
        for number, line in enumerate(self._row, self.number - len(self._row) + 1):
            for _ in range(line.count('"')):
                inside, opened = not inside, opened if inside else number
        if len(self._row) < 2 or not opened:
            return ""
        return (f"a quote that opens in line {opened} is not closed" if inside
                else f"its last quote opens in line {opened}")


def _span(file: SourceFile, first: int, last: int) -> str:
    lines = f"line {first}" if last <= first else f"lines {first} to {last}"
    return f"{file.place} {lines}"
