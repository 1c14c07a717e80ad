"""The server app of ``aulait bench deploy``: real rounds of a real engine over Flower, one whenever
a file asks for it.

Two runs stand side by side, one with small adapters and one with large ones; both use the same base
at the sites. A round is one step of federated averaging: requests out, one optimiser step of one
record at every site, updates back.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Array, Context
from flwr.serverapp import Grid, ServerApp

from aulait.core.cohort import Cohort
from aulait.core.types import ClientRequest, ClientUpdate
from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.coordinator.outbox import Delivery, Outbox, RunIdentity
from aulait.engines.deployment.pki import keys as key_files
from aulait.engines.deployment.protocol import signing
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.flower.transport import FlowerTransport
from aulait.methods.contract import Server
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.runs import experiment_file
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait_benchmarks.deploy_baseline import put, take

app = ServerApp()
WAIT_S = 300.0


class TimedTransport(FlowerTransport):
    """Notes when a message went and when its answer was here.

    Attributes:
        times: message -> node, sent, heard (seconds since 1970).
    """

    def __init__(self, grid: Grid, roster: Mapping[str, str]) -> None:
        super().__init__(grid, roster)
        self.times: dict[str, dict[str, float]] = {}

    def send(self, address: int, packet: Packet, body: Array | None,
             wait_s: float) -> str | None:
        """As above; the time before Flower has it."""
        sent = time.time()
        message_id = super().send(address, packet, body, wait_s)
        if message_id is not None:
            self.times[message_id] = {"node": address, "sent": sent}
        return message_id

    def collect(self, message_ids: Sequence[str], limit: int) -> Iterator[Delivery]:
        """As above; the time once the answer is a packet."""
        for delivery in super().collect(message_ids, limit):
            self.times[delivery.message_id]["heard"] = time.time()
            yield delivery


class Side:
    """One of the two runs, ready for rounds.

    Args:
        grid: Flower's.
        experiment: its settings.
        keys: the server's keys folder.
        out: where its event log goes.
        cache: shares the base between both.
    """

    def __init__(self, grid: Grid, experiment: Path, keys: Path, out: Path,
                 cache: SharedCache) -> None:
        settings, roster = experiment_file.read_settings(experiment), key_files.roster(keys)
        self._transport, names = TimedTransport(grid, roster), sorted(roster)
        key = signing.load_private(keys / "order-key.pem")
        identity = RunIdentity(key, secrets.token_hex(16), 1)
        self._engine = CoordinatorEngine(Outbox(self._transport, identity, EventLog(out)), settings)
        self._engine.participants.hello(len(names), WAIT_S, names)
        self._run = prepare(settings, cache, dict.fromkeys(names, 1))
        self._engine.begin(self._run, {}, again=False)
        self._state = settings.method.init(settings.method_config, self._run.context)
        self._aggregator = PrivateAggregator(PrivacyConfig(off=True), Ledger(None), None,
                                             SystemNoise(), KnownSites())
        self._ask = self._engine.connect(self._run, self._run.federation.sites)

    @property
    def formula(self) -> tuple[int, int]:
        """Bytes up and down of a client in a round, as the method's description says."""
        settings, trainers = self._run.settings, self._run.federation.trainers
        return settings.method.travels(settings.method_config, self._run.context, 1, trainers[0],
                                       trainers)

    def round(self) -> dict[str, Any]:
        """One round: when it began and ended, its messages, and the bytes that travelled."""
        settings, names = self._run.settings, self._run.federation.trainers
        before, moment = dict(self._engine.traffic), {"began": 0.0, "ended": 0.0}
        self._transport.times.clear()

        def ask(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
            moment["began"] = time.time()
            for update in self._ask(requests):
                moment["ended"] = time.time()
                yield update

        cohort = Cohort(round=self._state.round + 1, local=names, proxies={}, planned=len(names),
                        lr=settings.train.lr)
        self._state, _ = settings.method.step(settings.method_config, self._run.context,
            self._state, cohort, Server(ask, self._aggregator))
        moved = {name: value - before[name] for name, value in self._engine.traffic.items()}
        return {**moment, **moved, "letters": list(self._transport.times.values())}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds on demand: ``experiment`` is a folder of NAME.toml, ``out`` a folder of turns."""
    told = context.run_config
    folder, experiments = Path(str(told["out"])), Path(str(told["experiment"]))
    cache = SharedCache()
    names = sorted(path.stem for path in experiments.glob("*.toml"))
    sides = {name: Side(grid, experiments / f"{name}.toml", Path(str(told["keys"])), folder / name,
                        cache) for name in names}
    found: dict[str, Any] = {name: {"up": side.formula[0], "down": side.formula[1]}
                             for name, side in sides.items()}
    number = 0
    while True:
        put(folder / f"told-{number}.json", found)
        number += 1
        asked = take(folder / f"ask-{number}.json")
        if asked.get("end"):
            return
        found = sides[asked["size"]].round()
