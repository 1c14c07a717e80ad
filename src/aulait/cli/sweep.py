"""``aulait sweep``: several arms and seeds of one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from aulait.cli import terminal
from aulait.cli.compare import show
from aulait.cli.options import FileArgument, JsonOption, SetOption
from aulait.cli.terminal import Document
from aulait.core.errors import ConfigError
from aulait.engines.inline import InlineEngine
from aulait.reporting import numbers
from aulait.reporting.grouping import comparison_rows
from aulait.reporting.report import write_comparison
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import sweep as sweeps
from aulait.runs.composed_epsilon import ComposedEpsilon, composed_epsilon_of
from aulait.runs.private_sweep import PrivateChoice, select_privately
from aulait.runs.sweep import Job, JobOutcome

OverOption = Annotated[
    list[str] | None,
    typer.Option("--over", metavar="KEY=V1,V2",
                 help="Values of a setting; several make all combinations. Repeatable."),
]
ArmOption = Annotated[
    list[str] | None,
    typer.Option("--arm", metavar="'LABEL: KEY=V KEY=V'",
                 help="One more arm, spelled out. Repeatable."),
]
SeedsOption = Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Seeds of every arm.")]
SweepOutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR",
                              help="Folder of the run folders. Default: runs/NAME-sweep-DATE.")
]
JobsOption = Annotated[int,
    typer.Option("--jobs", min=1, help="Runs at a time, each in a process of its own.")]

SelectOption = Annotated[
    Literal["all", "private"],
    typer.Option("--select",
                 help="private: run a secret, random number of randomly drawn arms, and keep and "
                      "tell of the best by public text alone (evaluate.on = 'public').")
]
AverageOption = Annotated[float,
    typer.Option("--average-runs", help="With --select private: runs on average, above 1.")]


def sweep(  # noqa: PLR0913 (the options of a command)
    file: FileArgument,
    over: OverOption = None,
    arm: ArmOption = None,
    seeds: SeedsOption = "0",
    overrides: SetOption = None,
    out: SweepOutOption = None,
    jobs: JobsOption = 1,
    select: SelectOption = "all",
    average_runs: AverageOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Run all arms with all seeds and compare them. The same command again goes on where it
    stopped.

    Example: aulait sweep cafe.toml --over algorithm.name=ffa,fedit --seeds 0,1,2 --out runs/methods
    """
    arms = [*sweeps.arms_over(over or []), *(sweeps.named_arm(text) for text in arm or [])]
    if not arms:
        raise ConfigError("the sweep has no arm; add --over key=v1,v2 or --arm 'label: key=value'")
    with terminal.work(as_json):
        folder = (
            out or Path("runs") / f"{file.stem}-sweep-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        )
        work = sweeps.sweep_jobs(file, arms, _numbers(seeds), overrides or [], folder)
        if select == "private":
            choice = _selected(work, average_runs, folder)
        else:
            outcomes = _carry_out(work, jobs, folder)
            rows, cost = _compared(outcomes, folder)
    if select == "private":
        _show_choice(choice, as_json)
        return
    _show(outcomes, rows, cost, folder, as_json)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _selected(work: Sequence[Job], average_runs: float, folder: Path) -> PrivateChoice:
    if len({job.seed for job in work}) > 1:
        raise ConfigError("--select private found several seeds, expected one; give one of --seeds")
    return select_privately(work, InlineEngine(), average_runs, folder)


def _show_choice(found: PrivateChoice, as_json: bool) -> None:
    """What a private selection tells: of the kept run alone."""
    if as_json:
        terminal.document(found.document())
        return
    terminal.say(f"selected  {found.arm}  (loss on public text {numbers.loss(found.loss)})")
    terminal.say(f"run       {found.path}")
    terminal.paragraph(
        f"Epsilon of the selection is {found.epsilon:.4g} (delta {found.delta:g}), more than the "
        f"run's own ledger says, as long as {found.assumed}.")


def _show(outcomes: Sequence[JobOutcome], rows: list[Document], cost: ComposedEpsilon,
          folder: Path, as_json: bool) -> None:
    if as_json:
        keys = ("label", "seed", "status", "message")
        told = [{"path": str(outcome.path), **{key: getattr(outcome, key) for key in keys}}
                for outcome in outcomes]
        terminal.document({"rows": rows, "runs": told, "composed": cost.document()})
    elif rows:
        show(rows, cost)
        terminal.say()
        terminal.say(f"page   {folder / 'compare.html'}")
        terminal.say(f"table  {folder / 'table.json'}")


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise ConfigError(f"--seeds {text}: expected whole numbers >= 0, for example --seeds 0,1,2")
    return found


def _carry_out(work: Sequence[Job], workers: int, folder: Path) -> list[JobOutcome]:
    """Every run, with a line when it is done."""
    count = 0

    def tell(outcome: JobOutcome) -> None:
        nonlocal count
        count += 1
        lead = f"{count}/{len(work)}  {outcome.label} seed {outcome.seed}"
        if outcome.status == "failed":
            for line in outcome.message.splitlines() or ["no reason was given"]:
                terminal.fail(f"{lead}: {line}")
        else:
            terminal.note(
                f"{lead}: {outcome.status} · loss {numbers.loss(outcome.loss)} · "
                f"{numbers.duration(outcome.wall_s)}"
            )

    try:
        return sweeps.run_all(work, InlineEngine(), workers, tell)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the same command with --out {folder} goes on where it stopped") from None


def _compared(outcomes: Sequence[JobOutcome],
              folder: Path) -> tuple[list[Document], ComposedEpsilon]:
    """The rows of the comparison, and what all runs have spent together, those that failed
    included; also written to table.json and compare.html."""
    ordered = sorted(o.path for o in outcomes if o.status != "failed")
    begun = sorted(o.path for o in outcomes if (o.path / "config.toml").is_file())
    cost = composed_epsilon_of(begun)
    if not ordered:
        return [], cost
    rows = comparison_rows(ordered)
    RunFolder(folder).write_json("table.json", {"rows": rows, "composed": cost.document()})
    write_comparison(ordered, folder / "compare.html", remark=cost.sentence)
    return rows, cost
