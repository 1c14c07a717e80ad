"""Watching a run: a bar with an estimate on a terminal, one plain line for every round elsewhere.
Both on stderr."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from aulait.cli import terminal
from aulait.reporting import numbers
from aulait.reporting.stage_names import STAGE_NAMES

STAGES = {"wait": "waiting for sites", "prepare": "preparing", **STAGE_NAMES,
          "finish": "finishing"}


class _Left(ProgressColumn):
    """Time left in the stage, from the rounds done so far."""

    def render(self, task: Task) -> Text:
        """Empty until a round is done."""
        stage: _Stage = task.fields["stage"]
        return Text(stage.left(time.monotonic()), style="cyan")


class _Stage:
    """The clock of one stage: when it began, with how many rounds, and when the last round
    ended."""

    def __init__(self, done: int, total: int) -> None:
        self.began_s = self.marked_s = time.monotonic()
        self.first = self.done = done
        self.total = total

    def mark(self, done: int) -> None:
        """Another round is finished."""
        if done > self.done:
            self.done, self.marked_s = done, time.monotonic()

    def left(self, now_s: float) -> str:
        """An estimate such as "about 40 s left"; empty before the first round of this process is
        done."""
        rounds = self.done - self.first
        if rounds <= 0 or self.done >= self.total:
            return ""
        expected_s = (
            (self.marked_s - self.began_s) / rounds
            * (self.total - self.done) - (now_s - self.marked_s)
        )
        return f"about {whole(max(expected_s, 1.0))} left"


def whole(time_s: float) -> str:
    """Seconds without a fraction: "40 s", "1 min 20 s"."""
    return f"{time_s:.0f} s" if time_s < 59.5 else numbers.duration(time_s)


class Bar:
    """Watches a run: a bar on a terminal, a line for every round elsewhere. Both on stderr."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._stages: dict[str, _Stage] = {}
        self._tasks: dict[str, TaskID] = {}
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            _Left(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> Bar:
        if self.live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self._progress.stop()

    def __call__(self, name: str, done: int, total: int, text: str) -> None:
        """Told by the loop: ``done`` of ``total`` rounds of a stage are finished."""
        known = self._stages.get(name)
        stage = self._stages.setdefault(name, _Stage(done, total))
        advanced = known is None or done > stage.done
        stage.mark(done)
        if self.live:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(STAGES.get(name, name), total=total,
                    note=text, stage=stage)
            self._progress.update(self._tasks[name], completed=done, total=total, note=text)
        elif advanced and name in STAGE_NAMES:
            terminal.note(_line(name, stage, text))
        elif advanced and text:
            terminal.note(f"{STAGES.get(name, name)} · {text}")


def _line(name: str, stage: _Stage, text: str) -> str:
    """A round as a line: stage, count, time spent, time left, remark."""
    spent = whole(stage.marked_s - stage.began_s) if stage.done > stage.first else ""
    return " · ".join(
        filter(None, (f"{STAGES[name]} {stage.done}/{stage.total}", spent,
                      stage.left(stage.marked_s), text))
    )
