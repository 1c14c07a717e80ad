"""``aulait watch``: a run while it goes on, in the browser or in the terminal."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from aulait.cli import terminal
from aulait.cli.ending import epsilon_in_words
from aulait.cli.options import RunArgument
from aulait.cli.page_server import PageServer, ServedPage
from aulait.cli.progress import whole
from aulait.cli.status import going_on
from aulait.core.files import PUBLIC, JsonObject, replace_file
from aulait.engines.deployment.coordinator.status import read_status
from aulait.reporting import numbers as n
from aulait.reporting.folder import FILES, RunFiles, read_run
from aulait.reporting.report import LivePage, report_page
from aulait.reporting.so_far import as_it_stands, place_in_words
from aulait.runfolder.schema import RoundLine, TrainRound
from aulait.runs.ledger_curves import ledger_curves

OVER = ("finished", "failed", "dead")
QUIET_S = 600.0
LAST_LOOK_S = 4.0
ROWS = 12
STATES = {"running": "The run goes on", "finished": "The run has finished",
          "failed": "The run was stopped by an error", "dead": "The run's process is gone",
          "unknown": "The run has no result yet"}


def watch(
    run: RunArgument,
    in_terminal: Annotated[bool, typer.Option("--terminal",
        help="Show the rounds here instead of serving a page.")] = False,
    once: Annotated[bool, typer.Option("--once",
        help="Write RUN/watch.html as things stand, or with --terminal print them, and leave.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535,
        help="The page's port on 127.0.0.1; 0 takes a free one.")] = 0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.2,
        help="How often to look into the folder.")] = 1.0,
) -> None:
    """Follow a run while it goes on: its report in the browser, or its rounds in the terminal.

    Serves a page to browsers of this machine alone, renewed whenever the run goes on, until the run
    ends or you press Ctrl-C; the run itself does not notice. Exits with 1 where the run failed.
    Example: aulait watch runs/cafe --terminal
    """
    first = RunLook(run, read_run(run))
    if once:
        _once(first, in_terminal)
        return
    try:
        last = _follow_here(first, every) if in_terminal else _serve(first, port, open_page, every)
    except KeyboardInterrupt:  # the way out of watching
        return
    terminal.say(last.sentence)
    if last.state == "finished":
        terminal.say(f"report  {run / 'report.html'}")
    else:
        raise typer.Exit(1)


@dataclass(frozen=True)
class RunLook:
    """A run folder at a moment; what follows from it is worked out when it is asked for."""

    path: Path
    run: RunFiles

    @cached_property
    def status(self) -> JsonObject:
        """As ``aulait status`` tells it."""
        return read_status(self.path)

    @property
    def state(self) -> str:
        """A key of ``STATES``."""
        return str(self.status["state"])

    @property
    def sentence(self) -> str:
        """Where the run stands."""
        place = place_in_words(*(self.status[key] for key in ("stage", "round", "rounds")))
        quiet_s = self.status["progress_s"]
        text = f"{STATES[self.state]}: {place}."
        if self.state == "dead":
            text += f" Go on with: {going_on(str(self.status['engine']), self.path)}"
        if self.state not in OVER and quiet_s is not None and quiet_s > QUIET_S:
            text += (f" Nothing has been written for {n.duration(quiet_s)}; look whether its "
                     "process is still there.")
        return text

    @cached_property
    def served(self) -> ServedPage:
        """The page, made when a browser first asks for it."""
        version = sha256(f"{_written(self.path)} {self.sentence}".encode()).hexdigest()[:16]
        return ServedPage(version, self.state in OVER, lambda: self.page(version))

    def page(self, version: str = "") -> str:
        """The report as it stands; with a version, one that renews itself."""
        remark = self.sentence if self.state == "finished" else (
            f"{self.sentence} What stands below is what there is so far.")
        return report_page(as_it_stands(self.run), ledger_curves(self.path),
                           live=LivePage(remark, version))


def _written(run: Path) -> list[tuple[int, int]]:
    """When each file of the run was written last, and its size."""
    found = [(run / name).stat() for name in FILES if (run / name).is_file()]
    return [(each.st_mtime_ns, each.st_size) for each in found]


def _looks(first: RunLook, every_s: float) -> Iterator[RunLook]:
    """The run whenever it was written to, until it is over."""
    look, written = first, _written(first.path)
    yield look
    while look.state not in OVER:
        time.sleep(every_s)
        now = _written(look.path)
        look = RunLook(look.path, read_run(look.path) if now != written else look.run)
        written = now
        yield look


def _once(look: RunLook, in_terminal: bool) -> None:
    if in_terminal:
        Console(width=terminal.columns() or 100).print(_rows(look))
        return
    out = look.path / "watch.html"
    replace_file(out, look.page().encode("utf-8"), mode=PUBLIC, durable=False)
    terminal.say(str(out))


def _serve(first: RunLook, port: int, open_page: bool, every_s: float) -> RunLook:
    """Serve the page until the run is over and a browser that looks has seen the end of it."""
    shown = [first]
    with PageServer(lambda: shown[0].served, port) as server:
        terminal.say(f"page  {server.address}")
        terminal.note("renewed while the run goes on; Ctrl-C ends the watching, not the run")
        if open_page:
            webbrowser.open(server.address)
        for look in _looks(first, every_s):
            if look.served.version != shown[0].served.version:
                shown[0] = look
        server.seen.wait(LAST_LOOK_S)
    return shown[0]


def _follow_here(first: RunLook, every_s: float) -> RunLook:
    """Show the rounds in place on a terminal; elsewhere a line for every change."""
    look = first
    console = Console()
    if not console.is_terminal:
        said = ""
        for look in _looks(first, every_s):
            if look.sentence != said:
                said = look.sentence
                terminal.say(said)
        return look
    with Live(_rows(first), console=console, auto_refresh=False) as live:
        for look in _looks(first, every_s):
            live.update(_rows(look), refresh=True)
    return look


def _rows(look: RunLook) -> RenderableType:
    """The last rounds in as many columns as the terminal has room for."""
    lines = [*look.run.synthesis, *look.run.training]
    spent = ", ".join(f"{role} {epsilon_in_words(value)}"
                      for role, value in look.status["epsilon"].items() if value != 0)
    head = ("stage", "round", "held-out loss", "epsilon", "signal / noise", "seconds", "up")
    table = terminal.fitted_table(head, [_row(line) for line in lines[-ROWS:]],
                                  range(1, len(head)), terminal.columns() or 100)
    parts: list[RenderableType] = [Text(f"{look.status['name']}: {look.sentence}", style="bold")]
    parts += [Text(f"epsilon so far: {spent}", style="dim")] if spent else []
    return Group(*parts, table)


def _row(line: RoundLine) -> tuple[str, ...]:
    training = line if isinstance(line, TrainRound) else TrainRound()
    told = line.epsilon.on_disk().values()
    epsilon = "–" if not told else epsilon_in_words(
        None if None in told else max(map(float, told)))
    return (line.stage or "–", n.or_dash(line.round, n.count),
            n.or_dash(training.eval.loss, n.loss), epsilon,
            n.or_dash(training.signal_to_noise, n.significant),
            "–" if line.wall_s is None else whole(line.wall_s),
            n.or_dash(line.up_bytes, n.size))
