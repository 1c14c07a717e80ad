"""What happens at a site: JSON lines in its own log, and what a person sees on the terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from aulait.core.log_files import JsonLinesLog, plain_text

Say = Callable[[str], None]


class SiteLog:
    """The log of a site; may be told from several threads.

    Args:
        path: of the log. Sensitive: it may hold what is measured here.
        say: told of what is shown, a line each.
    """

    def __init__(self, path: Path, say: Say) -> None:
        self._path, self._say, self._lock = path, say, threading.Lock()
        self._log, self._fault = JsonLinesLog(path), ""

    def event(self, name: str, /, **fields: object) -> None:
        """Log it; a refusal is shown too. Why work failed is not: it may hold words of the
        records."""
        self._write(name, fields)
        if name == "refused":
            failed = fields.get("why") == "failed"
            self._say(f"failed: the reason is in {self._path}" if failed
                      else f"refused: {plain_text(fields.get('reason'))}")

    def shown(self, name: str, text: str, /, **fields: object) -> None:
        """Log it, and show it in these words."""
        self._write(name, fields)
        self._say(text)

    def _write(self, name: str, fields: dict[str, object]) -> None:
        """A log that cannot be written, on a full disk say, stops nothing; what must be on disk
        before an answer leaves is not here."""
        fault = ""
        with self._lock:
            try:
                self._log.add(name, **{"what" if key == "kind" else key: value
                                       for key, value in fields.items()})
            except OSError as error:
                fault = (f"{self._path} cannot be written ({error.strerror or error}); going on "
                         "without it")
        if fault and fault != self._fault:
            self._say(fault)
        self._fault = fault
