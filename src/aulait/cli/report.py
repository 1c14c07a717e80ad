"""``aulait report``: write the page of a run again."""

from __future__ import annotations

from aulait.cli import terminal
from aulait.cli.options import JsonOption, OpenOption, RunArgument
from aulait.reporting.report import write_report


def report(run: RunArgument, open_page: OpenOption = False, as_json: JsonOption = False) -> None:
    """Write RUN/report.html, one self-contained page, from what is in the folder."""
    path = write_report(run)
    if as_json:
        terminal.document({"report": str(path)})
    else:
        terminal.say(str(path))
    if open_page:
        terminal.open_page(path)
