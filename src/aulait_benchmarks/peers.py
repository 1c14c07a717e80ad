"""``aulait bench simulate --peers``: the same records, steps and adapters through aulait, through
the loop a user would write with PEFT, through Flower's own simulation of that loop (extra
``peers``), and through plain training of one adapter (the floor), in turns.

PEFT has no cores: beside the method ``cores`` the others train what they train beside ``ffa``.
Where the clients also search for the server's step (``algorithm.server``), which none of the others
does, the round without the search stands beside them and the search is told apart. All ratios here
are speeds over speeds: 1 is parity and more is faster.

With one thread a speed is tokens over processor time, of Flower's simulation that of all its
processes, so that other programs of the machine leave it as it is; with several threads over the
wall clock's, which is told besides in any case.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Final, NamedTuple, Protocol

import torch

from aulait.core.errors import install
from aulait.core.factors import Trainable
from aulait.core.files import JsonObject
from aulait.models import named
from aulait.resources.meters import peak_of_process
from aulait.runs.prepared import PreparedRun, SharedCache
from aulait_benchmarks import simulate
from aulait_benchmarks.clock import own_clock
from aulait_benchmarks.peft_loop import PeftLoop, PeftWork, peft_work
from aulait_benchmarks.simulate import METHODS, Workload

_TOLD: Final = ("aulait", "loop", "flower", "floor")
PEER_METHODS: Final = {**METHODS, "cores": Trainable.B}  # method -> what the others train beside it


@dataclass(frozen=True)
class PeerScope:
    """What is compared.

    Attributes:
        workloads: one case each.
        rounds: of one turn.
        repetitions: turns of each; medians are told.
        flower: whether Flower's simulation takes part.
    """

    workloads: Sequence[Workload]
    rounds: int = 1
    repetitions: int = 5
    flower: bool = False


class Simulated(Protocol):
    """A simulation in other processes that is up (``flower_simulation.FlowerSimulation``)."""

    start_s: float

    def run(self) -> None:
        """All rounds."""

    def peak_bytes(self) -> int | None:
        """The sum of the peaks of its processes."""

    def processor_s(self) -> float | None:
        """Processor seconds of its processes so far."""


class Contender(NamedTuple):
    """Who takes turns.

    Attributes:
        run: all rounds.
        now: the clock that its seconds are read from.
    """

    run: Callable[[], object]
    now: Callable[[], float]


class Turn(NamedTuple):
    """Seconds of a turn by the contender's clock, and by the wall clock."""

    spent_s: float
    wall_s: float


_BREW: Final = tuple(
    Workload(method=method, batch=batch, targets=targets)
    for method in PEER_METHODS for targets in ("all-linear", "attention") for batch in (1, 2, 4, 8))
_SMOLLM2: Final = tuple(
    Workload(model="smollm2", dtype=dtype, method=method, clients=6, steps=2, batch=batch,
             targets=targets)
    for dtype, method, targets in (
        ("float32", "fedit", "all-linear"), ("bfloat16", "fedit", "all-linear"),
        ("float32", "fedit", "attention"), ("bfloat16", "fedit", "attention"),
        ("float32", "ffa", "all-linear"), ("float32", "cores", "all-linear"))
    for batch in (1, 2, 4, 8))


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
    return PeerScope(every, repetitions=max(3, repetitions), flower=flower_is_here())


def flower_is_here() -> bool:
    """Whether Flower's simulation is installed (extra ``peers``)."""
    return find_spec("flwr") is not None and find_spec("ray") is not None


def compare(asked: PeerScope, watch: Callable[[str], None] = lambda _: None) -> JsonObject:
    """Measure every case.

    Args:
        asked: what to compare.
        watch: hears one line when a case begins.

    Returns:
        The figures of the case in which aulait does worst beside the loop (tokens,
        aulait_tokens_per_s, loop_tokens_per_s, flower_tokens_per_s, floor_tokens_per_s,
        ratio_to_loop, ratio_to_flower, ratio_to_floor, aulait_first_s and so on: seconds of each
        one's first turn, wall_s of each one's later turns, flower_start_s until its processes are
        up, flower_peak_rss_bytes of them all, searching_ratio_to_loop of rounds in which the
        clients search, search_share of such a round that the search takes, and what the case is;
        those of Flower or of a search are None where it takes no part), all ``cases``,
        peak_rss_bytes of this process, in which all others train, clock, device, threads.
    """
    if not asked.flower:
        watch(f"Flower's simulation is left out: flwr or ray is missing; {install('peers')}")
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
            "peak_rss_bytes": peak_of_process(), "clock": own_clock().name, "device": device,
            "threads": torch.get_num_threads()}


