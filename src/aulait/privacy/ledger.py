"""The privacy events of a run, in order, on disk before anything they describe is released.

One JSON object a line. A line is written, flushed and synchronised before ``append`` returns, and
never changed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from aulait.core.errors import PrivacyError, require
from aulait.core.files import append_durably
from aulait.privacy.accounting import Accountant, Event
from aulait.privacy.ledger_line import LedgerLine


class Ledger:
    """The lines of a run.

    Opening reads what is there. A last line cut short by a crash is copied to ``ledger.torn`` and
    cut off: its ``append`` never returned, so nothing was released under it. A last line that is
        whole but for its line feed is
    kept and counted.

    Args:
        path: the file; None keeps the lines in memory only.

    Raises:
        PrivacyError: a whole line is malformed, a number is missing from the sequence, or is not
            finite.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: list[LedgerLine] = []
        self._size_bytes = 0
        if path is not None and path.exists():
            self._read(path)

    @property
    def lines(self) -> tuple[LedgerLine, ...]:
        """All lines so far, in order."""
        return tuple(self._lines)

    def append(self, line: LedgerLine) -> None:
        """Add a line; when this returns it is on disk.

        Raises:
            PrivacyError: the line does not carry the next number, or the file was changed by
                somebody else.
            OSError: it could not be written; then nothing may be released.
        """
        self._follow(line)
        if self._path is not None:
            self._write(self._path, line.encoded())
        self._lines.append(line)

    def events(self, role: str) -> list[Event]:
        """The events charged to one role, in order."""
        return [line.event for line in self._lines if role in line.roles]

    def replay(self, accountant: Accountant) -> None:
        """Charge every line to a fresh accountant, so that a resumed run goes on where it
        stopped."""
        for line in self._lines:
            accountant.add(line.role, line.event)

    def _follow(self, line: LedgerLine) -> None:
        expected = len(self._lines) + 1
        text = (
            f"ledger has release {line.release} where {expected} is expected; restore the file, "
            "never edit it"
        )
        require(line.release == expected, PrivacyError, text)

    def _write(self, path: Path, data: bytes) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size != self._size_bytes:
            raise PrivacyError(
                f"{path} has {size} bytes, expected {self._size_bytes}: another run wrote to it or "
                "a write failed; stop the other run and resume this one"
            )
        append_durably(path, data)
        self._size_bytes = size + len(data)

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        *whole, tail = data.split(b"\n")
        for number, raw in enumerate(whole, start=1):
            self._take(path, number, raw)
        self._size_bytes = len(data)
        if tail:
            self._finish(path, tail)

    def _take(self, path: Path, number: int, raw: bytes) -> None:
        """Check a line of the file and go on behind it."""
        try:
            line = LedgerLine.decoded(raw)
        except PrivacyError as error:
            raise PrivacyError(
                f"{path} line {number} is malformed, expected a ledger line; restore it from a "
                f"copy ({error})") from error
        self._follow(line)
        self._lines.append(line)

    def _finish(self, path: Path, tail: bytes) -> None:
        """A last line without line feed: complete it when it is whole, else set it aside and cut it
        off.

        Half a JSON object is no JSON. What is JSON and yet no sound line was not cut short by a
        crash, and may stand for a release: it is an error.
        """
        if _is_json(tail):
            self._take(path, len(self._lines) + 1, tail)
            self._write(path, b"\n")
            return
        torn = path.with_suffix(".torn")
        append_durably(torn, tail + b"\n")
        self._size_bytes -= len(tail)
        with path.open("r+b") as file:
            file.truncate(self._size_bytes)
            os.fsync(file.fileno())


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True
