"""``aulait bench simulate --peers``: the same records, steps and adapters through aulait, through
the loop a user would write with PEFT, and through plain training of one adapter (the floor), in
turns.

All ratios here are speeds over speeds: 1 is parity and more is faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch

from aulait.core.files import JsonObject
from aulait.models import named
from aulait.resources.meters import peak_of_process
from aulait.runs.prepared import PreparedRun, SharedCache
from aulait_benchmarks import simulate
from aulait_benchmarks.peft_loop import peft_loop
from aulait_benchmarks.simulate import METHODS, Workload


@dataclass(frozen=True)
class PeerScope:
    """What is compared.

    Attributes:
        workloads: one case each.
        rounds: of one turn.
        repetitions: turns of each; medians are told.
    """

    workloads: Sequence[Workload]
    rounds: int = 1
    repetitions: int = 5


_BREW: Final = tuple(
    Workload(method=method, batch=batch, targets=targets)
    for method in METHODS for targets in ("all-linear", "attention") for batch in (1, 2, 4, 8))
_SMOLLM2: Final = tuple(
    Workload(model="smollm2", dtype=dtype, clients=6, steps=2, batch=batch)
    for dtype in ("float32", "bfloat16") for batch in (1, 2, 4, 8))


def scope(model: str | None, batches: Sequence[int], clients: int | None,
          repetitions: int, quick: bool) -> PeerScope:
    """What to compare, from the options of the command.

    Args:
        model: "brew", "smollm2" or another causal model; None for brew, and smollm2 where it is
            installed.
        batches: sequences of a step; empty for all.
        clients: sites that train together; None for those of each case.
        repetitions: turns of each.
        quick: one method, one kind of targets, few clients.
    """
    every = list(_BREW)
    if model is None and named.package_file("smollm2") is not None:
        every += _SMOLLM2
    elif model is not None and model != "brew":
        every = [replace(work, model=model) for work in _SMOLLM2]
    if quick:
        every = [replace(work, clients=4, steps=2) for work in every
                 if work.method == "fedit" and work.targets == "all-linear"]
    if batches:
        every = [replace(work, batch=batch) for work in every if work.batch == 1
                 for batch in batches]
    if clients is not None:
        every = [replace(work, clients=clients) for work in every]
    return PeerScope(every, repetitions=max(3, repetitions))


def compare(asked: PeerScope, watch: Callable[[str], None] = lambda _: None) -> JsonObject:
    """Measure every case.

    Args:
        asked: what to compare.
        watch: hears one line when a case begins.

    Returns:
        The figures of the case in which aulait does worst beside the loop (tokens,
        aulait_tokens_per_s, loop_tokens_per_s, floor_tokens_per_s, ratio_to_loop, ratio_to_floor,
        and what the case is), all ``cases``, peak_rss_bytes of the process, device, threads.
    """
    cases, cache, held = [], SharedCache(), ""
    for work in asked.workloads:
        if (kind := f"{work.model} {work.dtype}") != held:
            cache, held = SharedCache(), kind  # one base at a time
        watch(f"{kind}, {work.method}, {work.targets}, batch {work.batch}")
        run = simulate.prepared(work, cache)
        cases.append(asdict(work) | {"dtype": run.settings.model.dtype}
                     | _compared(run, work.method, asked))
        device = str(run.models.base.device)
    worst = min(cases, key=lambda case: case["ratio_to_loop"])
    return {**worst, "cases": cases, "rounds": asked.rounds, "repetitions": asked.repetitions,
            "peak_rss_bytes": peak_of_process(), "device": device,
            "threads": torch.get_num_threads()}


def _compared(run: PreparedRun, method: str, asked: PeerScope) -> dict[str, float]:
    """One case: warm up all, then let them take turns."""
    trainable = METHODS[method]
    passes, tokens = simulate.same_batches(run, trainable, asked.rounds)
    loop = peft_loop(run, trainable, asked.rounds)
    contenders: Mapping[str, Callable[[], object]] = {
        "aulait": lambda: simulate.federated(run, asked.rounds),
        "loop": loop.run,
        "floor": lambda: simulate.plain(run, trainable, passes)}
    for one in contenders.values():
        one()
    spent_s = turns(run, contenders, asked.repetitions)
    speeds = {name: tokens / statistics.median(own) for name, own in spent_s.items()}
    return {"tokens": tokens, **{f"{name}_tokens_per_s": each for name, each in speeds.items()},
            "ratio_to_loop": speeds["aulait"] / speeds["loop"],
            "ratio_to_floor": speeds["aulait"] / speeds["floor"]}


def turns(run: PreparedRun, contenders: Mapping[str, Callable[[], object]],
          repetitions: int) -> dict[str, list[float]]:
    """Seconds of every contender, turn by turn; each turn begins with another of them."""
    order = list(contenders)
    spent_s: dict[str, list[float]] = {name: [] for name in order}
    for repetition in range(repetitions):
        first = repetition % len(order)
        for name in order[first:] + order[:first]:
            simulate.wait(run)
            started = time.perf_counter()
            contenders[name]()
            simulate.wait(run)
            spent_s[name].append(time.perf_counter() - started)
    return spent_s
