"""``aulait demo``: a private two-stage run on data that every installation has."""

from __future__ import annotations

import json
import textwrap
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption, OpenOption, VerboseOption
from aulait.cli.run import carry_out, show
from aulait.runfolder.naming import fresh_folder
from aulait.runs import experiment_file

# everything that a whole demonstration does, once; what it learns is not worth a look
QUICK = ("data.clients=12", "data.records_per_client=6", "synthesis.rounds=1",
         "synthesis.candidates=8", "synthesis.texts=24", "train.rounds=1", "train.steps=2")


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR",
                                  help="The run folder. Default: runs/demo-DATE-TIME.")
    ] = None,
    real: Annotated[
        bool, typer.Option("--real", help="On SmolLM2, which writes text to read; extra smollm2.")
    ] = False,
    quick: Annotated[bool, typer.Option(
        "--quick", help="Only try the installation: the same with 12 clients and one round of "
                        "each stage, in less than a minute.")] = False,
    open_page: OpenOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """See the whole thing work on this machine, in a few minutes, without a download.

    Sixty clients with private texts; one in five trains, the others vote for synthetic text that
    stands for them; epsilon 8 for each client. Built-in model, built-in data. With --real forty
    clients, on SmolLM2. The same --out again goes on where it stopped.
    """
    name = "demo-real.toml" if real else "demo.toml"
    with terminal.work(as_json, verbose), as_file(files("aulait") / "cli" / name) as file:
        settings = experiment_file.read_settings(file, QUICK if quick else ())
        path = out or fresh_folder(settings.run.name)
        begun = (path / "config.toml").is_file()
        asked = [*(["--real"] if real else []), *(["--quick"] if quick else [])]
        again = ["aulait", "demo", *asked, "--out", str(path)]
        result = carry_out(settings, path, begun, again)
    show(result, path, as_json)
    if open_page:
        terminal.open_page(path / "report.html")
    if real and not as_json:
        _show_texts(path / "synthetic.jsonl")


def _show_texts(file: Path) -> None:
    """A few of the texts that stood for the clients who cannot train."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    texts = [" ".join(json.loads(line)["text"].split()) for line in lines[:: len(lines) // 6 or 1]]
    terminal.say()
    terminal.say(f"written in stage 1, {min(6, len(texts))} of {len(lines)} texts ({file})")
    for text in texts[:6]:
        terminal.say(f"  {textwrap.shorten(text, 160, placeholder=' ...')}")
