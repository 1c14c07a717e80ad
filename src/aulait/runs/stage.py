"""What the round loop runs: a stage, a round of it as planned, and the run that both belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from aulait.core.cohort import Cohort
from aulait.core.files import JsonObject
from aulait.core.types import ClientRequest, ClientUpdate, Info
from aulait.methods.contract import Ask, Server
from aulait.privacy.aggregator import PrivateAggregator
from aulait.runfolder.run_folder import RunFolder
from aulait.runfolder.schema import RoundLine
from aulait.runs.at_work import due
from aulait.runs.client_state import Memories
from aulait.runs.prepared import Books, Engine, PreparedRun
from aulait.runs.progress import Progress, RunWatch
from aulait.runs.virtual_time.clock import Clock, RoundOutcome


class RoundState(Protocol):
    """What a stage carries from round to round."""

    @property
    def round(self) -> int:
        """Rounds done."""


StateT = TypeVar("StateT", bound=RoundState)


@dataclass(frozen=True)
class Execution:
    """A run while it goes.

    Attributes:
        run: what runs.
        engine: reaches its clients.
        folder: of the run.
        books: what is spent.
        progress: where it stands.
        watch: is told how far it is.
    """

    run: PreparedRun
    engine: Engine
    folder: RunFolder
    books: Books
    progress: Progress
    watch: RunWatch

    @property
    def secret_seconds(self) -> bool:
        """Whether seconds would tell of clients' records: under privacy those of their own
        machines do, as the slowest sets them."""
        return self.engine.real_time and not self.run.settings.privacy.off


@dataclass(frozen=True)
class VirtualRound:
    """A round of virtual time.

    Attributes:
        clock: that it was made by.
        outcome: how it goes.
        shown: what is told of it; another round of the same law where ``outcome`` would tell who
            was drawn.
    """

    clock: Clock
    outcome: RoundOutcome
    shown: RoundOutcome

    def metrics(self) -> JsonObject:
        """What rounds.jsonl says of it."""
        return self.clock.metrics(self.shown)


@dataclass(frozen=True)
class PlannedRound:
    """Who works in a round, and how long that takes.

    Attributes:
        cohort: who works.
        virtual: its virtual time; None: no tier names a machine.
        at_work: client -> what it was asked, where clients work at their own pace.
    """

    cohort: Cohort
    virtual: VirtualRound | None
    at_work: Memories = field(default_factory=dict)

    def on_time(self, ask: Ask) -> Ask:
        """Asks only those whose updates will count."""
        if self.cohort.buffer is not None:
            return due(ask, self.cohort.buffer, self.at_work)
        return ask if self.virtual is None else received_on_time(ask, self.virtual.outcome.silent)


def received_on_time(ask: Ask, silent: frozenset[str]) -> Ask:
    """Ask all but those whose updates will not count: they are lost, or come too late."""

    def asking(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
        due = [request for request in requests if request.client not in silent]
        return iter(ask(due)) if due else iter(())

    return asking


class Stage(Protocol[StateT]):
    """One stage of a run, as the round loop sees it."""

    @property
    def name(self) -> str:
        """ "synthesis" or "train"."""

    @property
    def rounds(self) -> int:
        """Rounds planned, in all stages of this name."""

    @property
    def last(self) -> int:
        """The last round of this stage; rounds are counted through all stages of its name."""

    @property
    def seconds(self) -> tuple[str, ...]:
        """Keys of a round's line that are seconds of the clients' machines."""

    @property
    def line_type(self) -> type[RoundLine]:
        """What a round's line in rounds.jsonl is."""

    @property
    def ask(self) -> Ask:
        """Gets updates for requests, once the stage has begun."""

    @property
    def aggregator(self) -> PrivateAggregator:
        """Releases what comes of them."""

    def begin(self) -> StateT | None:
        """The state to go on from; None where the stage has no rounds to do."""

    def note(self) -> str:
        """What the progress bar says in the next round."""

    def plan(self, round: int) -> PlannedRound:
        """Who works in a round."""

    def step(self, state: StateT, cohort: Cohort, server: Server) -> tuple[StateT, Info]:
        """One round."""

    def measure(self, state: StateT, round: int) -> Info:
        """What the round's line says beside; held-out scores, where it is time for them."""

    def keep(self, state: StateT, info: Info, step_s: float, measure_s: float) -> None:
        """Put the round into the run's progress."""

    def end(self, state: StateT | None) -> None:
        """What follows the last round; ``state`` is None where the stage had no rounds to do."""
