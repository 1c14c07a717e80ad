"""A run watched in a notebook: one line that changes, instead of a line for every round."""

from __future__ import annotations

import html
import sys
import time
from typing import Protocol

from aulait.reporting.stage_names import STAGE_NAMES

STAGES = {"prepare": "preparing", **STAGE_NAMES, "finish": "finishing"}


class _Shown(Protocol):
    """What IPython gives for an output that may be changed."""

    def update(self, shown: object) -> None:
        """Show something else in its place."""


class NotebookProgress:
    """For ``progress`` of ``aulait.run``: a bar below the cell; lines on stdout elsewhere."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._handle: _Shown | None = None
        self._last = ""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """Told by the run: ``done`` of ``total`` rounds of a stage are finished."""
        line = f"{STAGES.get(stage, stage)} {done}/{total}"
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        screen = sys.modules.get("IPython.display") if hasattr(shell, "kernel") else None
        if screen is None:  # no kernel of Jupyter runs this
            if line != self._last:
                print(f"{line} {note}".rstrip())
            self._last = line
            return
        spent = f"{time.monotonic() - self._began_s:.0f} s"
        shown = screen.HTML(f'<progress value="{done}" max="{max(total, 1)}"></progress> '
                            f"{html.escape(f'{line} · {spent} · {note}'.rstrip(' ·'))}")
        if self._handle is None:
            self._handle = screen.display(shown, display_id=True)
        else:
            self._handle.update(shown)
