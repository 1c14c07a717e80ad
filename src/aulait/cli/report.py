"""``aulait report``: write the page of a run again."""

from __future__ import annotations

from aulait import reporting as page
from aulait.cli import terminal
from aulait.cli.options import JsonOption, RunArgument


def report(run: RunArgument, as_json: JsonOption = False) -> None:
    """Write RUN/report.html, one self-contained page, from what is in the folder."""
    path = page.write(run)
    if as_json:
        terminal.document({"report": str(path)})
    else:
        terminal.say(str(path))
