"""What a command shows, held against a file that a person has looked at.

``AULAIT_SNAPSHOTS=write`` writes the files anew; then look at what git shows.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "unit" / "cli" / "snapshots"


def held(name: str, shown: str) -> None:
    """Compare with the snapshot of that name; blanks at the ends of lines do not count."""
    path = FOLDER / f"{name}.txt"
    text = "".join(f"{line.rstrip()}\n" for line in shown.splitlines())
    if os.environ.get("AULAIT_SNAPSHOTS") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no snapshot {path}; make it by AULAIT_SNAPSHOTS=write"
    assert text == path.read_text(encoding="utf-8"), f"differs from {path}; AULAIT_SNAPSHOTS=write renews it"
