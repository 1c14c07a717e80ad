"""The command line: one file a command. Heavy libraries are loaded inside commands, so that help is
instant."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from aulait.cli import (
    account,
    bench,
    compare,
    demo,
    export,
    generate,
    join,
    keys,
    listing,
    plan,
    probe,
    report,
    run,
    serve,
    status,
    sweep,
)
from aulait.cli.terminal import Commands

PANELS = (
    ("Start", (demo.demo, run.run, plan.plan)),
    ("Compare", (sweep.sweep, compare.compare, report.report)),
    ("Use a finished run", (generate.generate, export.export)),
    ("Deploy", (serve.serve, join.join, status.status)),
    ("Look things up", (listing.catalogue, probe.probe, account.account, bench.bench)),
)
GROUPS = (("Deploy", keys.app),)  # commands with commands of their own
NAMES = {"catalogue": "list"}

_ABOUT = (
    "Fine-tune a language model across institutions that may not share their text and do not own "
    "the same machines."
)

app = typer.Typer(
    name="aulait",
    cls=Commands,
    help=_ABOUT,
    epilog="Begin with: aulait demo. Errors exit with 2, an interrupted run with 130; "
           "AULAIT_TRACEBACK=1 shows where.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _panel, _commands in PANELS:
    for _command in _commands:
        app.command(NAMES.get(_command.__name__, _command.__name__),
                    rich_help_panel=_panel)(_command)
for _panel, _group in GROUPS:
    app.add_typer(_group, rich_help_panel=_panel)


def _version(wanted: bool) -> None:
    if wanted:
        from aulait import __version__

        typer.echo(f"aulait {__version__}")
        raise typer.Exit


@app.callback()
def _settle(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True,
                           help="Show the version and exit.")
    ] = False,
) -> None:
    """Set what every command needs; the help text is above."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)


def main() -> None:
    """Entry point of the ``aulait`` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal without these letters shows others, and never fails
            stream.reconfigure(errors="replace")
    app()