def _compared(run: PreparedRun, method: str, asked: PeerScope) -> JsonObject:
    """One case: the first turn of each apart, then they take turns."""
    trainable = PEER_METHODS[method]
    passes, tokens = simulate.same_batches(run, trainable, asked.rounds)
    work = peft_work(run, trainable, asked.rounds)
    loop = PeftLoop(work)
    now = own_clock().now
    settled = run.settings.method_config
    alone = simulate.without_search(settled)
    contenders = {
        "aulait": Contender(lambda: simulate.federated(run, asked.rounds, alone), now),
        "loop": Contender(loop.run, now),
        "floor": Contender(lambda: simulate.plain(run, trainable, passes), now)}
    if alone != settled:
        contenders["searching"] = Contender(
            lambda: simulate.federated(run, asked.rounds, settled), now)
    with _flower(work, asked.flower) as flower:
        if flower is not None:
            contenders["flower"] = Contender(flower.run, _clock_of(flower))
        first = {name: own[0] for name, own in turns(run, contenders, 1).items()}
        later = turns(run, contenders, asked.repetitions)
        peak_bytes = flower.peak_bytes() if flower is not None else None
        start_s = flower.start_s if flower is not None else None
    speeds = {name: tokens / statistics.median(turn.spent_s for turn in own)
              for name, own in later.items()}
    return {"tokens": tokens, **_beside(speeds),
            **{f"{name}_first_s": first[name].wall_s if name in first else None for name in _TOLD},
            "wall_s": {name: statistics.median(turn.wall_s for turn in own)
                       for name, own in later.items()},
            "flower_start_s": start_s, "flower_peak_rss_bytes": peak_bytes}


def _beside(speeds: Mapping[str, float]) -> dict[str, float | None]:
    """Speeds, aulait's over those of the others, and what a search costs."""
    own, searching = speeds["aulait"], speeds.get("searching")
    return {**{f"{name}_tokens_per_s": speeds.get(name) for name in _TOLD},
            **{f"ratio_to_{name}": own / speeds[name] if name in speeds else None
               for name in _TOLD[1:]},
            "searching_ratio_to_loop": searching and searching / speeds["loop"],
            "search_share": searching and 1.0 - searching / own}


def _clock_of(flower: Simulated) -> Callable[[], float]:
    """Processor time of Flower's processes where ours is measured so and the system tells it, else
    the wall clock."""
    if own_clock().now is time.perf_counter or flower.processor_s() is None:
        return time.perf_counter
    return lambda: flower.processor_s() or 0.0


@contextmanager
def _flower(work: PeftWork, takes_part: bool) -> Iterator[Simulated | None]:
    """Flower's simulation, where it takes part."""
    if not takes_part:
        yield None
        return
    # needs the extra "peers", which is optional
    from aulait_benchmarks import flower_simulation

    with flower_simulation.simulation(work) as up:
        yield up


def turns(run: PreparedRun, contenders: Mapping[str, Contender],
          repetitions: int) -> dict[str, list[Turn]]:
    """Seconds of every contender, turn by turn; each turn begins with another of them."""
    order = list(contenders)
    spent: dict[str, list[Turn]] = {name: [] for name in order}
    for repetition in range(repetitions):
        first = repetition % len(order)
        for name in order[first:] + order[:first]:
            own = contenders[name]
            simulate.wait(run)
            wall, started = time.perf_counter(), own.now()
            own.run()
            simulate.wait(run)
            spent[name].append(Turn(own.now() - started, time.perf_counter() - wall))
    return spent
