"""The privacy events of a run, in order, on disk before anything they describe is released.

One JSON object a line. A line is written, flushed and synchronised before ``append`` returns, and
never changed. Every line holds the hash of the one before it, the first that of the run's name; the
head, which is the run's name with the number and the hash of the last line, is written and
synchronised beside the ledger (``ledger.head``) after every line and still before the release. The
checkpoint and result.json hold the head as well. So a ledger that was cut, deleted, edited,
reordered or taken from another run does not fit what lies beside it.

A line more than the head knows is legal: a crash between the two leaves it, and it is charged.

What this does not stop: the hashes have no key. Who can write to the folder can write ledger, head
and checkpoint anew so that they fit one another, or bring back an older copy of all of them. Only a
witness outside the folder sees that: a noted head, a copy of result.json elsewhere, or in a
deployment the accounts that the sites keep of themselves.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aulait.core.errors import PrivacyError, require
from aulait.core.files import append_durably, json_document, replace_file
from aulait.core.parsing import BeyondLimitsError, parsed_json
from aulait.privacy.accounting import Accountant, Event
from aulait.privacy.ledger_line import LedgerLine


class LedgerHead(BaseModel):
    """How far a ledger has come.

    Attributes:
        run: name of the run, drawn at random when its ledger was begun.
        lines: number of lines.
        hash: SHA-256 of the last line, in hexadecimal; without a line ``first_link`` of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    lines: Annotated[int, Field(ge=0, strict=True)]
    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def read(cls, values: object, where: str) -> LedgerHead:
        """The head that a file holds.

        Raises:
            PrivacyError: it holds none.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise PrivacyError(f"{where} holds no head of a ledger, expected run, lines and hash; "
                               "restore it from a copy") from error


def first_link(run: str) -> str:
    """What the first line of a run's ledger holds in the place of the hash of a line before it."""
    return hashlib.sha256(f"aulait ledger of run {run}".encode()).hexdigest()


