"""Writes a made-up run folder: numbers that fit together, texts that read like docstrings, no training behind it."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

NORMAL = NormalDist()
DELTA = 1e-5
CANDIDATES, KEPT = 120, 40
RECORDS = 30

CONFIG = """# resolved
[run]
name = "cafe"
seed = {seed}

[model]
name = "brew"
kind = "causal"

[data]
source = "docstrings" # see http://example.org/docstrings
records_per_client = 30

[synthesis]
rounds = 5

[train]
rounds = {rounds}
steps = 8
lr = 0.001

[privacy]
epsilon = 8.0
delta = 1e-5
relation = "add-remove"
trust = "server"
"""

STARTS = "Return|Compute|Check whether|Split|Read|Write|Convert|Iterate over|Validate|Merge"
THINGS = "the matrix|a list of tokens|the given path|each header line|the JSON document|a date string|all open sockets"
ENDS = "and raise ValueError if it is empty.|without copying.|in sorted order.|as a new tuple.|along the given axis.|"
ENDS += "until the iterator is exhausted.\n\nArgs:\n    limit: the largest number of items."


TIERS = [
    {"name": "gpu", "placement": "local", "clients": 10, "rank": 8, "steps": 8, "batch": 4, "reason": "fits in 60 s"},
    {
        "name": "laptop",
        "placement": "proxy",
        "clients": 40,
        "rank": 8,
        "steps": 8,
        "batch": 4,
        "reason": "8 GB < 11.2 GB",
    },
]
SYNTHESIS: dict[str, Any] = {
    "rounds": 5,
    "candidates": CANDIDATES,
    "texts": 600,
    "voters": 40,
    "selection": "rank",
    "generator": "base",
    "vote_sensitivity": math.sqrt(RECORDS),
    "records_per_client": RECORDS,
    "client_down_bytes_per_round": CANDIDATES * 1536,
    "client_up_bytes_per_round": CANDIDATES * 4,
    "down_formula": "4 · J · 384",
    "up_formula": "4 · J",
    "client_s_mean": 0.21,
}


def sentence(source: random.Random) -> str:
    return f"{source.choice(STARTS.split('|'))} {source.choice(THINGS.split('|'))} {source.choice(ENDS.split('|'))}"


def gaussian_epsilon(mu: float, delta: float = DELTA) -> float:
    """Epsilon of a Gaussian release with parameter mu, by bisection on its closed form."""
    low, high = 0.0, 200.0
    for _ in range(80):
        middle = (low + high) / 2
        near, far = NORMAL.cdf(-middle / mu + mu / 2), NORMAL.cdf(-middle / mu - mu / 2)
        excess = near - (math.exp(middle + math.log(far)) if far > 0 else 0.0)
        low, high = (middle, high) if excess > delta else (low, middle)
    return high


def write_run(
    path: Path,
    *,
    seed: int = 0,
    arm: str = "cafe",
    off: bool = False,
    seeded: bool = False,
    exact_votes: bool = False,
    stopped_early: bool = False,
    loss: float = 3.412,
    rounds: int = 10,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Writes the folder. `change` may edit result.json's tree before it is written."""
    path.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    votes_z = 0.0 if off or exact_votes else 3.62
    updates_z = 0.0 if off else 4.9
    ledger: list[dict[str, Any]] = []
    lines = [_synthesis(t, votes_z, ledger, seeded, off, source) for t in range(1, 6)]
    done = rounds - 3 if stopped_early else rounds
    lines += [_train(r, done, updates_z, ledger, seeded, off, loss, source) for r in range(1, done + 1)]
    result = _result(seed, arm, rounds, off, seeded, stopped_early, loss, ledger, lines)
    if change is not None:
        change(result)
    _write(path / "rounds.jsonl", lines)
    _write(path / "ledger.jsonl", ledger)
    _write(path / "synthetic.jsonl", [_text(i, source) for i in range(600)])
    _write(path / "result.json", [result])
    _write(
        path / "machine.json", [{"system": "Linux 6.1", "cpu": {"cores": 16}, "memory_bytes": 137438953472, "gpus": []}]
    )
    (path / "config.toml").write_text(CONFIG.format(seed=seed, rounds=rounds), encoding="utf-8")
    return path


