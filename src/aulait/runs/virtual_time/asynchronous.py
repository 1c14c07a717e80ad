"""The asynchronous schedule of a run: who works when, and whose updates fill which buffer.

A fixed number of clients is at work at any time. Whoever is done sends its update, which began from
the factors of some rounds ago, and another client, drawn from those who are free and there, begins
from the newest. A round ends when its buffer is full. Nobody waits for a slower one.

Who works when follows from machines, links and the run's seed alone, never from data or updates: so
the schedule of a whole run is known before its first round, is public, and bounds how often a
client takes part.

Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
arXiv 2106.06639, Algorithm 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from aulait.core.errors import ConfigError, require
from aulait.core.seeds import Seeds
from aulait.runs.virtual_time.clock import RoundOutcome, Stint, slow_down

DRAWN_AT_ONCE = 64
PATIENCE = 1000  # draws after which a client is taken, though it is said to be away


@dataclass(frozen=True)
class Pace:
    """What the schedule keeps to.

    Attributes:
        size: updates that fill a buffer.
        at_work: clients at work at a time.
        most: updates of any one client in the run.
        server_s: seconds in which the server trains its proxies; a round is no shorter.
    """

    size: int
    at_work: int
    most: int
    server_s: float = 0.0


@dataclass(frozen=True)
class FilledBuffer:
    """A round of the schedule.

    Attributes:
        beginning: clients that begin in it, sorted.
        filling: client -> rounds that have ended since it began, of those whose updates fill it.
        outcome: its virtual time.
    """

    beginning: tuple[str, ...]
    filling: Mapping[str, int]
    outcome: RoundOutcome


def schedule(stints: Mapping[str, Stint], seeds: Seeds, pace: Pace,
             rounds: int) -> list[FilledBuffer]:
    """All rounds.

    Args:
        stints: client -> what its work takes.
        seeds: of the run.
        pace: sizes.
        rounds: how many.

    Raises:
        ConfigError: the clients cannot fill so many buffers.
    """
    most = min(pace.most, rounds)
    require(pace.size <= len(stints) and pace.size * rounds <= len(stints) * most, ConfigError,
            f"{rounds} buffers of {pace.size} updates found, expected at most the "
            f"{len(stints) * most} updates that {len(stints)} clients with {most} each can give; "
            "lower federation.rate or train.rounds, or raise federation.contributions")
    work = _Work(stints, seeds, pace, {name: most for name in sorted(stints)})
    return [work.round(number) for number in range(1, rounds + 1)]


@dataclass
class _Round:
    """A round while it goes."""

    number: int
    beginning: set[str] = field(default_factory=set)
    filling: dict[str, int] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    busy_s: dict[str, float] = field(default_factory=dict)


class _Work:
    """Who is at work, and since when.

    Args:
        stints: client -> what its work takes.
        seeds: of the run.
        pace: sizes.
        left: client -> updates that it may still give.
    """

    def __init__(self, stints: Mapping[str, Stint], seeds: Seeds, pace: Pace,
                 left: dict[str, int]) -> None:
        self._stints, self._seeds, self._pace, self._left = stints, seeds, pace, left
        self._names = list(left)
        self._began: dict[str, int] = {}  # client at work -> round in which it began
        self._ends: list[tuple[float, int, str, bool, float]] = []
        self._jobs = 0
        self._now_s = self._released_s = 0.0

    def round(self, number: int) -> FilledBuffer:
        """Work until the buffer is full."""
        own = _Round(number)
        while len(own.filling) < self._pace.size:
            self._begin(own)
            require(bool(self._ends), ConfigError,
                    f"buffer {number} cannot be filled: the clients that are free have given all "
                    f"of their {self._pace.most} updates; raise federation.contributions, or lower "
                    "train.rounds")
            end_s, _, name, lost, took_s = heapq.heappop(self._ends)
            self._now_s = max(self._now_s, end_s)
            own.busy_s[name] = own.busy_s.get(name, 0.0) + took_s
            began = self._began.pop(name)
            if lost:
                self._left[name] += 1
                own.lost.add(name)
            else:
                own.filling[name] = number - began
        before_s = self._released_s
        self._released_s = self._now_s = max(self._now_s, before_s + self._pace.server_s)
        return FilledBuffer(tuple(sorted(own.beginning)), dict(sorted(own.filling.items())),
                            self._outcome(own, self._released_s - before_s))

    def _outcome(self, own: _Round, round_s: float) -> RoundOutcome:
        return RoundOutcome(tuple(sorted(own.filling)), (), tuple(sorted(own.lost)), (), round_s,
                            self._pace.server_s, own.busy_s, tuple(own.filling.values()))

    def _begin(self, own: _Round) -> None:
        """Fill the free places; a place stays free where nobody may take it."""
        while len(self._began) < self._pace.at_work:
            self._jobs += 1
            draws = self._seeds.generator("clock-async", self._jobs)
            name = self._drawn(own, draws)
            if name is None:
                return
            self._left[name] -= 1
            self._began[name] = own.number
            own.beginning.add(name)
            stint = self._stints[name]
            fate, place = torch.rand(2, generator=draws, dtype=torch.float64).tolist()
            slow = float(torch.randn(1, generator=draws, dtype=torch.float64))
            took_s = stint.transfer_s + stint.compute_s * slow_down(stint.spread, slow)
            lost = fate < stint.dropout
            took_s = place * took_s if lost else took_s
            heapq.heappush(self._ends, (self._now_s + took_s, self._jobs, name, lost, took_s))

    def _drawn(self, own: _Round, draws: torch.Generator) -> str | None:
        """One of the clients that are free, have not filled this buffer yet and may give another
        update, each with the chance that it is there; None where there is none."""
        if not any(self._free(own, name) for name in self._names):
            return None
        for _ in range(PATIENCE):
            some = torch.randint(len(self._names), (DRAWN_AT_ONCE,), generator=draws).tolist()
            there = torch.rand(DRAWN_AT_ONCE, generator=draws, dtype=torch.float64).tolist()
            for i, chance in zip(some, there, strict=True):
                name: str = self._names[i]
                if self._free(own, name) and chance < self._stints[name].availability:
                    return name
        return next(name for name in self._names if self._free(own, name))

    def _free(self, own: _Round, name: str) -> bool:
        return name not in self._began and name not in own.filling and self._left[name] > 0