class Ledger:
    """The lines of a run.

    Opening reads what is there and holds it against ``ledger.head``. A last line cut short by a
    crash is copied to ``ledger.torn`` and cut off: its ``append`` never returned, so nothing was
    released under it. A last line that is whole but for its line feed is kept and counted. A ledger
    of an earlier version, without hashes, is read; the lines that are added to it are chained.

    Args:
        path: the file; None keeps the lines in memory only.
        repair: complete or cut off a last line that a crash left; False refuses it and changes no
            file.

    Raises:
        PrivacyError: a whole line is malformed, a number is missing from the sequence, or is not
            finite; a line does not follow on the one before it, or the ledger is another than its
            head knows.
    """

    def __init__(self, path: Path | None, *, repair: bool = True) -> None:
        self._path = path
        self._lines: list[LedgerLine] = []
        self._size_bytes = 0
        known = None if path is None else _read_head(_head_path(path))
        self._run = known.run if known else secrets.token_hex(16)
        self._links = [first_link(self._run)]  # after no line, after one, ...
        if path is not None and path.exists():
            self._read(path, known, repair)
        elif known is not None:
            self._fit(known, f"{path} beside {_head_path(path).name}" if path else "")

    @property
    def lines(self) -> tuple[LedgerLine, ...]:
        """All lines so far, in order."""
        return tuple(self._lines)

    @property
    def head(self) -> LedgerHead:
        """How far it has come."""
        return LedgerHead(run=self._run, lines=len(self._lines), hash=self._links[-1])

    @property
    def chained(self) -> bool:
        """Whether every line holds the hash of the one before it."""
        return all(line.previous is not None for line in self._lines)

    def begin(self) -> None:
        """Put the name of the run on disk before its first line, so that a ledger that is deleted
        as a whole is missed."""
        if self._path is not None:
            self._keep_head(self._path)

    def hold_against(self, known: LedgerHead, who: str) -> None:
        """Compare with a head that was noted earlier; lines that came after it are legal.

        Args:
            known: the noted head.
            who: where it was noted, for the message.

        Raises:
            PrivacyError: this is another run's ledger, or it is shorter, or another than it was.
        """
        self._fit(known, f"{self._path or 'the ledger'} beside {who}")

    def append(self, line: LedgerLine) -> None:
        """Add a line, with the hash of the one before it; when this returns line and head are on
        disk.

        Raises:
            PrivacyError: the line does not carry the next number, or the file was changed by
                somebody else.
            OSError: it could not be written; then nothing may be released.
        """
        self._follow(line)
        line = line.model_copy(update={"previous": self._links[-1]})
        if self._path is not None:
            self._check_alone(self._path)
            if not self._lines:
                self.begin()
            self._write(self._path, line.encoded())
        self._take(line, line.encoded().rstrip(b"\n"))
        if self._path is not None:
            self._keep_head(self._path)

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
        if line.sampling.cohorts is not None:  # the account of a turn is that of one cohort
            before = next((one.sampling.cohorts for one in self._lines if one.sampling.cohorts),
                          line.sampling.cohorts)
            require(line.sampling.cohorts == before, PrivacyError,
                    f"ledger release {line.release} has {line.sampling.cohorts} cohorts that take "
                    f"turns after {before}, expected the same in all; restore the file, never "
                    "edit it")

    def _take(self, line: LedgerLine, raw: bytes) -> None:
        """Count a line. One of an earlier version is hashed together with all that were before
        it, as it does not name them itself."""
        before = b"" if line.previous else self._links[-1].encode()
        self._lines.append(line)
        self._links.append(hashlib.sha256(before + raw).hexdigest())

    def _fit(self, known: LedgerHead, where: str) -> None:
        what = "restore ledger.jsonl and ledger.head from a copy, never edit them"
        require(known.run == self._run, PrivacyError,
                f"{where} found with the ledger of another run, or deleted; expected that of run "
                f"{known.run[:8]}; {what}")
        require(known.lines <= len(self._lines), PrivacyError,
                f"{where} found with {len(self._lines)} lines, expected at least {known.lines}: "
                f"releases were cut off; {what}")
        require(known.hash == self._links[known.lines], PrivacyError,
                f"{where} found with another line {known.lines} than was written; {what}")

    def _check_alone(self, path: Path) -> None:
        """Nobody else writes to the file."""
        size = path.stat().st_size if path.exists() else 0
        if size != self._size_bytes:
            raise PrivacyError(
                f"{path} has {size} bytes, expected {self._size_bytes}: another run wrote to it or "
                "a write failed; stop the other run and resume this one"
            )

    def _write(self, path: Path, data: bytes) -> None:
        append_durably(path, data)
        self._size_bytes += len(data)

    def _keep_head(self, path: Path) -> None:
        replace_file(_head_path(path), json_document(self.head.model_dump()))

    def _read(self, path: Path, known: LedgerHead | None, repair: bool) -> None:
        """Take the lines of the file, hold them against the head, and only then repair the end."""
        data = path.read_bytes()
        *whole, tail = data.split(b"\n")
        complete = _is_json(tail)
        if complete or (tail and not repair):
            whole.append(tail)
        for number, raw in enumerate(whole, start=1):
            self._check(path, number, raw)
        self._size_bytes = len(data)
        if known is not None:
            self._fit(known, f"{path} beside {_head_path(path).name}")
            more = len(self._lines) - known.lines
            require(more <= 1, PrivacyError,
                    f"{path} found with {more} lines more than {_head_path(path).name} knows, "
                    "expected at most one; restore both from a copy")
        if repair and tail:
            self._finish(path, tail, complete)

    def _check(self, path: Path, number: int, raw: bytes) -> None:
        """Check a line of the file and go on behind it."""
        try:
            line = LedgerLine.decoded(raw)
        except PrivacyError as error:
            raise PrivacyError(
                f"{path} line {number} is malformed, expected a ledger line; restore it from a "
                f"copy ({error})") from error
        self._follow(line)
        if line.previous is None:
            require(not any(one.previous for one in self._lines), PrivacyError,
                    f"{path} line {number} names no line before it, expected the hash of line "
                    f"{number - 1}; restore the file, never edit it")
        else:
            require(_head_path(path).exists(), PrivacyError,
                    f"{_head_path(path)} is missing, expected beside a ledger whose lines are "
                    "chained; restore it from a copy")
            require(line.previous == self._links[-1], PrivacyError,
                    f"{path} line {number} does not follow on the line before it: one of them was "
                    "edited, moved, or is another run's; restore the file, never edit it")
        self._take(line, raw)

    def _finish(self, path: Path, tail: bytes, complete: bool) -> None:
        """A last line without line feed: complete it when it is whole, else set it aside and cut it
        off.

        Half a JSON object is no JSON. What is JSON and yet no sound line was not cut short by a
        crash, and may stand for a release: it is an error.
        """
        if complete:
            self._write(path, b"\n")
            return
        torn = path.with_suffix(".torn")
        append_durably(torn, tail + b"\n")
        self._size_bytes -= len(tail)
        with path.open("r+b") as file:
            file.truncate(self._size_bytes)
            os.fsync(file.fileno())


def _head_path(path: Path) -> Path:
    return path.with_suffix(".head")


def _read_head(path: Path) -> LedgerHead | None:
    """What ledger.head holds; None where it is missing.

    Raises:
        PrivacyError: it holds something else.
    """
    if not path.exists():
        return None
    try:
        values = parsed_json(path.read_bytes())
    except ValueError:
        values = None
    return LedgerHead.read(values, str(path))


def _is_json(raw: bytes) -> bool:
    """Whether bytes are a whole JSON text; what is too deep or too large to be told counts as one,
    so that it is refused and never cut off."""
    try:
        parsed_json(raw)
    except BeyondLimitsError:
        return True
    except ValueError:
        return False
    return True
