"""Scalars of a run for TensorBoard and MLflow: a mirror of rounds.jsonl, and of nothing else.

A tracker hears a line only when a checkpoint holds it (``RunFolder.checkpoint``), so that no line
that a resume drops is ever shown. It counts lines, so that none is written twice: TensorBoard's
folder is made again from rounds.jsonl when a run is entered again; of an MLflow run the server is
asked how many lines it has.

A tag is ``stage/key``, or ``stage/key/inner`` for a table such as ``eval``; the step is the round
of the stage. Numbers only: texts, names and infinite epsilons are left out.

Boards leave the machine. Under privacy they get released and public values alone, by the list
``RELEASED``: what a simulation measures on held-out records, the seconds of a round, and what a
third party's method adds of its own stay in the run folder. Scores are passed on where they were
measured on public texts, as in a deployment.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from aulait.core.errors import DataError, install
from aulait.core.files import replace_file
from aulait.core.reading import read_json_object

INSTALL = install("track")
COUNTER = "lines"
EXPECTED = (
    "expected the address of a tracking server, as 'http://127.0.0.1:5000', or "
    "'sqlite:///mlflow.db'"
)
# A dead tracking server may not hold up a round for minutes, and MLflow reports usage to its makers
# unless told not to.
MLFLOW = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
          "MLFLOW_DISABLE_TELEMETRY": "true"}
RELEASED = frozenset({
    "stage", "round", "epsilon", "noise_std", "step_noise_std", "signal_to_noise", "update_norm",
    "clip_bound", "candidates", "kept", "up_bytes", "down_bytes", "proxies", "clock"})
# Tables of the settings that may leave the machine under privacy: not where texts lie, not who
# tracks, and not the seed of noise.
PUBLIC_TABLES = frozenset({"model", "adapter", "algorithm", "train", "privacy", "synthesis"})
SECRET_KEYS = frozenset({"privacy.noise_seed"})
LONGEST_PARAMETER = 500
PARAMETERS_AT_ONCE = 100  # which a server of MLflow takes
RoundValues = Mapping[str, Any]


class TrackConfig(BaseModel):
    """``[track]``.

    Attributes:
        tensorboard: write scalars into RUN/tensorboard.
        mlflow: tracking URI of MLflow; empty for none. It may hold no password: config.toml and the
            report show it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tensorboard: bool = False
    mlflow: str = ""


def problems(config: TrackConfig) -> list[str]:
    """Why these settings cannot work here, one line each: a package that is missing, an address
    that is none."""
    found = []
    if config.tensorboard and find_spec("tensorboard") is None:
        found.append(
            "track.tensorboard = true needs the package tensorboard, which is not installed; "
            f"{INSTALL}, or set it to false")
    if not config.mlflow:
        return found
    if find_spec("mlflow") is None:
        found.append(
            f"track.mlflow needs the package mlflow-skinny, which is not installed; {INSTALL}, or "
            "leave track.mlflow empty")
    try:
        address = urlsplit(config.mlflow)
        secret = "@" in address.netloc
    except ValueError:
        return [*found, f"track.mlflow is not an address; {EXPECTED}"]
    if secret:  # the value is not repeated
        found.append(
            "track.mlflow holds a user or password, which config.toml would show; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment")
    elif not address.scheme or address.scheme == "file":
        found.append(
            f"track.mlflow = {config.mlflow!r} is no address that MLflow writes to; {EXPECTED}")
    elif address.scheme.startswith("sqlite") and not (find_spec("sqlalchemy")
            and find_spec("alembic")):
        found.append(
            "track.mlflow = 'sqlite:...' needs sqlalchemy and alembic; pip install sqlalchemy "
            "alembic, or name a server")
    return found


def released(line: RoundValues) -> RoundValues:
    """What of a line of rounds.jsonl may leave the machine under privacy."""
    found = {key: value for key, value in line.items() if key in RELEASED}
    scores = line.get("eval")
    if isinstance(scores, Mapping) and scores.get("measured_on") == "public texts":
        found["eval"] = scores
    return found


