"""``aulait compare``: several runs in one table, arms over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption, OpenOption
from aulait.cli.terminal import Document
from aulait.core.errors import ConfigError, DataError, require
from aulait.reporting import columns, comparability, measures, numbers, pace
from aulait.reporting.grouping import comparison_rows
from aulait.reporting.report import write_comparison
from aulait.runs.composed_epsilon import ComposedEpsilon, composed_epsilon_of


def compare(
    runs: Annotated[list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE",
                                  help="Also write the comparison as a page.")
    ] = None,
    target_loss: Annotated[
        float | None,
        typer.Option("--target-loss", metavar="LOSS",
            help="Time arms to this held-out loss in virtual time. Default: the largest of "
                     "the runs' smallest losses, which every run reaches."),
    ] = None,
    open_page: OpenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare finished runs: one row for each arm, mean and spread over its seeds, the best arm
    first.

    Arms are ranked by the task metric where all have the same one, or else by the loss. Runs of a
    sweep are grouped by its arms; with labels such as "name=fedit preset=uniform" the page shows
    methods in lines and settings in colours. Runs with virtual time are also timed to a loss: at
    the end of the first measured round at or below it.
    """
    folders = run_folders(runs)
    rows = comparison_rows(folders, target_loss)
    if target_loss is not None and not any("virtual_s" in row for row in rows):
        terminal.note(
            "--target-loss changes nothing: no finished run has virtual time; give every "
            "federation.tier a machine")
    require(out is not None or not open_page, ConfigError,
            "found --open without --out, expected a page to open; add --out FILE.html")
    cost = composed_epsilon_of(folders)
    if out is not None:
        write_comparison(folders, out, target_loss, cost.sentence)
    if as_json:
        used = next((row["target_loss"] for row in rows if row.get("target_loss") is not None),
                    None)
        page = None if out is None else str(out)
        terminal.document({"ranked_by": measures.ranking_measure(rows).key, "target_loss": used,
                           "rows": rows, "page": page, "composed": cost.document()})
        return
    show(rows, cost)
    if out is not None:
        terminal.say()
        terminal.say(f"page  {out}")
        if open_page:
            terminal.open_page(out)


WIDTH = 400  # letters of a line that no terminal shows
BESIDE = ("compare.html", "table.json")


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders among or directly below the paths, each once.

    Raises:
        DataError: a path holds none.
    """
    found: list[Path] = []
    # RUNS/* names what a sweep left beside them
    folders = [path for path in paths if path.name not in BESIDE or path.is_dir()]
    for path in folders:
        inside = sorted(p.parent for p in path.glob("*/config.toml")) if path.is_dir() else []
        if (path / "config.toml").is_file() or (path / "result.json").is_file():
            found.append(path)
        elif inside:
            found += inside
        else:
            raise DataError(
                f"found no run in {path}, expected a run folder or a folder of run folders; check "
                "the path")
    return list({path.resolve(): path for path in found}.values())


def show(rows: Sequence[Document], cost: ComposedEpsilon) -> None:
    """The table on stdout, the best arm first, and what the runs have spent together."""
    found = columns.comparison_columns(rows)
    lines = [[column.cells[i].replace(numbers.INFINITE, "infinite") for column in found]
             for i in range(len(rows))]
    measure = measures.ranking_measure(rows)
    title = (
        f"arms, {'highest' if measure.rising else 'lowest'} {measure.name} first; mean ± deviation "
        "over seeds; behind the first: paired, 95 % interval"
    )
    terminal.table(title, [column.title for column in found], lines,
                   right=sorted({*range(len(found))} - {*columns.word_columns(found)}),
                   width=WIDTH)
    if refused := comparability.refusal(rows):
        terminal.alarm(refused)
    own = sorted({row["algorithm"] for row in rows if row["personal"]})
    if own:
        terminal.paragraph(
            f"{', '.join(own)}: scores of the clients' own adapters; 'shared' is the adapter that "
            "all have in common.")
    if pace.target_explained(rows):
        terminal.paragraph(
            f"{pace.target_explained(rows)} Virtual time is modelled from the tiers' machines; "
            "--target-loss sets another loss.")
    if cost.sentence:
        terminal.paragraph(cost.sentence)
