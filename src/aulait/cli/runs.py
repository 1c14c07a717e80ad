"""``aulait runs``: the run folders below a place, the newest first."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.ending import epsilon_in_words
from aulait.cli.options import JsonOption
from aulait.cli.terminal import Document
from aulait.core.errors import DataError, require
from aulait.engines.deployment.coordinator.status import read_status
from aulait.reporting import numbers as n
from aulait.reporting.folder import FILES, read_run

SHOWN = ("config.toml", "result.json")


def runs(
    place: Annotated[Path, typer.Argument(
        metavar="[DIR]", help="Where to look, at most three folders deep.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """List run folders, the newest first: where each stands, what it gained, at what epsilon."""
    require(place.is_dir(), DataError,
            f"found no folder {place}, expected one that holds runs; give another, or begin with: "
            "aulait demo")
    found = sorted(map(_entry, _folders(place)), key=lambda entry: entry["changed"], reverse=True)
    if as_json:
        terminal.document(found)
        return
    if not found:
        terminal.say(f"no run in {place}")
        return
    rows = [(entry["path"], entry["state"], _loss(entry), _epsilon(entry), entry["algorithm"] or "",
             "" if entry["seed"] is None else n.count(entry["seed"]), entry["changed"][:16])
            for entry in found]
    terminal.table(n.counted(len(found), "run"), (
        "run", "state", "held-out loss", "epsilon", "method", "seed", "changed"), rows, right=(5,))


def _folders(place: Path) -> list[Path]:
    """The folders below a place that hold a run; what lies within a run is not looked at."""
    found: list[Path] = []
    level = [place]
    for _ in range(4):
        ahead: list[Path] = []
        for folder in level:
            if any((folder / name).is_file() for name in SHOWN):
                found.append(folder)
            else:
                ahead += sorted(path for path in folder.iterdir()
                                if path.is_dir() and not path.is_symlink())
        level = ahead
    return found


def _entry(folder: Path) -> Document:
    status, run = read_status(folder), read_run(folder)
    times = [(folder / name).stat().st_mtime for name in FILES if (folder / name).is_file()]
    changed = datetime.fromtimestamp(max(times)).astimezone()
    off = run.result.privacy.off
    return {**{key: status[key] for key in ("path", "name", "state", "epsilon")},
            "private": status["private"] if off is None else not off,
            "algorithm": run.result.algorithm, "seed": run.result.seed,
            "base_loss": run.result.base_eval.loss, "loss": status["loss"] or run.result.eval.loss,
            "changed": changed.isoformat(sep=" ", timespec="seconds")}


def _loss(entry: Document) -> str:
    if entry["loss"] is None:
        return "–"
    before = "" if entry["base_loss"] is None else f"{n.loss(entry['base_loss'])} → "
    return f"{before}{n.loss(entry['loss'])}"


def _epsilon(entry: Document) -> str:
    """The largest of the roles; None among them is infinite."""
    if not entry["private"]:
        return "infinite" if entry["private"] is False else "–"
    values = entry["epsilon"].values()
    if not values:
        return "–"
    return epsilon_in_words(None if None in values else max(values))
