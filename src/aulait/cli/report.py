"""``aulait report``: write the page of a run again."""

from __future__ import annotations

from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption, OpenOption, RunArgument
from aulait.reporting.report import write_report
from aulait.runs.ledger_curves import ledger_curves


def report(
    run: RunArgument,
    release: Annotated[bool, typer.Option("--release",
        help="Write RUN/report-release.html instead, to be handed on: released values and what was "
             "public before, without anything measured on clients' text outside the "
             "guarantee.")] = False,
    open_page: OpenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write RUN/report.html, one self-contained page, from what is in the folder."""
    path = write_report(run, ledger_curves(run), release)
    if as_json:
        terminal.document({"report": str(path)})
    else:
        terminal.say(str(path))
    if open_page:
        terminal.open_page(path)
