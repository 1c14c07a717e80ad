"""Where a run stands: what a resumed run finds again, and who hears of it while it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from aulait.core import lora
from aulait.core.files import JsonMapping, JsonObject
from aulait.core.types import Adapter, Site, Tensors
from aulait.methods.contract import State
from aulait.privacy.ledger import Ledger, LedgerHead
from aulait.runfolder.run_folder import RunFolder, reading_checkpoint
from aulait.runfolder.schema import SCHEMA_VERSION
from aulait.runs import client_state
from aulait.runs.stage_order import StageSpan
from aulait.runs.virtual_time import clock
from aulait.synthesis.population import EvolutionState, Text
from aulait.tracking.boards import on_terminal

ScoreValues = JsonObject  # as ``eval`` stands in rounds.jsonl and in result.json
RunWatch = Callable[[str, int, int, str], None]  # stage, rounds done, rounds in all, a note


AT_WORK = "at-work/"  # tensors of requests in a checkpoint
# of the time when all runs had the usual order: stage of a checkpoint -> stages that are done
_PLACES = {"synthesis": 0, "train": 1, "done": 2}


def unwatched(stage: str, done: int, total: int, note: str) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Observer:
    """Who hears of a run while it goes.

    Attributes:
        watch: is told how far it is, for a progress bar.
        warn: is told what the operator should see and what stops nothing, a line each.
    """

    watch: RunWatch = unwatched
    warn: Callable[[str], None] = on_terminal


@dataclass
class Progress:
    """Where a run stands; everything a resumed run needs beside the ledger.

    Attributes:
        stage: "synthesis", "train" or "done".
        place: stages that are done.
        synthesis: state of stage 1.
        state: state of the method.
        texts: the synthetic set, dealt to proxies.
        totals: seconds and bytes by stage.
        base_eval: scores of the bare base.
        last_eval: scores after the last measured round.
        best: the state of the measured round of least loss, where ``train.keep`` asks for it; None
            as long as no round was better than the bare base.
        best_eval: its scores; of the base as long as none was better.
        stopped: why the run ended early, if it did.
        memory: what every site remembers; the sites' own dictionaries once they are bound.
        at_work: client -> what it was asked, where clients work at their own pace and its update is
            not yet due.
        personal: adapters of clients' own after the last round; made again when a run is resumed
            after it.
        noise_state: stage -> what the privacy mechanism remembers of its noise; the aggregator's
            own dictionary once it is bound. Secret, and not saved when the run is done.
        ledger: whose head is saved with the run, once it is bound; None without privacy.
        ledger_head: the head that the checkpoint held; None where it held none.
        members: what ``books.members`` said of the clients when the run began; empty without
            privacy, and in a checkpoint of an earlier version.
        schema_version: of the checkpoint that was found; 0 where there was none.
        counted_s: when the seconds were last counted, on the clock of ``time.perf_counter``.
    """

    stage: str = "synthesis"
    place: int = 0
    synthesis: EvolutionState | None = None
    state: State | None = None
    texts: list[list[Text]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    base_eval: ScoreValues = field(default_factory=dict)
    last_eval: ScoreValues = field(default_factory=dict)
    best: State | None = None
    best_eval: ScoreValues = field(default_factory=dict)
    stopped: str | None = None
    memory: client_state.Memories = field(default_factory=dict)
    at_work: client_state.Memories = field(default_factory=dict)
    personal: dict[str, Adapter] = field(default_factory=dict)
    ledger: Ledger | None = None
    ledger_head: LedgerHead | None = None
    members: str = ""
    schema_version: int = 0
    counted_s: float = field(default_factory=time.perf_counter)
    noise_state: dict[str, Tensors] = field(default_factory=dict)

    def choose(self, state: State) -> None:
        """Keep the state if what was last measured is better than everything before it, the bare
        base included. A loss that is no number is never better."""
        if not self.best_eval:
            self.best_eval = self.base_eval
        if self.last_eval["loss"] < self.best_eval["loss"]:
            self.best, self.best_eval = state, self.last_eval

    def add(self, **amounts: float | None) -> None:
        """Add to the totals."""
        for key, amount in amounts.items():
            self.totals[key] = self.totals.get(key, 0.0) + (amount or 0.0)

    def count_seconds(self) -> None:
        """Add the seconds since they were last counted."""
        now_s = time.perf_counter()
        self.add(wall_s=now_s - self.counted_s)
        self.counted_s = now_s

    def add_virtual(self, round_metrics: JsonMapping) -> JsonObject:
        """Add a round of virtual time to the totals.

        Returns:
            What rounds.jsonl says of the round, with the time since the start.
        """
        self.add(**clock.amounts(round_metrics))
        return {**round_metrics, "total_s": self.totals["clock|total_s"]}

    def advance(self, spans: Sequence[StageSpan]) -> None:
        """A stage is done; ``spans`` are all of the run."""
        self.place += 1
        self.stage = spans[self.place].name if self.place < len(spans) else "done"

    def bind(self, sites: Mapping[str, Site]) -> None:
        """Give every site what it remembers, and save with the run what it will remember from now
        on."""
        for name, site in sites.items():
            site.memory.update(self.memory.get(name, {}))
        self.memory = {name: site.memory for name, site in sites.items()}

    def save(self, folder: RunFolder) -> None:
        """Checkpoint, with the seconds since the last one."""
        self.count_seconds()
        tensors, remembered = client_state.packed(self.memory)
        requests, asked = client_state.packed(self.at_work, AT_WORK)
        tensors |= {name: t.contiguous() for name, t in requests.items()}
        tensors["none"] = torch.zeros(1)  # a file of tensors holds at least one
        if self.state is not None:
            tensors |= {f"state/{name}": t for name, t in self.state.tensors.items()}
        if self.best is not None:
            tensors |= {f"best/{name}": t for name, t in self.best.tensors.items()}
        if self.stage != "done":
            tensors |= {f"noise/{stage}/{name}": t for stage, own in self.noise_state.items()
                        for name, t in own.items()}
        known = {} if self.ledger is None else {
            "ledger": self.ledger.head.model_dump(), "members": self.members}
        folder.checkpoint(tensors, {
            **known, "schema_version": SCHEMA_VERSION, "stage": self.stage, "place": self.place,
            "synthesis": self.synthesis.dump() if self.synthesis else None,
            "round": self.state.round if self.state else 0,
            "texts": [[asdict(text) for text in shard] for shard in self.texts],
            "totals": self.totals, "base_eval": self.base_eval, "last_eval": self.last_eval,
            "best_round": self.best.round if self.best else None, "best_eval": self.best_eval,
            "stopped": self.stopped, "trained": self.state is not None, "memory": remembered,
            **({"at_work": asked} if asked else {})})

    @staticmethod
    def load(folder: RunFolder) -> Progress:
        """From the checkpoint, or from the beginning where there is none.

        Raises:
            DataError: the checkpoint is damaged.
            PrivacyError: it holds no head of the ledger.
        """
        found = folder.restore()
        if found is None:
            return Progress()
        tensors, held = found
        with reading_checkpoint(folder.path / "checkpoint" / "state.safetensors"):
            return _progress(tensors, held)


def _progress(tensors: Tensors, held: JsonMapping) -> Progress:
    """Where a run stands, by the tensors and the values of its checkpoint."""
    own = lora.under("state", tensors)
    best = held.get("best_round")
    head = held.get("ledger")
    noise: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        if key.startswith("noise/"):
            _, stage, name = key.split("/", 2)
            noise.setdefault(stage, {})[name] = tensor
    return Progress(
        stage=held["stage"],
        place=held.get("place", _PLACES[held["stage"]]),
        synthesis=EvolutionState.restore(held["synthesis"]) if held["synthesis"] else None,
        state=State(held["round"], own) if held["trained"] else None,
        texts=[[Text(**text) for text in shard] for shard in held["texts"]],
        totals=held["totals"], base_eval=held["base_eval"], last_eval=held["last_eval"],
        best=None if best is None else State(best, lora.under("best", tensors)),
        best_eval=held.get("best_eval", {}),
        stopped=held["stopped"], memory=client_state.unpacked(tensors, held["memory"]),
        at_work=client_state.unpacked(tensors, held.get("at_work", {}), AT_WORK),
        ledger_head=None if head is None else LedgerHead.read(head, "the checkpoint"),
        members=str(held.get("members", "")),
        schema_version=held.get("schema_version", 1),
        noise_state=noise)
