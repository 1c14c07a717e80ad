"""Virtual time as a run folder tells it: totals, rounds, how each ended. Nothing here was measured.

Seconds and joules of a tier are summed over its clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aulait.reporting.folder import Run, Table, at, number, total

KEYS: Final = ("answered", "late", "lost", "away", "busy_s", "idle_s", "energy_j", "link_j")
STAGES: Final = (("synthesis", "synthesis"), ("train", "training"))


@dataclass(frozen=True)
class Spent:
    """Virtual time of a run.

    Attributes:
        total_s: from the start to the end, both stages; None when it is not recorded.
        energy_j: of all clients, links included; None when it is not recorded.
        idle_share: the part of the clients' time in rounds that they waited; None when it is not
            recorded.
        tiers: tier -> sums over its clients and rounds, by the names in KEYS.
    """

    total_s: float | None
    energy_j: float | None
    idle_share: float | None
    tiers: Mapping[str, Mapping[str, float]]


def ticks(run: Run) -> list[tuple[Table, Table]]:
    """(line, its clock) of all rounds that have virtual time, synthesis first."""
    lines = [line for stage, _ in STAGES for line in run.stage(stage)]
    return [(line, line["clock"]) for line in lines if isinstance(line.get("clock"), Mapping)]


def spent(run: Run) -> Spent | None:
    """Virtual time of the whole run, of an unfinished one of its rounds so far; None where it has
    none."""
    told, rounds = run.result.get("clock"), [clock for _, clock in ticks(run)]
    if not isinstance(told, Mapping) and not rounds:
        return None
    listed = [told] if isinstance(told, Mapping) else rounds
    there = {name for clock in listed for name in tiers(clock)}
    # in the order of the experiment, not of their first answer
    first = [str(tier.get("name")) for tier in run.tiers]
    sums_of = {name: dict.fromkeys(KEYS, 0.0) for name in dict.fromkeys((*first, *sorted(there)))
               if name in there}
    for clock in listed:
        for name, own in tiers(clock).items():
            for key, value in own.items():
                sums_of[name][key] += value
    busy, idle = (sum(own[key] for own in sums_of.values()) for key in ("busy_s", "idle_s"))
    share = number(at(told, "idle_share"))
    share = idle / (busy + idle) if share is None and busy + idle > 0 else share
    length_s = number(at(told, "total_s"))
    length_s = total(clock.get("round_s") for clock in rounds) if length_s is None else length_s
    return Spent(length_s, total(clock.get("energy_j") for clock in listed), share, sums_of)


def losses(run: Run) -> list[tuple[float, float, float]]:
    """(round, virtual seconds since the start, held-out loss) of the training rounds that were
    measured."""
    paths = (("round",), ("clock", "total_s"), ("eval", "loss"))
    found = [tuple(number(at(line, *path)) for path in paths) for line in run.stage("train")]
    return [(r, s, loss) for r, s, loss in found if r is not None and s is not None
            and loss is not None]


def state(clock: Table, limit_s: float | None) -> str:
    """How a round ended, in words; ``limit_s``: the deadline, None where there is none."""
    answered, late, lost, length_s = (number(clock.get(key)) or 0.0
        for key in ("answered", "late", "lost", "round_s"))
    if answered <= 0:
        return "nobody answered" if late > 0 or lost > 0 else "no client at work"
    if late > 0:
        closed = limit_s is not None and length_s >= limit_s * (1 - 1e-9)
        return "closed at the deadline" if closed else "closed when enough had answered"
    return "some were lost" if lost > 0 else "everybody answered"


def deadline_s(run: Run) -> float | None:
    """Virtual seconds after which a round is closed; None where there is no such limit."""
    return number(at(run.config, "compute", "deadline_s"))


def tiers(clock: Any) -> dict[str, dict[str, float]]:
    """Tier -> its numbers, those that are missing as 0."""
    listed = at(clock, "tiers", default={})
    found = listed.items() if isinstance(listed, Mapping) else ()
    return {str(name): {key: number(own.get(key)) or 0.0 for key in KEYS} for name, own in found
            if isinstance(own, Mapping)}


def asked(own: Mapping[str, float]) -> float:
    """Orders that reached a client."""
    return own["answered"] + own["late"] + own["lost"]


def timed(largest_s: float) -> tuple[str, float]:
    """The unit that seconds of this size are told in, and how many seconds it has."""
    units: tuple[tuple[str, float], ...] = (("h", 3600.0), ("min", 60.0))
    return next(((name, scale) for name, scale in units if largest_s >= 2 * scale), ("s", 1.0))
