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

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from aulait.core.errors import AulaitError
from aulait.core.files import JsonMapping, JsonObject, json_document, replace_file, writing
from aulait.core.log_files import JsonLinesLog, short_json, timestamp
from aulait.core.parsing import parsed_json

FOLDER = "serve"
PAUSE_S, SHORT_PAUSE_S = 0.5, 0.1


def read_table(path: Path) -> JsonObject:
    """A JSON object of RUN/serve; empty while the file is missing, spoilt or something else."""
    try:
        value = parsed_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


class EventLog:
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
        self._log = JsonLinesLog(self.folder / "log.jsonl")
        known = read_table(self.folder / "sites.json").items()
        self._sites = {name: {**facts, "state": "unknown"} for name, facts in known
                       if isinstance(facts, dict)}
        self._dirty, self._written_s = False, -PAUSE_S
        self._later: threading.Timer | None = None

    def event(self, kind: str, /, **fields: Any) -> None:
        """Add an event to log.jsonl."""
        with self._lock, writing(self.folder):
            self._log.add(kind, **fields)
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
                last_seen (``timestamp()``, or seconds since 1970), round (the last that it was
                asked in), detail.
        """
        with self._lock:
            before = self._sites.setdefault(name, {})
            changed = "state" in facts and facts["state"] != before.get("state")
            before.update({key: short_json(value) for key, value in facts.items()})
            self._dirty = True
        self._settle(SHORT_PAUSE_S if changed else PAUSE_S)

    def progress(self, stage: str, done: int, total: int, note: str) -> None:
        """Write progress.json; the same four as a ``Watch`` is told, so that it can be one."""
        self._json("progress.json", {
            "time": timestamp(), "stage": stage, "done": done, "total": total,
            "note": short_json(note)})

    def outcome(self, ok: bool, **fields: Any) -> None:
        """Write outcome.json, the last thing a server does; a failure has ``error``, one line, and
        ``kind``, its class."""
        self.flush()
        self._json("outcome.json",
            {"ok": bool(ok), "time": timestamp(),
             **{key: short_json(value) for key, value in fields.items()}})

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

    def _json(self, name: str, value: JsonMapping) -> None:
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
