"""``aulait demo``: a private two-stage run on data that every installation has."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption
from aulait.cli.run import carry_out, show
from aulait.runfolder.naming import fresh_folder
from aulait.runs import experiment_file


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR",
                                  help="The run folder. Default: runs/demo-DATE-TIME.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """See the whole thing work on this machine, in a few minutes, without a download.

    Sixty clients with private texts; one in five trains, the others vote for synthetic text that
    stands for them; epsilon 8 for each client. Built-in model, built-in data. The same --out again
    goes on where it stopped.
    """

    with terminal.work(as_json), as_file(files("aulait") / "cli" / "demo.toml") as file:
        settings = experiment_file.read_settings(file)
        path = out or fresh_folder(settings.run.name)
        begun = (path / "config.toml").is_file()
        result = carry_out(settings, path, begun, ["aulait", "demo", "--out", str(path)])
    show(result, path, as_json)
