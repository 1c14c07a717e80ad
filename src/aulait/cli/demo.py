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
QUICK = ("data.clients=12", "data.records_per_client=6", "synthesis.texts=24", "train.rounds=1",
         "train.steps=2")
QUICK_RETRIEVED = ("synthesis.retrieve.levels=1",)
QUICK_WRITTEN = ("synthesis.rounds=1", "synthesis.candidates=8")


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

    Sixty clients with private texts; one in five trains, the others vote on public texts, and those
    that win stand for them; epsilon 8 for each client. Built-in model, built-in data. With --real
    forty clients, on SmolLM2, which writes what stands for them. The same --out again goes on where
    it stopped.
    """
    name = "demo-real.toml" if real else "demo.toml"
    with terminal.work(as_json, verbose), as_file(files("aulait") / "cli" / name) as file:
        less = (*QUICK, *(QUICK_WRITTEN if real else QUICK_RETRIEVED)) if quick else ()
        settings = experiment_file.read_settings(file, less)
        path = out or fresh_folder(settings.run.name)
        begun = (path / "config.toml").is_file()
        asked = [*(["--real"] if real else []), *(["--quick"] if quick else [])]
        again = ["aulait", "demo", *asked, "--out", str(path)]
        result = carry_out(settings, path, begun, again)
    show(result, path, as_json)
    if open_page:
        terminal.open_page(path / "report.html")
    if not as_json:
        _show_texts(path / "synthetic.jsonl", "written after their votes" if real
                    else "public texts that the votes chose")


def _show_texts(file: Path, what: str) -> None:
    """A few of the texts that stood for the clients who cannot train."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    texts = [" ".join(json.loads(line)["text"].split()) for line in lines[:: len(lines) // 6 or 1]]
    width = min(160, (terminal.columns() or 160) - 2)
    terminal.say()
    terminal.prose(f"{what}, {min(6, len(texts))} of {len(lines)} ({file})")
    for text in texts[:6]:
        terminal.say(f"  {textwrap.shorten(text, width, placeholder=' ...')}")
