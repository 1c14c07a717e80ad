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

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aulait.engines.deployment.coordinator.outbox import Delivery
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.flower.transport import FlowerTransport
from aulait_benchmarks.deploy_baseline import put, take

app = ServerApp()
WAIT_S = 300.0


class TimedTransport(FlowerTransport):
    """Notes when a letter went and when its answer was here.

    Attributes:
        letters: letter -> node, sent, heard (seconds since 1970).
    """

    def __init__(self, grid: Grid, roster: Mapping[str, str]) -> None:
        super().__init__(grid, roster)
        self.letters: dict[str, dict[str, float]] = {}

    def send(self, address: int, packet: Packet, body: Any, ttl_s: float) -> str | None:
        """As above; the time before Flower has it."""
        sent = time.time()
        letter = super().send(address, packet, body, ttl_s)
        if letter is not None:
            self.letters[letter] = {"node": address, "sent": sent}
        return letter

    def collect(self, letters: Sequence[str], limit: int) -> Iterator[Delivery]:
        """As above; the time once the answer is a packet."""
        for heard in super().collect(letters, limit):
            self.letters[heard.letter]["heard"] = time.time()
            yield heard


class Side:
    """One of the two runs, ready for rounds.

    Args:
        grid: Flower's.
        experiment: its settings.
        keys: the server's keys folder.
        out: where its journal goes.
        cache: shares the base between both.
    """

    def __init__(self, grid: Grid, experiment: Path, keys: Path, out: Path, cache: Any) -> None:
        from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
        from aulait.engines.deployment.coordinator.event_log import EventLog
        from aulait.engines.deployment.pki import keys as key_files
        from aulait.engines.deployment.protocol import signing
        from aulait.privacy.aggregator import KnownSites, PrivateAggregator
        from aulait.privacy.config import PrivacyConfig
        from aulait.privacy.ledger import Ledger
        from aulait.privacy.noise import SystemNoise
        from aulait.runs import experiment_file
        from aulait.runs.setup import prepare

        settings, roster = experiment_file.read_settings(experiment), key_files.roster(keys)
        self._post, names = TimedTransport(grid, roster), sorted(roster)
        key = signing.load_private(keys / "order-key.pem")
        self._engine = CoordinatorEngine(self._post, settings, key, secrets.token_hex(16), 1,
                                         EventLog(out))
        self._engine.hello(len(names), WAIT_S, names)
        self._run = prepare(settings, cache, dict.fromkeys(names, 1))
        self._engine.begin(self._run)
        self._state = settings.method.init(settings.method_config, self._run.context)
        self._door = PrivateAggregator(PrivacyConfig(off=True), Ledger(None), None, SystemNoise(),
            KnownSites())
        self._ask = self._engine.connect(self._run, self._run.federation.sites)

    @property
    def formula(self) -> tuple[int, int]:
        """Bytes up and down of a client in a round, as the method's description says."""
        settings, trainers = self._run.settings, self._run.federation.trainers
        found: tuple[int, int] = settings.method.travels(
            settings.method_config, self._run.context, 1, trainers[0], trainers)
        return found

    def round(self) -> dict[str, Any]:
        """One round: when it began and ended, its letters, and the bytes that travelled."""
        from aulait.core.cohort import Cohort
        from aulait.methods.contract import Server

        settings, names = self._run.settings, self._run.federation.trainers
        told, moment = dict(self._engine.told), {"began": 0.0, "ended": 0.0}
        self._post.letters.clear()

        def ask(requests: Sequence[Any]) -> Iterator[Any]:
            moment["began"] = time.time()
            for update in self._ask(requests):
                moment["ended"] = time.time()
                yield update

        cohort = Cohort(round=self._state.round + 1, local=names, proxies={}, planned=len(names),
                        lr=settings.train.lr)
        self._state, _ = settings.method.step(settings.method_config, self._run.context,
            self._state, cohort, Server(ask, self._door))
        moved = {name: value - told[name] for name, value in self._engine.told.items()}
        return {**moment, **moved, "letters": list(self._post.letters.values())}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds on demand: ``experiment`` is a folder of NAME.toml, ``out`` a folder of turns."""
    from aulait.runs.prepared import SharedCache

    told = context.run_config
    folder, experiments = Path(str(told["out"])), Path(str(told["experiment"]))
    cache = SharedCache()
    names = sorted(path.stem for path in experiments.glob("*.toml"))
    sides = {name: Side(grid, experiments / f"{name}.toml", Path(str(told["keys"])), folder / name,
                        cache) for name in names}
    found: dict[str, Any] = {name: {"up": side.formula[0], "down": side.formula[1]} for name,
                             side in sides.items()}
    number = 0
    while True:
        put(folder / f"told-{number}.json", found)
        number += 1
        asked = take(folder / f"ask-{number}.json")
        if asked.get("end"):
            return
        found = sides[asked["size"]].round()