def scalars(line: RoundValues) -> dict[str, float]:
    """Tag -> number of a line of rounds.jsonl; ``stage`` and ``round`` become the tag's head and
    the step."""
    return dict(_numbers(str(line.get("stage", "run")), {key: value for key, value in line.items()
        if key not in ("stage", "round")}))


def _numbers(head: str, table: RoundValues) -> Iterator[tuple[str, float]]:
    for key, value in table.items():
        # what every tracker accepts as a name
        tag = f"{head}/{re.sub('[^A-Za-z0-9_. -]', '_', str(key))}"
        if isinstance(value, Mapping):
            yield from _numbers(tag, value)
        elif isinstance(value, int | float) and not isinstance(value,
                bool) and math.isfinite(value):
            yield tag, float(value)


def parameters(settings: Mapping[str, object], private: bool) -> dict[str, str]:
    """Dotted key -> value of the settings of a run; under privacy those of ``PUBLIC_TABLES``."""
    tables = {name: table for name, table in settings.items()
              if not private or name in PUBLIC_TABLES}
    found = dict(_values("", tables))
    return {key: value for key, value in found.items() if not private or key not in SECRET_KEYS}


def _values(head: str, tree: object) -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _values(f"{head}.{key}" if head else str(key), value)
    elif isinstance(tree, list | tuple) and any(isinstance(item, Mapping) for item in tree):
        for number, value in enumerate(tree):
            yield from _values(f"{head}.{number}", value)
    elif tree is not None:
        yield head, str(tree)[:LONGEST_PARAMETER]


class Board(Protocol):
    """Where lines go."""

    def describe(self, settings: Mapping[str, str]) -> None:
        """Keep what the run was asked to do, where the board has a place for it."""

    def attach(self, file: Path) -> None:
        """Keep a file of the run, where the board has a place for it."""

    def count(self) -> int:
        """Lines that it holds."""

    def write(self, number: int, line: RoundValues) -> None:
        """Add a line; ``number`` counts from 1."""

    def close(self, status: str) -> None:
        """End with "FINISHED", "FAILED" or "KILLED"."""


