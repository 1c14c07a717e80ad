"""Where a run stands, and the books it keeps: what a resumed run finds again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from aulait.core.types import Adapter, Site, Tensors
from aulait.methods.contract import Ask, State
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import client_state as memory
from aulait.runs.setup import House
from aulait.runs.virtual_time import round_time
from aulait.synthesis import private_evolution
from aulait.synthesis.private_evolution import Text

Watch = Callable[[str, int, int, str], None]
Connect = Callable[..., Ask]


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Watch nothing."""


@dataclass
class Progress:
    """Where a run stands; everything a resumed run needs beside the ledger.

    Attributes:
        stage: "synthesis", "train" or "done".
        synthesis: state of stage 1.
        state: state of the method.
        texts: the synthetic set, dealt to proxies.
        totals: seconds and bytes by stage.
        base_eval: scores of the bare base.
        last_eval: scores after the last measured round.
        stopped: why the run ended early, if it did.
        memory: what every site remembers; the sites' own dictionaries once they are bound.
        personal: adapters of clients' own after the last round; made again when a run is resumed
            after it.
        clock_s: when the seconds were last counted.
        noise_state: stage -> what the privacy mechanism remembers of its noise; the aggregator's
            own dictionary once it is bound. Secret, and not saved when the run is done.
    """

    stage: str = "synthesis"
    synthesis: private_evolution.State | None = None
    state: State | None = None
    texts: list[list[Text]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    base_eval: dict[str, Any] = field(default_factory=dict)
    last_eval: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    personal: dict[str, Adapter] = field(default_factory=dict)
    clock_s: float = field(default_factory=time.perf_counter)
    noise_state: dict[str, Tensors] = field(default_factory=dict)

    def add(self, **amounts: float | None) -> None:
        """Add to the totals."""
        for key, amount in amounts.items():
            self.totals[key] = self.totals.get(key, 0.0) + (amount or 0.0)

    def tick(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Add a round of virtual time to the totals; what rounds.jsonl says of it, with the time
        since the start."""
        self.add(**round_time.amounts(told))
        return {**told, "total_s": self.totals["clock|total_s"]}

    def bind(self, sites: Mapping[str, Site]) -> None:
        """Give every site what it remembers, and save with the run what it will remember from now
        on."""
        for name, site in sites.items():
            site.memory.update(self.memory.get(name, {}))
        self.memory = {name: site.memory for name, site in sites.items()}

    def save(self, folder: RunFolder) -> None:
        """Checkpoint, with the seconds since the last one."""
        now_s = time.perf_counter()
        self.add(wall_s=now_s - self.clock_s)
        self.clock_s = now_s
        held = {"stage": self.stage, "synthesis": self.synthesis.dump() if self.synthesis else None,
                "round": self.state.round if self.state else 0, "texts": [[asdict(t) for t in shard]
                    for shard in self.texts],
                "totals": self.totals, "base_eval": self.base_eval, "last_eval": self.last_eval,
                "stopped": self.stopped}
        stored, remembered = memory.packed(self.memory)
        own = {f"state/{name}": t for name, t in self.state.tensors.items()} if self.state else {}
        noise = {} if self.stage == "done" else {
            f"noise/{stage}/{name}": t for stage, tensors in self.noise_state.items()
            for name, t in tensors.items()}
        folder.checkpoint({**own, **stored, **noise, "none": torch.zeros(1)},
                          {**held, "trained": self.state is not None, "memory": remembered})

    @staticmethod
    def load(folder: RunFolder) -> Progress:
        """From the checkpoint, or from the beginning."""
        found = folder.restore()
        if found is None:
            return Progress()
        tensors, held = found
        texts = [[Text(**t) for t in shard] for shard in held["texts"]]
        synthesis = (
            private_evolution.State.restore(held["synthesis"]) if held["synthesis"] else None
        )
        own = {name.partition("/")[2]: t for name, t in tensors.items()
               if name.startswith("state/")}
        state = State(held["round"], own) if held["trained"] else None
        remembered = memory.unpacked(tensors, held["memory"])
        noise: dict[str, Tensors] = {}
        for key, tensor in tensors.items():
            if key.startswith("noise/"):
                _, stage, name = key.split("/", 2)
                noise.setdefault(stage, {})[name] = tensor
        return Progress(held["stage"], synthesis, state, texts, held["totals"], held["base_eval"],
                        held["last_eval"],
                        held["stopped"], remembered, noise_state=noise)


@dataclass(frozen=True)
class Books:
    """One ledger and one accountant, and the aggregator of each stage that writes to them."""

    ledger: Ledger
    accountant: Accountant | None
    synthesis: PrivateAggregator
    train: PrivateAggregator


def open_books(house: House, ledger: Ledger) -> Books:
    """The books of a run, with every line that is already in the ledger charged."""
    privacy, synthesis = house.settings.privacy, house.settings.synthesis
    noise = SystemNoise() if privacy.noise_seed is None else SeededNoise(privacy.noise_seed)
    accountant = None
    if not privacy.off:
        assert privacy.delta is not None
        accountant = Accountant(privacy.delta, house.privacy_plan.budget)
        ledger.replay(accountant)
    sites = KnownSites(frozenset((*_names("proxy"), *_names("reference"))),
                       house.settings.federation.max_norm)
    train = PrivateAggregator(privacy, ledger, accountant, noise, sites, house.record_mechanism)
    exact = synthesis.votes == "exact" and not privacy.off
    votes = (
        PrivateAggregator(PrivacyConfig(off=True), ledger, None, noise,
                          KnownSites(sites.proxies)) if exact else train
    )
    return Books(ledger, accountant, votes, train)


def _names(kind: str) -> list[str]:
    return [f"{kind}-{k:03d}" for k in range(1000)]


def epsilons(house: House, accountant: Accountant | None) -> dict[str, float | None]:
    """Epsilon spent so far by the roles that exist; None means infinite."""
    spent: dict[str, float | None] = {}
    for role, names in house.roles.items():
        if names:
            spent[role] = accountant.spent(role) if accountant is not None else None
    return spent | dict.fromkeys(house.privacy_plan.exact_roles)
