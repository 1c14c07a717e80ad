"""``aulait report``: write the page of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.run import Json

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def report(run: Run, as_json: Json = False) -> None:
    """Write RUN/report.html, one self-contained page, from what is in the folder."""
    from aulait import reporting as page

    path = page.write(run)
    if as_json:
        terminal.document({"report": str(path)})
    else:
        terminal.say(str(path))