def _text(index: int, source: random.Random) -> dict[str, Any]:
    parent, owner = source.randint(0, 39), f"client-{index % 40:03d}"
    return {"round": source.randint(1, 5), "text": sentence(source), "parent": parent, "client": owner}


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _release(
    ledger: list[dict[str, Any]], role: str, stage: str, at_round: int, z: float, bound: float, seeded: bool, off: bool
) -> None:
    if off:
        return
    before: dict[str, Any] = ledger[-1]["epsilon"] if ledger else {"proxy": 0.0, "local": 0.0}
    times = sum(line["role"] == role for line in ledger) + 1
    spent = {**before, role: gaussian_epsilon(math.sqrt(times) / z) if z else None}
    ledger.append(
        {
            "release": len(ledger) + 1,
            "stage": stage,
            "round": at_round,
            "role": role,
            "mechanism": "gaussian",
            "sensitivity": bound,
            "sigma": z * bound,
            "noise_multiplier": z,
            "planned": 40 if role == "proxy" else 10,
            "sampling": {"kind": "all"},
            "epsilon": spent,
            "delta": DELTA,
            "relation": "add-remove",
            "unit": "client",
            "time": f"2026-03-01T10:{len(ledger):02d}:07Z",
            "private": not seeded and z > 0,
        }
    )


def _synthesis(
    t: int, z: float, ledger: list[dict[str, Any]], seeded: bool, off: bool, source: random.Random
) -> dict[str, Any]:
    bound = math.sqrt(RECORDS)
    _release(ledger, "proxy", "synthesis", t, z, bound, seeded, off)
    weights = [math.exp(-0.09 * j) for j in range(CANDIDATES)]
    source.shuffle(weights)
    scale = 40 * RECORDS / sum(weights)
    histogram = [w * scale + source.gauss(0, z * bound) for w in weights]
    best = sorted(histogram, reverse=True)[:8]
    winners = [{"text": sentence(source), "votes": v, "parent": source.randint(0, 39) if t > 1 else None} for v in best]
    return {
        "stage": "synthesis",
        "round": t,
        "wall_s": 21.4 + source.random() * 3,
        "client_s": 0.21,
        "up_bytes": 40 * CANDIDATES * 4,
        "down_bytes": 40 * CANDIDATES * 384 * 4,
        "candidates": CANDIDATES,
        "kept": KEPT,
        "noise_std": z * bound,
        "histogram": histogram,
        "winners": winners,
        "samples": [sentence(source) for _ in range(5)],
        "epsilon": {"proxy": ledger[-1]["epsilon"]["proxy"] if ledger else None},
    }


def _train(
    r: int,
    rounds: int,
    z: float,
    ledger: list[dict[str, Any]],
    seeded: bool,
    off: bool,
    loss: float,
    source: random.Random,
) -> dict[str, Any]:
    _release(ledger, "local", "train", r, z, 0.1, seeded, off)
    reached = 4.207 + (loss - 4.207) * (1 - math.exp(-3 * r / rounds)) / (1 - math.exp(-3))
    line: dict[str, Any] = {
        "stage": "train",
        "round": r,
        "wall_s": 31.0 + 4 * source.random(),
        "up_bytes": 10 * 884_736,
        "down_bytes": 10 * 884_736,
        "local_clients": 10,
        "proxies": 40,
        "clip_bound": 0.1,
        "noise_std": z * 0.1,
        "signal_to_noise": 0.31 + 0.1 * source.random(),
        "update_norm": 0.08 + 0.02 * source.random(),
        "epsilon": ledger[-1]["epsilon"] if ledger else {"proxy": None, "local": None},
    }
    if r % 2 == 0 or r in (1, rounds):
        line["eval"] = {
            "loss": reached,
            "perplexity": math.exp(reached),
            "token_accuracy": 0.281 + (4.207 - reached) * 0.09,
        }
    return line


