"""Where a run goes that is not told where, and the names within what a private selection keeps."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Final

LOG: Final = "log.jsonl"  # of a simulation: its owner's, never to be released
KEPT_RUN: Final = "selected"
MOST_BYTES: Final = 150  # of a run's name in that of its folder; file systems take 255 in all
SELECTION: Final = "selection.json"


def folder_label(name: str) -> str:
    """The name of a run as a part of a file's name."""
    return re.sub(r"[^\w.=-]+", "-", name).strip("-.") or "run"


def fresh_folder(name: str) -> Path:
    """A folder runs/NAME-DATE-TIME that does not exist yet."""
    label = folder_label(name).encode()[:MOST_BYTES].decode(errors="ignore")
    stem = f"{label}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path
