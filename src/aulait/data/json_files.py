"""Rows of JSON: one object a line, or one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from aulait.core.errors import DataError
from aulait.data.path_source import SourceFile, suffix
from aulait.data.source_row import Asked, SourceRow
from aulait.data.text_lines import TextLines, is_torn

_LARGEST = 1 << 24  # characters of one object of an array


class _Repeated(dict[str, object]):
    """An object in which names stand twice; ``names`` are those."""

    names: frozenset[str] = frozenset()


def json_rows(file: SourceFile, asked: Asked) -> Iterator[SourceRow]:
    """The rows of a file of JSON: one array of objects, or an object a line, whatever its name.

    Raises:
        DataError: the file cannot be read or has another encoding, or an array is no JSON.
    """
    lines = TextLines(file.path, asked)
    form = _array_rows if is_array(file, asked) else _line_rows
    yield from form(file, asked, lines)
    lines.check()


def is_array(file: SourceFile, asked: Asked) -> bool:
    """Whether a file of JSON begins as an array does; one of lines, as an array of objects."""
    begins = ""
    for piece in TextLines(file.path, asked).chunks():
        begins = (begins + piece).lstrip()
        if begins and (begins[0] != "[" or begins[1:].strip()):
            break
    objects = suffix(file.path) == ".json" or begins[1:].lstrip().startswith("{")
    return begins.startswith("[") and objects


def _line_rows(file: SourceFile, asked: Asked, lines: TextLines) -> Iterator[SourceRow]:
    decode = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole).decode
    for number, line, torn in lines:
        if not line or line.isspace():
            continue
        place = f"{file.place} line {number}"
        try:
            value = decode(line)
        except (ValueError, RecursionError):
            yield SourceRow(place, None, lines.torn(number) if torn else "not JSON")
            continue
        if torn and is_torn(_asked_for(value, asked)):
            yield SourceRow(place, None, lines.torn(number))
        else:
            yield _row(place, value, asked)


def _array_rows(file: SourceFile, asked: Asked, lines: TextLines) -> Iterator[SourceRow]:
    for number, (value, line) in enumerate(_Array(file, lines.chunks()), 1):
        place, texts = f"{file.place} row {number}", list(_asked_for(value, asked))
        if all(not isinstance(text, str) or text.isascii() for text in texts):
            yield _row(place, value, asked)
        elif is_torn(texts):
            yield SourceRow(place, None, lines.torn(line))
        else:
            lines.sound()
            yield _row(place, value, asked)


def _asked_for(value: object, asked: Asked) -> Iterator[object]:
    """The values of a row that matter; of something else than an object, the whole."""
    if not isinstance(value, Mapping):
        yield value
        return
    yield from (value[name] for name in asked.fields or value if name in value)


def _row(place: str, value: object, asked: Asked) -> SourceRow:
    if not isinstance(value, dict):
        return SourceRow(place, None, f"found {type(value).__name__}, expected a JSON object")
    if isinstance(value, _Repeated) and (
            twice := sorted(value.names.intersection(asked.fields or value))):
        return SourceRow(place, None, f"field '{twice[0]}' occurs twice")
    return SourceRow(place, value)


def _whole(digits: str) -> int | str:
    """A whole number; one of more digits than Python turns into a number stays as it is written."""
    try:
        return int(digits)
    except ValueError:
        return digits


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = _Repeated(found)
    names = [name for name, _ in pairs]
    repeated.names = frozenset(name for name in found if names.count(name) > 1)
    return repeated


class _Array:
    """The values of one JSON array and the line in which each ends, read piece by piece.

    Args:
        file: for messages.
        pieces: its text.
    """

    def __init__(self, file: SourceFile, pieces: Iterator[str]) -> None:
        self._file = file
        self._pieces = pieces
        self._decode = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole).raw_decode
        self._text = ""
        self._place = 0  # what is before it has been used
        self._line = 1  # of that place

    def __iter__(self) -> Iterator[tuple[object, int]]:
        """Raises:
        DataError: it is no JSON array; the message names the line.
        """
        self._mark("[")
        more = self._mark("]", "") != "]"
        while more:
            yield self._value(), self._line
            more = self._mark(",", "]") != "]"
        self._skip_blanks()
        if self._text[self._place:]:
            raise self._fault("nothing after the array")

    def _value(self) -> object:
        self._skip_blanks()
        while True:
            try:
                value, end = self._decode(self._text, self._place)
            except RecursionError as error:
                raise self._fault("an object nested less deeply") from error
            except ValueError as error:
                if len(self._text) - self._place > _LARGEST or not self._read_on():
                    raise self._fault(f"JSON: {str(error).split(':')[0]}") from error
                continue
            self._use(end)
            return value

    def _mark(self, *expected: str) -> str:
        """The next letter, taken where it is among those that are expected; '' leaves any other
        letter."""
        self._skip_blanks()
        found = self._text[self._place: self._place + 1]
        if found and found in expected:
            self._use(self._place + 1)
            return found
        if "" in expected and found:
            return ""
        raise self._fault(" or ".join(f"'{mark}'" for mark in expected if mark))

    def _skip_blanks(self) -> None:
        while True:
            rest = self._text[self._place: self._place + 64]
            if stripped := rest.lstrip(" \t\r\n"):
                self._use(self._place + len(rest) - len(stripped))
                return
            self._use(self._place + len(rest))
            if not rest and not self._read_on():
                return

    def _use(self, end: int) -> None:
        self._line += self._text.count("\n", self._place, end)
        self._place = end

    def _read_on(self) -> bool:
        """Add to the text as much as is left of it, at least a piece; whether there was any."""
        left = [self._text[self._place:]]
        wanted = len(left[0])
        for piece in self._pieces:
            left.append(piece)
            wanted -= len(piece)
            if wanted <= 0:
                break
        self._text, self._place = "".join(left), 0
        return len(left) > 1

    def _fault(self, expected: str) -> DataError:
        return DataError(
            f"data source '{self._file.path}' is no JSON array from line {self._line} on (expected "
            f"{expected}); correct the file, or write one object a line as .jsonl")