def _measured(loss: float) -> dict[str, Any]:
    return {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": 0.281 + (4.207 - loss) * 0.09}


def _result(
    seed: int,
    arm: str,
    rounds: int,
    off: bool,
    seeded: bool,
    stopped_early: bool,
    loss: float,
    ledger: list[dict[str, Any]],
    lines: list[dict[str, Any]],
) -> dict[str, Any]:
    last: dict[str, Any] = ledger[-1]["epsilon"] if ledger else {"proxy": None, "local": None}
    most = None if None in last.values() else max(last.values())
    privacy: dict[str, Any] = {"off": off, "unit": "client", "relation": "add-remove", "delta": DELTA}
    privacy |= {"private": bool(ledger) and all(line["private"] for line in ledger), "stopped_early": stopped_early}
    return {
        "name": "cafe",
        "arm": arm,
        "algorithm": "ffa",
        "engine": "inline",
        "seed": seed,
        "clients": 50,
        "rounds": rounds,
        "base_eval": _measured(4.207),
        "eval": _measured(loss) | {"worst_client_loss": loss + 0.62},
        "privacy": privacy | {"epsilon": {**last, "split": None, "max": most}},
        "traffic": {key: sum(line[key] for line in lines) for key in ("up_bytes", "down_bytes")},
        "time": {"wall_s": 512.3 + seed, "synthesis_s": 113.9, "train_s": 331.2},
        "versions": {"aulait": "0.1.0", "torch": "2.13.0", "python": "3.12.8"},
        "tiers": copy.deepcopy(TIERS),
        "synthesis": copy.deepcopy(SYNTHESIS),
        "data": {"source": "docstrings", "malformed": 0, "left_out": 3},
    }


def personal(result: dict[str, Any]) -> None:
    """Turns a result into that of a personal method with a task and unseen clients."""
    result["algorithm"] = "fedsa"
    result["base_eval"] |= {"accuracy": 0.013, "count": 240, "unseen": _measured(4.3) | {"accuracy": 0.01, "count": 40}}
    shared = _measured(4.0) | {"worst_client_loss": 4.9, "mean_client_loss": 4.1, "accuracy": 0.31, "count": 240}
    unseen = _measured(4.1) | {"accuracy": 0.27, "count": 40}
    result["eval"] |= {"mean_client_loss": result["eval"]["loss"] + 0.05, "accuracy": 0.62, "count": 240, "shared": shared, "unseen": unseen}


def refuse(folder: Path, refused: dict[int, list[str]]) -> None:
    """Writes refused updates ("client: reason") into training rounds."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["stage"] == "train":
            told = refused.get(line["round"], [])
            line |= {"refused": len(told), "refused_clients": told}
    _write(folder / "rounds.jsonl", lines)


MACHINES = {"gpu": "rtx4090", "laptop": "laptop"}


def virtual(
    folder: Path, *, seed: int = 0, slow: float = 1.0, deadline_s: float | None = None, link_s: float = 2.0, server_s: float = 0.0
) -> Path:
    """Puts virtual time into a written run, by the clock that real runs have.

    All clients vote in synthesis and train: 10 of tier "gpu" (4 s of arithmetic a round), 40 of tier "laptop" (20 s, times ``slow``;
    one in ten is away and one in twenty is lost). Both have ``link_s`` of transfer.
    """
    from aulait.core.seeds import Seeds
    from aulait.runs.virtual_time.clock import Clock, Stint

    stints = {f"gpu-{i}": Stint("gpu", 4.0, link_s, 1200.0, 20.0, 1.0) for i in range(10)}
    laptop = Stint("laptop", 20.0 * slow, link_s, 560.0, 5.0, 3.0, availability=0.9, dropout=0.05, spread=0.3)
    stints |= {f"laptop-{i}": laptop for i in range(40)}
    clock = Clock(stints, Seeds(seed), deadline_s)
    whole: dict[str, Any] = {"total_s": 0.0, "energy_j": 0.0, "tiers": {}}
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        told = clock.metrics(clock.round(list(stints), line["stage"], line["round"], server_s=server_s if line["stage"] == "synthesis" else 0.0))
        whole["total_s"] += told["round_s"]
        whole["energy_j"] += told["energy_j"]
        for name, own in told["tiers"].items():
            sums = whole["tiers"].setdefault(name, dict.fromkeys(own, 0.0))
            whole["tiers"][name] = {key: sums[key] + value for key, value in own.items()}
        line["clock"] = {**told, "total_s": whole["total_s"]}
    _write(folder / "rounds.jsonl", lines)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    busy, idle = (sum(own[key] for own in whole["tiers"].values()) for key in ("busy_s", "idle_s"))
    result["clock"] = {**whole, "idle_share": idle / (busy + idle)}
    result["tiers"] = [{**tier, "machine": MACHINES.get(tier["name"], "phone")} for tier in result["tiers"]]
    _write(folder / "result.json", [result])
    if deadline_s is not None:
        with (folder / "config.toml").open("a", encoding="utf-8") as file:
            file.write(f"\n[compute]\ndeadline_s = {deadline_s}\n")
    return folder
