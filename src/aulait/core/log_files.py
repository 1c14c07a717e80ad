"""Logs of JSON lines: what a line may hold, and a file that is set aside when it has grown large.

A line may hold texts of strangers. It is ASCII and escaped, so that no text steers the terminal of
who reads it, and cut, so that no text fills the disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

LONGEST_TEXT = 2000
LARGEST_LOG_BYTES = 64 * 2**20


def timestamp() -> str:
    """The time, ISO 8601, UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def event_line(kind: str, /, **fields: object) -> str:
    """An event as one line of JSON, without its line feed: ``time`` and ``event``, then the fields.

    Texts are cut at 2,000 letters; what JSON lacks becomes null or text. No field can take the
    place of ``time`` or ``event``.
    """
    head = {"time": timestamp(), "event": kind}
    own = {key: short_json(value) for key, value in fields.items() if key not in head}
    return json.dumps(head | own, allow_nan=False)


def plain_text(value: object, most: int = 500) -> str:
    """A stranger's text for a person's terminal: one line, nothing that steers it, cut."""
    text = value if isinstance(value, str) else "no text"
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def short_json(value: object) -> Any:
    """The value as JSON has it, its texts cut."""
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # infinite or undefined
    if isinstance(value, Mapping):
        return {str(key)[:LONGEST_TEXT]: short_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [short_json(item) for item in value]
    return str(value)[:LONGEST_TEXT]


class JsonLinesLog(RotatingFileHandler):
    """A log of events that several processes may add to; NAME.jsonl goes to NAME.1.jsonl when full.

    The file is opened for every event: another process may have set it aside meanwhile. It has mode
    0600.

    Args:
        path: of the log; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LARGEST_LOG_BYTES, backupCount=1, encoding="ascii",
                         delay=True)
        self.namer = lambda _: str(path.with_suffix(f".1{path.suffix}"))

    def add(self, kind: str, /, **fields: object) -> None:
        """Add an event.

        Raises:
            OSError: the file cannot be written.
        """
        record = logging.makeLogRecord({"msg": event_line(kind, **fields)})
        try:
            self.handle(record)
        finally:
            with contextlib.suppress(OSError):  # told already, by the write
                self._close_stream()

    def handleError(self, record: logging.LogRecord) -> None:
        """Whoever adds an event decides what a full disk means."""
        raise

    def _open(self) -> TextIOWrapper:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return TextIOWrapper(os.fdopen(handle, "ab"), encoding=self.encoding)

    def _close_stream(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()
