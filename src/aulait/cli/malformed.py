"""A line about rows of the data that could not be used."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aulait.cli import terminal
from aulait.data.client_data import NAMED_ROWS

_UNDECODED = re.compile(": not (?!JSON|CSV)")
_ENCODING = " (set data.encoding, or data.public_encoding, to what the file is written in)"


def malformed(lines: Sequence[str]) -> None:
    """One line about rows that could not be used: how many, and the first three."""
    if lines:
        undecoded = any(_UNDECODED.search(line) for line in lines)
        count = f"more than {NAMED_ROWS:,}" if len(lines) > NAMED_ROWS else str(len(lines))
        terminal.note(
            f"{count} malformed row{'s were' if len(lines) > 1 else ' was'} left out: "
            f"{'; '.join(lines[:3])}"
            f"{_ENCODING if undecoded else ''}")
