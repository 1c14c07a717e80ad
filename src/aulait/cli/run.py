"""``aulait run``: one experiment into one folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from aulait.cli import terminal
from aulait.cli.ending import ending
from aulait.cli.malformed import malformed
from aulait.cli.options import (
    FileArgument,
    JsonOption,
    OpenOption,
    OutOption,
    ResumeOption,
    SetOption,
    VerboseOption,
)
from aulait.cli.progress import Bar
from aulait.cli.terminal import Document
from aulait.core.errors import ConfigError
from aulait.engines.inline import InlineEngine
from aulait.runfolder.naming import fresh_folder
from aulait.runs import experiment_file, loop, setup
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer
from aulait.runs.settled import as_begun


def run(  # noqa: PLR0913 (the options of a command)
    file: FileArgument,
    overrides: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    open_page: OpenOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run an experiment: the two stages, the evaluation, the report.

    Example: aulait run experiments/cafe.toml --set train.rounds=3 --set privacy.epsilon=4.0
    """
    if resume and (out is None or not (out / "config.toml").is_file()):
        found = "no --out" if out is None else f"no run in --out {out}"
        raise ConfigError(
            f"--resume found {found}, expected the folder of an interrupted run; add --out DIR, or "
            "leave --resume out"
        )
    with terminal.work(as_json, verbose):
        settings = experiment_file.read_settings(file, overrides or [])
        path = out or fresh_folder(settings.run.name)
        again = [
            "aulait",
            "run",
            str(file),
            *(word for o in overrides or [] for word in ("--set", o)),
            "--out",
            str(path),
            "--resume",
        ]
        result = carry_out(settings, path, resume, again)
    show(result, path, as_json)
    if open_page:
        terminal.open_page(path / "report.html")


def carry_out(settings: Settings, path: Path, resume: bool, again: Sequence[str]) -> Document:
    """Run with a progress bar; an interrupt says how to go on.

    Args:
        settings: the experiment.
        path: the run folder.
        resume: go on with what is there.
        again: the words of the command that goes on with it.

    Returns:
        What result.json holds.
    """
    cache = SharedCache()
    settings = as_begun(settings, path / "config.toml")
    try:
        with Bar() as bar:
            bar("prepare", 0, 1, "reading data, loading the base")
            malformed(setup.prepare(settings, cache).federation.corpus.malformed)
            return loop.run(settings, path, InlineEngine(), resume=resume, cache=cache,
                            observer=Observer(bar))
    except KeyboardInterrupt:
        begun = (path / "config.toml").is_file()
        raise KeyboardInterrupt(f"go on with: {shlex.join(again)}" if begun
                                else "nothing had started") from None


def show(result: Document, path: Path, as_json: bool) -> None:
    """The end of a run, as a table or as JSON."""
    if as_json:
        terminal.document({**result, "path": str(path), "report": str(path / "report.html")})
    else:
        ending(result, path)
