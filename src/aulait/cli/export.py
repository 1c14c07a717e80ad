"""``aulait export``: take the adapter, or the whole adapted model, out of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.report import Run
from aulait.cli.run import Json


def export(
    run: Run,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold the adapter into the base and write the whole model.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy the adapter in PEFT format, or with --merge write a model that AutoModelForCausalLM loads."""
    from aulait import exported

    with terminal.work(as_json):
        files = exported.export(run, to, merge=merge)
    if as_json:
        terminal.document({"to": str(to), "merged": merge, "files": files})
    else:
        terminal.say(f"{'model with the adapter folded in' if merge else 'adapter (PEFT format)'}  {to}")
        terminal.say(f"files  {', '.join(files)}")
