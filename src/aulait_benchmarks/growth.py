"""``aulait bench growth``: how time grows with clients, tokens, rank and candidates.

Each kind of work is done at several sizes. The exponent is the slope of a straight line through the
logarithms of size and time (least squares); beside it stands what the algorithm should take. Work
of a fixed size that is done at every size, such as starting operations, pulls an exponent below
what is expected; so sizes begin where that is little.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from aulait.core.errors import ConfigError, require
from aulait.core.factors import Trainable
from aulait.core.files import JsonObject
from aulait.core.lora import initial, to_tensors
from aulait.core.types import ClientUpdate, Record
from aulait.privacy.clipping import ClippedSum, norm
from aulait.resources.meters import peak_of_process
from aulait.runs.prepared import PreparedRun, SharedCache
from aulait.synthesis.embedding import votes
from aulait.training.trainer import Learner, LocalTraining
from aulait_benchmarks import simulate
from aulait_benchmarks.clock import own_clock
from aulait_benchmarks.simulate import Workload

VOTERS, WIDTH, MEMBERS = 2_000, 384, 8


@dataclass(frozen=True)
class Sizes:
    """At which sizes each kind of work is measured.

    Attributes:
        clients: that train two steps each in a round.
        tokens: of each of two sequences of a step.
        ranks: of the factors of eight clients that are summed.
        candidates: for which 2,000 vectors vote.
    """

    clients: Sequence[int]
    tokens: Sequence[int]
    ranks: Sequence[int]
    candidates: Sequence[int]


FULL = Sizes((4, 8, 16, 32), (32, 64, 128, 256), (32, 64, 128, 256), (512, 1_024, 2_048, 4_096))
QUICK = Sizes((2, 4), (16, 32), (8, 16), (64, 128))


@dataclass(frozen=True)
class Growing:
    """One kind of work.

    Attributes:
        name: against what time is told.
        work: what is done.
        expected: exponent.
        why: where that comes from.
        sizes: at which it is measured.
        at: size -> the work, made ready.
    """

    name: str
    work: str
    expected: float
    why: str
    sizes: Sequence[int]
    at: Callable[[int], Callable[[], object]]


def measure(sizes: Sizes, repetitions: int,
            watch: Callable[[str], None] = lambda _: None) -> JsonObject:
    """Measure every kind of work at every size.

    Args:
        sizes: at which.
        repetitions: how often; medians are told.
        watch: hears one line when a kind begins.

    Returns:
        tables: of each its name, work, expected, why, exponent, and rows of size and seconds;
        clock: as ``own_clock``;
        repetitions, peak_rss_bytes, threads.
    """
    clock = own_clock()
    tables = []
    for kind in _kinds(sizes):
        watch(f"{kind.work}, by {kind.name}")
        rows = [{"size": size, "seconds": _median_s(kind.at(size), repetitions, clock.now)}
                for size in kind.sizes]
        tables.append({"name": kind.name, "work": kind.work, "expected": kind.expected,
                       "why": kind.why, "rows": rows, "exponent": exponent(
                           [(row["size"], row["seconds"]) for row in rows])})
    return {"tables": tables, "clock": clock.name,
            "repetitions": repetitions, "peak_rss_bytes": peak_of_process(),
            "threads": torch.get_num_threads()}


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the straight line through the logarithms of (size, seconds), by least squares.

    Raises:
        ConfigError: fewer than two sizes.
    """
    require(len({size for size, _ in points}) > 1, ConfigError,
            f"{len(points)} sizes found, expected at least two different ones; add some")
    x, y = ([math.log(value) for value in own] for own in zip(*points, strict=True))
    return statistics.linear_regression(x, y).slope


def _median_s(work: Callable[[], object], repetitions: int, clock: Callable[[], float]) -> float:
    """Seconds of the work after once to warm up."""
    work()
    spent_s = []
    for _ in range(repetitions):
        started = clock()
        work()
        spent_s.append(clock() - started)
    return statistics.median(spent_s)


def _kinds(sizes: Sizes) -> Iterator[Growing]:
    cache = SharedCache()
    yield Growing("clients", "a round of brew, two steps of two texts a client", 1.0,
                  "each client's tokens pass the base once",
                  sizes.clients, lambda clients: _round(clients, cache))
    run = simulate.prepared(Workload(clients=2, steps=1), cache)
    yield Growing("tokens", "two steps of brew on two sequences", 1.0,
                  "products with weights grow with the tokens; attention, which grows with their "
                  "square, is little at these lengths",
                  sizes.tokens, lambda tokens: _steps(run, tokens))
    yield Growing("rank", "the sum of eight clients' factors, clipped and rounded", 1.0,
                  "numbers of an update grow with the rank",
                  sizes.ranks, lambda rank: _sum(run, rank))
    yield Growing("candidates", "votes of 2,000 vectors of 384 numbers", 1.0,
                  "each vector is compared with each candidate", sizes.candidates, _votes)


def _round(clients: int, cache: SharedCache) -> Callable[[], object]:
    run = simulate.prepared(Workload(clients=clients, steps=2, batch=2), cache)
    return lambda: simulate.federated(run, 1)


def _steps(run: PreparedRun, tokens: int) -> Callable[[], object]:
    """Two steps on two sequences of exactly so many tokens."""
    context, base = run.context, run.models.base
    config = base.config.model_copy(update={"context": tokens})
    learner = Learner(replace(base, config=config), run.models.learner.config)
    text = "\n".join(record.text for name in run.federation.trainers
                     for record in run.federation.sites[name].train)
    record = Record(text)
    found = learner.lengths([record])
    require(found == [tokens], ConfigError,
            f"a text of {found[0]} tokens found, expected {tokens}; take fewer tokens")
    start = initial(context.shapes, context.rank, context.alpha, context.seeds)
    training = LocalTraining(start, [record], Trainable.AB, 2, 2, 1e-3, 0)
    return lambda: learner.train([training])


def _sum(run: PreparedRun, rank: int) -> Callable[[], object]:
    """Eight updates shortened to half of their length, rounded onto a grid, and added."""
    start = to_tensors(initial(run.context.shapes, rank, 1.0, run.context.seeds))
    updates = [ClientUpdate(str(k), start, 1.0, {}) for k in range(MEMBERS)]
    bound = norm(start) / 2

    def work() -> None:
        total = ClippedSum.zero(start, step=2.0**-20)
        for update in updates:
            total.add(update, update.tensors, bound, 1.0)

    return work


def _votes(candidates: int) -> Callable[[], object]:
    made = torch.Generator().manual_seed(0)
    vectors, texts = (torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=made))
                      for count in (VOTERS, candidates))
    return lambda: votes(vectors, texts)
