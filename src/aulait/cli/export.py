"""``aulait export``: take the adapter, or the whole adapted model, out of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import ClientOption, JsonOption, RunArgument
from aulait.models import exported


def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.")],
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Fold the adapter into the base and write the whole model.")
    ] = False,
    client: ClientOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the adapter in PEFT format, or with --merge write a model that AutoModelForCausalLM (or
    ForSeq2SeqLM) loads.

    Example: aulait export runs/hospitals --client ward-3 --to ward-3
    """
    with terminal.work(as_json):
        files = exported.export(run, to, merge=merge, client=client)
    if as_json:
        terminal.document({"to": str(to), "merged": merge, "client": client, "files": files})
    else:
        whose = "the adapter" if client is None else f"the personal adapter of {client}"
        terminal.say(
            f"{f'model with {whose} folded in' if merge else f'{whose} (PEFT format)'}  {to}")
        terminal.say(f"files  {', '.join(files)}")
