"""Virtual time as a run folder tells it: totals, rounds, how each ended. Nothing here was measured.

Seconds and joules of a tier are summed over its clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aulait.reporting.folder import RunFiles
from aulait.reporting.values import number, sum_of, value_at
from aulait.runfolder.schema import RoundLine, TierClock, VirtualClock

OUTCOMES: Final = ("answered", "late", "lost", "away")
"""How a client's round can end."""

SUMMED: Final = (*OUTCOMES, "busy_s", "idle_s", "energy_j", "link_j")


@dataclass(frozen=True)
class VirtualTime:
    """Virtual time of a run.

    Attributes:
        total_s: from the start to the end, both stages; None when it is not recorded.
        energy_j: of all clients, links included; None when it is not recorded.
        idle_share: the part of the clients' time in rounds that they waited; None when it is not
            recorded.
        tiers: tier -> sums over its clients and rounds, by the names in SUMMED.
    """

    total_s: float | None
    energy_j: float | None
    idle_share: float | None
    tiers: Mapping[str, Mapping[str, float]]


def timed_rounds(run: RunFiles) -> list[tuple[RoundLine, VirtualClock]]:
    """(line, its clock) of all rounds that have virtual time, as they followed one another."""
    return [(line, line.clock) for line in run.rounds if line.clock is not None]


def virtual_time_of(run: RunFiles) -> VirtualTime | None:
    """Virtual time of the whole run, of an unfinished one of its rounds so far; None where it has
    none."""
    whole, rounds = run.result.clock, [clock for _, clock in timed_rounds(run)]
    if whole is None and not rounds:
        return None
    listed = rounds if whole is None else [whole]
    there = {name for clock in listed for name in clock.tiers}
    # in the order of the experiment, not of their first answer
    order = dict.fromkeys((*(str(tier.name) for tier in run.result.tiers), *sorted(there)))
    sums = {name: dict.fromkeys(SUMMED, 0.0) for name in order if name in there}
    for clock in listed:
        for name, own in clock.tiers.items():
            for key, value in tier_sums(own).items():
                sums[name][key] += value
    busy, idle = (sum(own[key] for own in sums.values()) for key in ("busy_s", "idle_s"))
    share = None if whole is None else whole.idle_share
    share = idle / (busy + idle) if share is None and busy + idle > 0 else share
    length_s = None if whole is None else whole.total_s
    length_s = sum_of(clock.round_s for clock in rounds) if length_s is None else length_s
    return VirtualTime(length_s, sum_of(clock.energy_j for clock in listed), share, sums)


def losses_over_time(run: RunFiles) -> list[tuple[float, float, float]]:
    """(round, virtual seconds since the start, held-out loss) of the training rounds that were
    measured."""
    found = [(line.round, line.clock.total_s, line.eval.loss)
             for line in run.training if line.clock is not None]
    return [(float(r), s, loss) for r, s, loss in found
            if r is not None and s is not None and loss is not None]


def round_outcome(clock: VirtualClock, limit_s: float | None) -> str:
    """How a round ended, in words; ``limit_s``: the deadline, None where there is none."""
    late, lost = clock.late or 0.0, clock.lost or 0.0
    if (clock.answered or 0.0) <= 0:
        return "nobody answered" if late > 0 or lost > 0 else "no client at work"
    if late > 0:
        closed = limit_s is not None and (clock.round_s or 0.0) >= limit_s * (1 - 1e-9)
        return "closed at the deadline" if closed else "closed when enough had answered"
    return "some were lost" if lost > 0 else "everybody answered"


def deadline_s(run: RunFiles) -> float | None:
    """Virtual seconds after which a round is closed; None where there is no such limit."""
    return number(value_at(run.config, "compute", "deadline_s"))


def tier_sums(own: TierClock) -> dict[str, float]:
    """The numbers of a tier by the names in SUMMED, those that are missing as 0."""
    return {key: float(getattr(own, key) or 0.0) for key in SUMMED}


def requests_received(own: Mapping[str, float]) -> float:
    """Requests that reached a client, of the sums of a tier."""
    return own["answered"] + own["late"] + own["lost"]


def time_unit(largest_s: float) -> tuple[str, float]:
    """The unit that seconds of this size are told in, and how many seconds it has."""
    units: tuple[tuple[str, float], ...] = (("h", 3600.0), ("min", 60.0))
    return next(((name, scale) for name, scale in units if largest_s >= 2 * scale), ("s", 1.0))
