"""Benchmarks that anybody can repeat. ``simulate``: what a federation in one process costs beside
plain training.

Federated rounds of ``method.step`` against a straightforward loop that trains ONE adapter on the
very same batches: same rows in a pass, same lengths, same padding, same trainable factors, AdamW,
no federation code. Both take turns;
medians are told. Training that protects single records takes turns with plain training of the very
same records as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel

from aulait.core.cohort import Cohort, everyone
from aulait.core.factors import Trainable
from aulait.core.lora import initial
from aulait.core.types import Adapter, Record
from aulait.engines.inline import LocalClients
from aulait.methods.contract import Server, State
from aulait.models import loading
from aulait.models.loading import wearing
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.resources.meters import peak_of_process
from aulait.runs.experiment_file import build_settings
from aulait.runs.prepared import PreparedRun, SharedCache
from aulait.runs.setup import prepare
from aulait.training.batches import collate, scored
from aulait.training.record_gradients import PrivateTraining, batches, train_privately
from aulait.training.trainer import LocalTraining, draws

METHODS = {"ffa": Trainable.B, "fedit": Trainable.AB}
Passes = list[list[list[Record]]]


@dataclass(frozen=True)
class Workload:
    """What a federation trains in a benchmark.

    Attributes:
        model: as ``model.name`` has it.
        dtype: of its weights.
        method: of METHODS.
        clients: sites, all of which train in every round.
        steps: optimiser steps of a site in a round.
        batch: sequences in a step.
        targets: layers that carry the adapter.
    """

    model: str = "brew"
    dtype: str = "float32"
    method: str = "fedit"
    clients: int = 16
    steps: int = 4
    batch: int = 4
    targets: str = "all-linear"


@dataclass(frozen=True)
class Timing:
    """Medians of one method.

    Attributes:
        tokens: tokens trained in one repetition, padding not counted.
        aulait_s: seconds of the federated rounds.
        floor_s: seconds of plain training on the same batches.
    """

    tokens: int
    aulait_s: float
    floor_s: float

    def as_dict(self) -> dict[str, float]:
        """Tokens, speeds, and floor speed over our speed: 1 is parity, smaller is better for us."""
        return {
            "tokens": self.tokens,
            "aulait_tokens_per_s": self.tokens / self.aulait_s,
            "floor_tokens_per_s": self.tokens / self.floor_s,
            "ratio_to_floor": self.aulait_s / self.floor_s,
        }


def simulate(
    clients: int = 16, rounds: int = 1, repetitions: int = 5, steps: int = 4, batch: int = 4
) -> dict[str, Any]:
    """Federated against plain training of the built-in model on built-in data.

    Args:
        clients: sites, all of which train in every round.
        rounds: of one repetition.
        repetitions: how often both take their turn; at least 3.
        steps: optimiser steps of a site in a round.
        batch: sequences in a step.

    Returns:
        tokens, aulait_tokens_per_s, floor_tokens_per_s, ratio_to_floor of the slower method (named
        under ``algorithm``), every method under ``methods``, dpsgd_ratio_to_floor (``_private``),
        peak_rss_bytes of the process, base_loads, device, threads.
    """
    timings = {}
    cache = SharedCache()
    with _counting() as loads:
        for name in METHODS:
            work = Workload(method=name, clients=clients, steps=steps, batch=batch)
            run = prepared(work, cache)
            timings[name] = _timed(run, name, rounds, max(3, repetitions))
        dpsgd = _private(run, max(3, repetitions))
        device = run.models.base.device
    methods = {name: timing.as_dict() for name, timing in timings.items()}
    slower = max(methods, key=lambda name: methods[name]["ratio_to_floor"])
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        **methods[slower],
        "algorithm": slower,
        "methods": methods,
        "dpsgd_ratio_to_floor": dpsgd,
        "clients": clients,
        "rounds": rounds,
        "repetitions": max(3, repetitions),
        "peak_rss_bytes": peak_of_process(),
        "peak_gpu_bytes": gpu,
        "base_loads": len(loads),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def prepared(work: Workload, cache: SharedCache) -> PreparedRun:
    """The federation of a workload on built-in data, ready to train."""
    tree = {
        "run": {"name": "bench"},
        "model": {"name": work.model, "dtype": work.dtype, "context": 64},
        "adapter": {"rank": 8, "targets": work.targets},
        "data": {"source": "docstrings", "clients": work.clients, "too_long": "cut"},
        "federation": {"tier": [{"name": "everyone", "placement": "local"}]},
        "algorithm": {"name": work.method},
        "train": {"steps": work.steps, "batch": work.batch},
        "privacy": {"off": True},
    }
    return prepare(build_settings(tree), cache)


def _timed(run: PreparedRun, name: str, rounds: int, repetitions: int) -> Timing:
    """Warm up both, then let them take turns."""
    passes, tokens = same_batches(run, METHODS[name], rounds)
    federated(run, rounds)
    plain(run, METHODS[name], passes)
    spent_s = _turns(run, lambda: federated(run, rounds),
                     lambda: plain(run, METHODS[name], passes), repetitions)
    return Timing(tokens, statistics.median(spent_s[0]), statistics.median(spent_s[1]))


def _turns(run: PreparedRun, one: Callable[[], object], other: Callable[[], object],
           repetitions: int) -> tuple[list[float], list[float]]:
    """Seconds of both, in alternating order."""
    spent_s: tuple[list[float], list[float]] = [], []
    for repetition in range(repetitions):
        for which in (0, 1) if repetition % 2 == 0 else (1, 0):
            wait(run)
            started = time.perf_counter()
            (one, other)[which]()
            wait(run)
            spent_s[which].append(time.perf_counter() - started)
    return spent_s


def _private(run: PreparedRun, repetitions: int) -> float:
    """Seconds of DP-SGD at every site over seconds of plain training of the very same records.

    Plain training has the rows in passes of ``train.rows_at_once``, padded, sorted by length.
    """
    learner, context = run.models.learner, run.context
    start = initial(context.shapes, context.rank, context.alpha, context.seeds)
    works = []
    for name in everyone(run.federation.trainers):
        site = run.federation.sites[name]
        works.append(PrivateTraining(
            start=start, records=site.train, trainable=Trainable.AB, steps=site.plan.steps,
            batch=site.plan.batch, lr=run.settings.train.lr, mode="records", clip=1.0, sigma=1.0,
            seed=context.seeds.integer("batches", 1, name), noise_seed=1))
    read = sorted((record for work in works for step in batches(work) for unit in step
                   for record in unit), key=lambda record: len(learner.encode(record)[0]))
    rows = learner.config.rows_at_once
    passes = [[read[i : i + rows] for i in range(0, len(read), rows)]]

    def private() -> None:
        for work in works:
            train_privately(learner, work)

    def unprotected() -> None:
        plain(run, Trainable.AB, passes)

    private()
    unprotected()
    spent_s = _turns(run, private, unprotected, repetitions)
    return statistics.median(spent_s[0]) / statistics.median(spent_s[1])


def without_search(config: BaseModel) -> BaseModel:
    """A method's settings, the server's step plain where the clients would search for it."""
    searches = getattr(config, "server", None) == "search"
    return config.model_copy(update={"server": "plain"}) if searches else config


def federated(run: PreparedRun, rounds: int, config: BaseModel | None = None) -> State:
    """Rounds of the method over all sites; no evaluation, nothing on disk.

    Args:
        run: prepared.
        rounds: how many.
        config: of the method; None for that of the run.
    """
    method, config = run.settings.method, config or run.settings.method_config
    ask = LocalClients.of(run, run.federation.sites).ask
    aggregator = PrivateAggregator(PrivacyConfig(off=True), Ledger(None), None, SystemNoise(),
        KnownSites())
    local = run.federation.trainers
    state: State = method.init(config, run.context)
    for round in range(1, rounds + 1):
        cohort = Cohort(round=round, local=everyone(local), proxies={}, planned=len(local),
                        lr=run.settings.train.lr)
        state, _ = method.step(config, run.context, state, cohort, Server(ask, aggregator))
    return state


def same_batches(run: PreparedRun, trainable: Trainable, rounds: int) -> tuple[Passes, int]:
    """The rows of every pass of every group of sites, as ``Learner.train`` forms them, and their
    tokens."""
    learner, passes, tokens = run.models.learner, [], 0
    start = initial(run.context.shapes, run.context.rank, run.context.alpha, run.context.seeds)
    for round in range(1, rounds + 1):
        works = [site_work(run, name, start, trainable, round)
                 for name in everyone(run.federation.trainers)]
        for members in learner.passes(works):
            some = [works[i] for i in members]
            orders = [draws(work, [len(learner.encode(r)[0]) for r in work.records])
                      for work in some]
            pairs = list(zip(some, orders, strict=True))
            group = [[work.records[j] for work, order in pairs for j in order[step]]
                     for step in range(some[0].steps)]
            tokens += sum(len(learner.encode(record)[0]) for rows in group for record in rows)
            passes.append(group)
    return passes, tokens


def site_work(run: PreparedRun, name: str, start: Adapter, trainable: Trainable,
          round: int) -> LocalTraining:
    """What a site is asked to do in a round, as the methods write it."""
    site, seed = run.federation.sites[name], run.context.seeds.integer("batches", round, name)
    return LocalTraining(start, site.train, trainable, site.plan.steps, site.plan.batch,
                run.settings.train.lr, seed)


def plain(run: PreparedRun, trainable: Trainable, batches: Passes) -> float:
    """Plain training of one adapter on padded rows: the floor. Returns the last loss."""
    base = replace(run.models.base, packs=False)
    context, config = run.context, run.models.learner.config
    loss = torch.zeros(())
    with wearing(base, [initial(context.shapes, context.rank, context.alpha, run.context.seeds)]):
        worn = [base.slots[name].worn for name in context.shapes]
        leaves = [leaf for own in worn if own is not None for leaf in trainable.of(own[:2])]
        for leaf in leaves:
            leaf.requires_grad_(True)
        optimizer = torch.optim.AdamW(leaves, lr=config.lr, weight_decay=config.weight_decay)
        for group in batches:
            for records in group:
                out, target, _ = scored(base, collate(base, run.models.learner.encode, records))
                loss = torch.nn.functional.cross_entropy(out, target)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(leaves, config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


@contextmanager
def _counting() -> Iterator[list[str]]:
    """Names of the base models loaded inside; ``model.load`` is put back afterwards."""
    loads: list[str] = []
    real = loading.load_base

    def load(config: loading.ModelConfig) -> loading.Base:
        loads.append(config.name)
        return real(config)

    loading.load_base = load
    try:
        yield loads
    finally:
        loading.load_base = real


def wait(run: PreparedRun) -> None:
    """Until the accelerator is idle."""
    if run.models.base.device.type == "cuda":
        torch.cuda.synchronize(run.models.base.device)


def names() -> Sequence[str]:
    """The benchmarks there are; the others are in ``bench_NAME.py``, ``deploy`` in ``flower``."""
    return ("simulate", "aggregate", "cost", "edge", "deploy", "retrieve", "plan", "secagg",
            "scale", "generate", "embed", "growth")
