"""Where a run goes that is not told where."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path


def fresh_folder(name: str) -> Path:
    """A folder runs/NAME-DATE-TIME that does not exist yet."""
    label = re.sub(r"[^\w.=-]+", "-", name).strip("-.") or "run"
    stem = f"{label}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path
