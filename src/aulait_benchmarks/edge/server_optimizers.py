"""Server optimisers by round: one small federation on built-in data, once for every optimiser and
rate.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021; the comparison is that of the
"Very Edge" study
(FedAvg, FedAvgM, FedAdam, FedAdamW). The arms differ in the server's step alone: the same clients,
batches and seeds. Each optimiser is shown at the rate of its small grid that ends with the lowest
held-out loss, so that rates are not compared in the place of optimisers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aulait.core.errors import ConfigError, require
from aulait.engines.inline import InlineEngine
from aulait.runs.experiment_file import build_settings
from aulait.runs.prepared import SharedCache
from aulait.runs.sweep import Arm, Job, run_one
from aulait_benchmarks.edge.document import StudyLine
from aulait_benchmarks.edge.efficiency import rounds_to

NAMES: Mapping[str, str] = {"plain": "FedAvg", "momentum": "FedAvgM", "adam": "FedAdam",
                            "adamw": "FedAdamW"}


@dataclass(frozen=True)
class FederationSize:
    """How large the federation is.

    Attributes:
        clients: all of which train in every round.
        rounds: of every run.
        steps: optimiser steps of a client in a round.
        batch: sequences in a step.
        lr: rate of the clients' AdamW.
        rates: server optimiser -> rates of its grid.
        decay: of FedAdamW at the server.
        seed: of the run.
    """

    clients: int = 4
    rounds: int = 8
    steps: int = 3
    batch: int = 4
    lr: float = 1e-3
    rates: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("plain", (1.0, 2.0)), ("momentum", (0.3, 1.0)), ("adam", (0.01, 0.03)),
        ("adamw", (0.01, 0.03)))
    decay: float = 0.1
    seed: int = 0


QUICK = FederationSize(
    clients=3, rounds=3, steps=2, batch=2, rates=(("plain", (1.0,)), ("momentum", (1.0,)),
        ("adam", (0.01,)), ("adamw", (0.01,))))


def server_losses(size: FederationSize, tell: Callable[[str], None] = lambda _: None) -> StudyLine:
    """Held-out loss after every round, for every optimiser.

    Args:
        size: of the federation.
        tell: told what is done next, for a progress line.

    Returns:
        base_loss (nats a token, before training), arms (a table each of name, server, rate, losses
        by round, rates_tried with the last loss of each, rounds_to_fedavg: the first round at or
            below FedAvg's last loss, or None), and the settings.
    """
    cache, base_loss = SharedCache(), 0.0
    arms: list[StudyLine] = []
    for server, rates in size.rates:
        tried: dict[float, list[float]] = {}
        for rate in rates:
            tell(f"server optimiser {NAMES[server]} at {rate:g}")
            base_loss, tried[rate] = _losses(size, server, rate, cache)
        best = min(tried, key=lambda rate: tried[rate][-1])
        last = [{"rate": rate, "last_loss": losses[-1]} for rate, losses in tried.items()]
        arms.append({"name": NAMES[server], "server": server, "rate": best, "losses": tried[best],
                     "rates_tried": last})
    goal = next(arm["losses"][-1] for arm in arms if arm["server"] == "plain")
    for arm in arms:
        arm["rounds_to_fedavg"] = rounds_to(arm["losses"], goal)
    told = {"clients": size.clients, "rounds": size.rounds, "steps": size.steps,
            "batch": size.batch, "lr": size.lr, "seed": size.seed}
    return {"base": "brew", "data": "docstrings", "algorithm": "fedit", "base_loss": base_loss,
            "arms": arms, **told}


def _losses(size: FederationSize, server: str, rate: float,
            cache: SharedCache) -> tuple[float, list[float]]:
    """The base's held-out loss, and that after each round of one run."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run"
        done = run_one(Job(Arm(server, ()), size.seed, path,
                           build_settings(_tree(size, server, rate))),
                       InlineEngine(), cache)
        require(done.status != "failed", ConfigError,
                f"the run with server '{server}' failed ({done.message}); try --no-servers")
        lines = [json.loads(line)
                 for line in (path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
        base = json.loads((path / "result.json").read_text(encoding="utf-8"))["base_eval"]["loss"]
    return float(base), [float(line["eval"]["loss"]) for line in lines if line["stage"] == "train"]


def _tree(size: FederationSize, server: str, rate: float) -> dict[str, object]:
    """The experiment of one run."""
    return {
        "run": {"name": "edge", "seed": size.seed},
        "model": {"context": 64},
        "adapter": {"rank": 8, "targets": "attention"},
        "data": {"source": "docstrings", "clients": size.clients, "records_per_client": 20,
                 "holdout": 0.2, "too_long": "cut"},
        "federation": {"tier": [{"name": "everyone", "placement": "local"}]},
        "algorithm": {"name": "fedit", "server": server, "server_lr": rate,
                      "server_decay": size.decay if server == "adamw" else 0.0},
        "train": {"rounds": size.rounds, "steps": size.steps, "batch": size.batch, "lr": size.lr},
        "evaluate": {"every": 1, "records_per_client": 4},
        "privacy": {"off": True},
    }
