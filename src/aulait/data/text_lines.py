"""Lines of a text file, packed or not, decoded as ``data.encoding`` says.

A line that cannot be decoded keeps its bytes (Python's surrogate escapes), so that whoever reads
fields of it can tell whether a field that matters is touched. One such line is a broken row; where
most lines beyond ASCII are such, the encoding is wrong, and that is told in one line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from aulait.core.errors import DataError, require
from aulait.data.source_row import Asked, unreadable

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ESCAPED = re.compile("[\udc80-\udcff]")
_ASCII = bytes(range(128))
_CHUNK = 1 << 16
_FEWEST = 3  # broken lines from which on the encoding is in doubt, not the line


def encoding_problem(setting: str, encoding: str) -> str | None:
    """What is wrong with the name of an encoding, on one line, or None."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError):
        return (f"{setting} is '{encoding}', expected the name of a text encoding, such as "
                "'utf-8', 'latin-1', 'cp1252' or 'utf-16'")
    return None


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where its name ends in .gz."""
    packed = path.suffix.lower() == ".gz"
    return cast("IO[bytes]", gzip.open(path, "rb") if packed else open(path, "rb"))


def _byte_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file with their ends, where all of them end in a carriage return too."""
    first = file.readline()
    yield from [first] if first.endswith(b"\n") else first.splitlines(keepends=True)
    yield from file


def is_torn(values: Iterable[object]) -> bool:
    """Whether any text among the values, or within them, holds bytes that could not be decoded."""
    return any(_ESCAPED.search(value if isinstance(value, str) else
                               json.dumps(value, ensure_ascii=False, default=str)) is not None
               for value in values)


class TextLines:
    """The lines of one file; iterate once, then ``check``.

    Args:
        path: of the file.
        asked: for the encoding of its text.
    """

    def __init__(self, path: Path, asked: Asked) -> None:
        self.path = path
        self._utf8 = codecs.lookup(asked.encoding).name in ("utf-8", "utf-8-sig")
        self.encoding = "utf-8" if self._utf8 else asked.encoding
        self._setting = asked.setting
        self._sound = 0  # lines beyond ASCII that could be decoded
        self._torn: list[int] = []
        self._also_utf8 = self._not_utf8 = 0

    @property
    def fault(self) -> str:
        """Why a row with bytes that cannot be decoded is malformed."""
        return f"not {'UTF-8' if self._utf8 else self.encoding}"

    def torn(self, number: int) -> str:
        """Count a row whose fields could not be decoded; says why it is malformed."""
        self._torn.append(number)
        return self.fault

    def sound(self) -> None:
        """Count a row beyond ASCII that could be decoded (lines are counted by themselves)."""
        self._sound += 1

    def chunks(self) -> Iterator[str]:
        """The text in pieces of 64 KiB, whatever lines it has; bytes that cannot be decoded are
        kept.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with open_bytes(self.path) as file, io.TextIOWrapper(
                    file, encoding=self.encoding, errors="surrogateescape", newline="") as text:
                yield text.read(_CHUNK).removeprefix("\ufeff")
                while piece := text.read(_CHUNK):
                    yield piece
        except (OSError, EOFError, zlib.error, UnicodeError) as error:
            raise unreadable(self.path, error) from error

    def __iter__(self) -> Iterator[tuple[int, str, bool]]:
        """Number of a line, counted from 1, its text, and whether it holds undecoded bytes.

        Raises:
            DataError: the file cannot be read, or not as text of this encoding at all.
        """
        try:
            with open_bytes(self.path) as file:
                yield from self._narrow(file) if _keeps_ascii(self.encoding) else self._wide(file)
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(self.path, error) from error

    def check(self) -> None:
        """Raise where not single lines are broken but the encoding is wrong.

        Raises:
            DataError: names the setting and the first line that shows it.
        """
        torn = self._torn
        if torn and len(torn) >= _FEWEST and len(torn) > self._sound:
            likely = "'latin-1' or 'cp1252'" if self._utf8 else "'utf-8'"
            raise DataError(
                f"data source '{self.path}' line {torn[0]} is {self.fault}, and so are "
                f"{len(torn) - 1} other lines ({self._setting} = '{self.encoding}'); set "
                f"{self._setting} to what the file is written in, such as "
                f"{likely}")
        doubtful = self._also_utf8 >= _FEWEST and not self._not_utf8
        require(not doubtful, DataError,
                f"data source '{self.path}': {self._setting} = '{self.encoding}', and all "
                f"{self._also_utf8} lines beyond ASCII are UTF-8; remove {self._setting}")

    def _narrow(self, file: IO[bytes]) -> Iterator[tuple[int, str, bool]]:
        """Of an encoding in which ASCII is ASCII, so that lines end where bytes say."""
        for number, raw in enumerate(_byte_lines(file), 1):
            if number == 1:
                require(not raw.startswith(_WIDE_MARKS), DataError,
                        f"data source '{self.path}' line 1 begins like UTF-16 ({self._setting} = "
                        f"'{self.encoding}'); set {self._setting} = 'utf-16'")
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
            try:
                line = raw.decode(self.encoding)
            except UnicodeDecodeError:
                yield number, raw.decode(self.encoding, "surrogateescape"), True
                continue
            if not line.isascii():
                self._sound += 1
                if not self._utf8:
                    self._compare(raw)
            yield number, line, False

    def _compare(self, raw: bytes) -> None:
        """Count a line beyond ASCII by whether it would be UTF-8 too."""
        try:
            raw.decode()
        except UnicodeDecodeError:
            self._not_utf8 += 1
        else:
            self._also_utf8 += 1

    def _wide(self, file: IO[bytes]) -> Iterator[tuple[int, str, bool]]:
        """Of an encoding of several bytes a letter (UTF-16): the whole file hangs together."""
        number = 0
        try:
            for number, line in enumerate(
                    io.TextIOWrapper(file, encoding=self.encoding, newline="\n"), 1):
                yield number, line.removeprefix("\ufeff") if number == 1 else line, False
        except UnicodeError as error:
            raise DataError(
                f"data source '{self.path}' line {number + 1} is not {self.encoding} "
                f"({self._setting} = '{self.encoding}'); set data.encoding to what the file is "
                "written in, such as 'utf-8'") from error


def _keeps_ascii(encoding: str) -> bool:
    """Whether bytes below 128 mean ASCII's letters, line ends among them."""
    try:
        return _ASCII.decode(encoding) == _ASCII.decode("ascii") and len("\n".encode(encoding)) == 1
    except UnicodeError:
        return False


def read_text(path: Path, asked: Asked) -> tuple[str, str, int]:
    """A file that is one text: the text, or why it cannot be decoded and in which line.

    Returns:
        text, fault (empty for none), and the line of the fault (0 for none).
    """
    try:
        with open_bytes(path) as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    try:
        return raw.decode(asked.encoding).removeprefix("\ufeff"), "", 0
    except UnicodeError as error:
        line = raw[: getattr(error, "start", 0)].count(b"\n") + 1
        return "", TextLines(path, asked).fault, line
