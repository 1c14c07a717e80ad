"""``aulait compare``: several runs in one table, arms over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aulait.cli import terminal
from aulait.cli.run import Json
from aulait.errors import DataError


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write the comparison as a page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare finished runs: one row for each arm, mean and spread over its seeds."""
    from aulait import report

    folders = expanded(runs)
    rows = report.table(folders)
    if out is not None:
        report.compare(folders, out)
    if as_json:
        terminal.document({"rows": rows, "page": None if out is None else str(out)})
        return
    show(rows)
    if out is not None:
        terminal.say()
        terminal.say(f"page  {out}")


def expanded(paths: Sequence[Path]) -> list[Path]:
    """The run folders among or directly below the paths, each once.

    Raises:
        DataError: a path holds none.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(p.parent for p in path.glob("*/config.toml")) if path.is_dir() else []
        if (path / "config.toml").is_file() or (path / "result.json").is_file():
            found.append(path)
        elif inside:
            found += inside
        else:
            raise DataError(f"found no run in {path}, expected a run folder or a folder of run folders; check the path")
    return list({path.resolve(): path for path in found}.values())


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table on stdout."""
    from aulait.report import numbers as n

    def spread(row: dict[str, Any], key: str, style: Any) -> str:
        return n.spread(row[key], row.get(f"{key}_std"), style) if row[key] is not None else "not finished"

    lines = [
        (
            row["arm"],
            row["algorithm"],
            f"{row['n']}" + (f" (+{row['unfinished']} unfinished)" if row["unfinished"] else ""),
            spread(row, "loss", n.loss),
            spread(row, "perplexity", n.perplexity),
            spread(row, "token_accuracy", n.percent),
            terminal.epsilon(row["epsilon_max"]),
            n.size(row["up_bytes"]),
            n.size(row["down_bytes"]),
            n.duration(row["wall_s"]),
        )
        for row in rows
    ]
    head = ("arm", "method", "seeds", "held-out loss", "perplexity", "accuracy", "epsilon", "up", "down", "time")
    terminal.table("arms, mean ± deviation over seeds", head, lines, right=range(2, 10))
