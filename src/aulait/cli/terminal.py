"""What the terminal shows: errors as one line, progress as a bar, numbers with units, one JSON document when asked.

Arrow on this floor: ``report.numbers``, so that the terminal and the page write a figure in the same way.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from aulait.errors import AulaitError

USAGE: Any = typer.BadParameter.__mro__[1]  # click's UsageError, which newer typer carries inside itself
INTERRUPTED = 130
STAGES = {"prepare": "preparing", "synthesis": "stage 1, synthesis", "train": "stage 2, training", "finish": "finishing"}
Row = Sequence[Any]


class Commands(TyperGroup):
    """The command group: a problem becomes a red line on stderr and exit code 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; AULAIT_TRACEBACK=1 lets errors through as they are."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            fail(f"interrupted; {stop}" if str(stop) else "interrupted; nothing was left half-written")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except (AulaitError, OSError, USAGE) as error:
            if os.environ.get("AULAIT_TRACEBACK") == "1" and not isinstance(error, USAGE):
                raise
            fail(_told(error))
            raise typer.Exit(2) from None


def _told(error: Any) -> str:
    """An error in words, one line a problem."""
    if isinstance(error, AulaitError):
        return str(error)
    if isinstance(error, OSError):
        place = f" '{error.filename}'" if error.filename else ""
        return f"the system refused{place}: {error.strerror or error}; expected a place that can be read and written; check it"
    name = error.ctx.command_path if getattr(error, "ctx", None) is not None else "aulait"
    text = " ".join(error.format_message().split())
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; see {name} --help"


def fail(text: str) -> None:
    """Every line of the text as an error."""
    for line in text.splitlines() or [""]:
        typer.secho(f"error: {line}", fg=typer.colors.RED, err=True)


def note(text: str) -> None:
    """A remark, on stderr."""
    typer.secho(text, err=True)


def say(text: str = "") -> None:
    """A line of the answer, on stdout."""
    typer.echo(text)


def document(value: Any) -> None:
    """The one JSON document of a command; what is not a number in JSON becomes null."""
    from aulait.record import clean

    typer.echo(json.dumps(clean(value), indent=2, ensure_ascii=False, default=str))


@contextmanager
def work(quiet: bool) -> Iterator[None]:
    """With ``quiet``, whatever a library prints goes to stderr, so that stdout holds the JSON document alone."""
    if not quiet:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def table(title: str, head: Sequence[str], rows: Sequence[Row], right: Sequence[int] = ()) -> None:
    """A table on stdout; never cut off, also when stdout is no terminal.

    Args:
        title: above it.
        head: names of the columns.
        rows: cells, turned into text.
        right: numbers of the columns set flush right.
    """
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(head):
        made.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*[Text(str(cell)) for cell in row])
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(made)


class _Left(ProgressColumn):
    """Time left in the stage, from the rounds done so far."""

    def render(self, task: Task) -> Text:
        """Empty until a round is done."""
        return Text(left(task.elapsed or 0.0, task.fields.get("mark_s", 0.0), task.completed, task.total or 0), style="cyan")


def left(now_s: float, mark_s: float, done: float, total: float) -> str:
    """An estimate such as "about 40 s left".

    Args:
        now_s: seconds since the stage began.
        mark_s: seconds from there to the end of the last round.
        done: rounds finished.
        total: rounds of the stage.
    """
    if not 0 < done < total:
        return ""
    from aulait.report import numbers

    expected_s = max(0.0, mark_s / done * total - now_s)
    return f"about {numbers.duration(max(1, round(expected_s)))} left"


class Bar:
    """Watches a run: a bar on a terminal, a line for every round elsewhere. Both on stderr."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._tasks: dict[str, TaskID] = {}
        self._seen: set[tuple[str, int]] = set()
        self._began: dict[str, tuple[float, int]] = {}
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                   _Left(), TextColumn("[dim]{task.fields[note]}"))
        self._progress = Progress(*columns, console=Console(stderr=True), transient=False)

    def __enter__(self) -> Bar:
        if self.live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self._progress.stop()

    def __call__(self, stage: str, done: int, total: int, text: str) -> None:
        """Told by the loop: ``done`` of ``total`` rounds of a stage are finished."""
        start_s, first = self._began.setdefault(stage, (time.monotonic(), done))
        spent_s = time.monotonic() - start_s
        name = STAGES.get(stage, stage)
        if self.live:
            if stage not in self._tasks:
                self._tasks[stage] = self._progress.add_task(name, total=total, completed=done, note=text, mark_s=0.0)
            self._progress.update(self._tasks[stage], completed=done, total=total, note=text, mark_s=spent_s if not first else 0.0)
        elif stage in ("synthesis", "train", "prepare") and (stage, done) not in self._seen:
            self._seen.add((stage, done))
            remaining = left(spent_s, spent_s, done - first, total - first)
            facts = [f"{name} {done}/{total}", *([f"{spent_s:.0f} s"] if done > first else []), *filter(None, (remaining, text))]
            note(" · ".join(facts))


def ending(result: Mapping[str, Any], path: Path) -> None:
    """The short table after a run, the path of its report, and what to try next."""
    from aulait.report import numbers as n

    before, after = result["base_eval"], result["eval"]
    measures = (("held-out loss (nats a token)", "loss", n.loss), ("perplexity", "perplexity", n.perplexity),
                ("token accuracy", "token_accuracy", n.percent))
    rows = [(name, style(before.get(key)), style(after.get(key))) for name, key, style in measures]
    table(f"{result['name']}: {result['algorithm']}, {n.counted(result['clients'], 'client')}, {n.counted(result['rounds'], 'round')}",
          ("", "before", "after"), rows, right=(1, 2))
    say()
    facts = [*_guarantee(result), ("bytes up, all clients", n.size(result["traffic"]["up_bytes"])),
             ("bytes down, all clients", n.size(result["traffic"]["down_bytes"])), *_seconds(result["time"])]
    table("what it cost", ("", ""), facts, right=(1,))
    say()
    if result["privacy"].get("stopped_early"):
        note(f"stopped early: {result['privacy']['stopped_early']}")
    say(f"report  {path / 'report.html'}")
    say(f'next    aulait generate {path} "Return the"')


def _guarantee(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Epsilon of every role that exists."""
    from aulait.report import numbers as n

    privacy = result["privacy"]
    if privacy["off"]:
        return [("epsilon", "infinite (privacy is off)")]
    roles = sorted({tier["placement"] for tier in result["tiers"]})
    at = f"delta {privacy['delta']:g}"
    seeded = ", noise is seeded: not private" if privacy["noise_seeded"] else ""
    return [(f"epsilon of {role} clients", f"{epsilon(privacy['epsilon'].get(role))} ({at}{seeded})") for role in roles] + (
        [] if n.number(privacy["epsilon"]["max"]) is not None else [("epsilon, at most", "infinite")])


def epsilon(value: Any) -> str:
    """An epsilon in words: null is infinite."""
    from aulait.report import numbers

    text = numbers.epsilon(value)
    return "infinite" if text == numbers.INFINITE else text


def _seconds(spent: Mapping[str, float]) -> list[tuple[str, str]]:
    from aulait.report import numbers as n

    parts = (("synthesis", "synthesis_s"), ("training", "train_s"), ("evaluation", "evaluate_s"), ("everything", "wall_s"))
    return [(f"time, {name}", n.duration(spent.get(key))) for name, key in parts]
