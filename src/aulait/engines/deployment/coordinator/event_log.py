"""What a server tells its operator while it holds a run: files in RUN/serve, read by ``aulait
status`` and by the metrics.

    log.jsonl      a line for every event; the last file of more than 64 MiB is kept as log.1.jsonl
    sites.json     site -> role, tier, state, last_seen, round, detail
    progress.json  stage, done, total, note, time
    outcome.json   how it ended; missing while it runs

The folder is the operator's: it holds measured seconds and who answered when, which no noise
covers. It is not part of what a run releases; do not pass it on with the run.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aulait.core.errors import AulaitError
from aulait.core.files import json_document, replace_file, writing

FOLDER = "serve"
LONGEST_TEXT = 2000
LARGEST_LOG_BYTES = 64 * 2**20
PAUSE_S, SHORT_PAUSE_S = 0.5, 0.1


def now() -> str:
    """The time, ISO 8601, UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def line(kind: str, /, **fields: Any) -> str:
    """An event as one line of JSON, without its line feed: ``time`` and ``event``, then the fields.

    Letters beyond ASCII and control characters are escaped, so that a text from a site cannot steer
    the terminal of who reads the log; texts are cut at 2,000 letters, so that it cannot fill the
    disk. No field can take the place of ``time`` or ``event``. What JSON lacks becomes null or
    text.
    """
    head = {"time": now(), "event": kind}
    return json.dumps({**head, **{key: _short(value) for key, value in fields.items()
        if key not in head}}, allow_nan=False)


def plain(value: Any, most: int = 500) -> str:
    """A stranger's text for a person's terminal: one line, nothing that steers it, cut."""
    text = value if isinstance(value, str) else "no text"
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def table(path: Path) -> dict[str, Any]:
    """A JSON object of RUN/serve; empty while the file is missing, spoilt or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _short(value: Any) -> Any:
    """The value as JSON has it, its texts cut."""
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # infinite or undefined
    if isinstance(value, Mapping):
        return {str(key)[:LONGEST_TEXT]: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_short(item) for item in value]
    return str(value)[:LONGEST_TEXT]


class Journal:
    """Writes RUN/serve; may be told from several threads.

    Several processes may add events; only the one that asks the sites tells of them and of the
    outcome. Sites that an earlier process knew are kept, in the state "unknown" until they are
    heard of.

    Args:
        run: the run folder.

    Raises:
        AulaitError: from every method: no space left, or the folder cannot be written to.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self._lock = threading.RLock()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._log = self.folder / "log.jsonl"
            if self._log.exists() and self._log.stat().st_size > LARGEST_LOG_BYTES:
                os.replace(self._log, self.folder / "log.1.jsonl")
        known = table(self.folder / "sites.json").items()
        self._sites = {name: {**facts, "state": "unknown"} for name, facts in known
                       if isinstance(facts, dict)}
        self._dirty, self._written_s = False, -PAUSE_S
        self._later: threading.Timer | None = None

    def event(self, kind: str, /, **fields: Any) -> None:
        """Add an event to log.jsonl."""
        data = (line(kind, **fields) + "\n").encode("ascii")
        with self._lock, writing(self.folder), self._log.open("ab", buffering=0) as file:
            file.write(data)  # one call of the system: lines of two processes do not mix
        self._settle(PAUSE_S)

    def warning(self, kind: str, /, **fields: Any) -> None:
        """Add an event that the operator should see: `aulait status` shows the last five."""
        self.event(kind, level="warning", **fields)

    def site(self, name: str, /, **facts: Any) -> None:
        """Merge facts about a site; sites.json has them within half a second, a changed state
        within a tenth.

        Args:
            name: of the site, as the roster has it.
            facts: role, tier, state ("there", "asked", "answered", "silent" or "refused"),
                last_seen (``now()``, or seconds since 1970), round (the last that it was asked in),
                detail.
        """
        with self._lock:
            before = self._sites.setdefault(name, {})
            changed = "state" in facts and facts["state"] != before.get("state")
            before.update({key: _short(value) for key, value in facts.items()})
            self._dirty = True
        self._settle(SHORT_PAUSE_S if changed else PAUSE_S)

    def progress(self, stage: str, done: int, total: int, note: str) -> None:
        """Write progress.json; the same four as a ``Watch`` is told, so that it can be one."""
        self._json("progress.json", {"time": now(), "stage": stage, "done": done, "total": total,
            "note": _short(note)})

    def outcome(self, ok: bool, **fields: Any) -> None:
        """Write outcome.json, the last thing a server does; a failure has ``error``, one line, and
        ``kind``, its class."""
        self.flush()
        self._json("outcome.json",
            {"ok": bool(ok), "time": now(),
             **{key: _short(value) for key, value in fields.items()}})

    def flush(self) -> None:
        """Write what is known of the sites now."""
        with self._lock:
            if self._later is not None:
                self._later.cancel()
                self._later = None
            self._settle(0.0)

    def begin(self) -> None:
        """Take away the outcome of an earlier attempt, before anything else is done."""
        with writing(self.folder):
            (self.folder / "outcome.json").unlink(missing_ok=True)

    def _json(self, name: str, value: Mapping[str, Any]) -> None:
        with self._lock, writing(self.folder):
            replace_file(self.folder / name, json_document(value))

    def _settle(self, pause_s: float) -> None:
        """Write what is known of the sites, now or as soon as the last time is so long ago."""
        with self._lock:
            left_s = self._written_s + pause_s - time.monotonic()
            if not self._dirty or (left_s > 0 and self._later is not None):
                return
            if left_s <= 0:
                self._json("sites.json", self._sites)
                self._dirty, self._written_s = False, time.monotonic()
                return
            self._later = threading.Timer(left_s, self._catch_up)
            self._later.daemon = True
            self._later.start()

    def _catch_up(self) -> None:
        with self._lock:
            self._later = None
            # the next call meets it again, where it can end the run
            with suppress(AulaitError, OSError):
                self._settle(0.0)