class TensorBoard:
    """Event files in RUN/tensorboard, made again by every process that works on the run."""

    def __init__(self, run: Path) -> None:
        # optional, and slow to import
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer: Any = SummaryWriter(str(folder))
        self._count = 0

    def describe(self, settings: Mapping[str, str]) -> None:
        """TensorBoard keeps numbers alone."""

    def attach(self, file: Path) -> None:
        """TensorBoard keeps numbers alone."""

    def count(self) -> int:
        """Lines written by this process: all there are, because the folder began empty."""
        return self._count

    def write(self, number: int, line: RoundValues) -> None:
        """Add a line and put it on disk."""
        for tag, value in scalars(line).items():
            self._writer.add_scalar(tag, value, int(line.get("round", number)))
        self._count = number
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the file; TensorBoard has no word for how a run ended."""
        self._writer.close()


class MLflow:
    """One MLflow run for a run folder, which remembers its id in track.json.

    Every line goes as one batch with the metric ``lines``, the number of the line, which says after
    a restart what is there.
    """

    def __init__(self, run: Path, uri: str, name: str) -> None:
        for key, value in MLFLOW.items():
            os.environ.setdefault(key, value)
        # optional
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._param, self._client, held = Metric, Param, MlflowClient(
            tracking_uri=uri), run / "track.json"
        known = read_json_object(held, DataError, "the id of a run in MLflow; remove it for a run "
                                 "of its own") if held.exists() else {}
        if known.get("uri") == uri and "run" in known:
            self._id = str(known["run"])
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(number, run_name=run.resolve().name).info.run_id
        replace_file(held, (json.dumps({"uri": uri, "run": self._id}) + "\n").encode())

    def describe(self, settings: Mapping[str, str]) -> None:
        """The settings as parameters; those of a run that goes on are there already, and equal."""
        every = [self._param(key, value) for key, value in settings.items()]
        for first in range(0, len(every), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._id, params=every[first:first + PARAMETERS_AT_ONCE])

    def attach(self, file: Path) -> None:
        """A file as artifact."""
        self._client.log_artifact(self._id, str(file))

    def count(self) -> int:
        """Lines that the server has."""
        return int(self._client.get_run(self._id).data.metrics.get(COUNTER, 0))

    def write(self, number: int, line: RoundValues) -> None:
        """Send a line."""
        now_ms, step = int(1000 * time.time()), int(line.get("round", number))
        metrics = [self._metric(tag, value, now_ms, step) for tag, value in scalars(line).items()]
        self._client.log_batch(self._id,
            metrics=[*metrics, self._metric(COUNTER, float(number), now_ms, number)])

    def close(self, status: str) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self._id, status=status)


def on_terminal(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"{text}\n")


class Tracker:
    """Passes lines on to the boards that ``[track]`` names; a board that fails is told of once and
    tried again later.

    Args:
        config: the settings; without any board nothing happens.
        run: the run folder.
        name: of the run: MLflow's experiment.
        private: whether the run promises privacy, so that only released values are passed on.
        warn: told, a line each, of a board that fails; by default the terminal is.
    """

    def __init__(self, config: TrackConfig, run: Path, name: str,
                 warn: Callable[[str], None] = on_terminal, *, private: bool) -> None:
        self._warn, self._private = warn, private
        self._makers: dict[str, Callable[[], Board]] = (
            {"TensorBoard": lambda: TensorBoard(run)} if config.tensorboard else {}
        )
        if config.mlflow:
            self._makers["MLflow"] = lambda: MLflow(run, config.mlflow, name)
        self._boards: dict[str, Board] = {}
        self._counts: dict[str, int] = {}
        self._told: set[str] = set()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        status = (
            "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        )
        for name, board in self._boards.items():
            try:
                board.close(status)
            except Exception as refusal:
                self._tell(name, refusal)

    def kept(self, lines: Sequence[RoundValues]) -> None:
        """Pass on the lines of rounds.jsonl that a board lacks. Never raises: tracking is no reason
        to stop a run.

        Args:
            lines: all lines so far; none of them is ever taken back.
        """
        for name in self._makers:
            try:
                self._bring(name, lines)
            except Exception as error:
                self._counts.pop(name, None)  # what arrived of the last line is asked for again
                self._tell(name, error)

    def described(self, settings: Mapping[str, object]) -> None:
        """Pass on what the run was asked to do. Never raises."""
        told = parameters(settings, self._private)
        self._each(lambda board: board.describe(told))

    def attach(self, file: Path) -> None:
        """Pass on a page, which under privacy holds released values alone. Never raises."""
        self._each(lambda board: board.attach(file))

    def _each(self, give: Callable[[Board], None]) -> None:
        for name in self._makers:
            try:
                give(self._opened(name))
            except Exception as error:
                self._tell(name, error)

    def _opened(self, name: str) -> Board:
        if name not in self._boards:
            self._boards[name] = self._makers[name]()
        return self._boards[name]

    def _bring(self, name: str, lines: Sequence[RoundValues]) -> None:
        board = self._opened(name)
        if name not in self._counts:
            self._counts[name] = board.count()
        for number in range(self._counts[name] + 1, len(lines) + 1):
            line = lines[number - 1]
            board.write(number, released(line) if self._private else line)
            self._counts[name] = number

    def _tell(self, name: str, error: Exception) -> None:
        if name not in self._told:
            self._told.add(name)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._warn(f"{name} does not take the rounds ({reason}); the run goes on, and tries "
                       "again with each round")
