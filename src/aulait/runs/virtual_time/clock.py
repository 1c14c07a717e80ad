"""The virtual clock: the time a real federation would take, its stragglers and dropouts included,
by the run's seed.

A round of a client is: request down, arithmetic, update up. Its arithmetic is slower or faster
than planned by a factor of its own in every round (log-normal, mean 1); it may be away from the
start, or be lost on the way. The round ends when the planned number has answered, when everybody
has who still can, or at the deadline. Who answers in time depends on machines and seeds alone,
never on data; under privacy the denominator stays the planned one.

Source: the round with over-selection and a reporting deadline after Bonawitz et al., "Towards
Federated Learning at Scale: System Design", MLSys 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from aulait.core.files import JsonMapping, JsonObject
from aulait.core.seeds import Seeds


@dataclass(frozen=True)
class Stint:
    """What a round takes on one client's machine.

    Attributes:
        tier: its kind of machine.
        compute_s: seconds of arithmetic, waiting for the server's half of a split step included.
        transfer_s: seconds on the link.
        energy_j: of the arithmetic; None where not known.
        idle_w: drawn while waiting for the others; None where not known.
        link_j: energy of the bytes on the link.
        availability: chance that it is available at the start of a round.
        dropout: chance that it is lost during a round.
        spread: standard deviation of the logarithm of its slow-down.
    """

    tier: str
    compute_s: float
    transfer_s: float
    energy_j: float | None = None
    idle_w: float | None = None
    link_j: float = 0.0
    availability: float = 1.0
    dropout: float = 0.0
    spread: float = 0.0


@dataclass(frozen=True)
class RoundOutcome:
    """How a round went.

    Attributes:
        answered: clients whose updates count, sorted.
        late: clients that were still at work when the round ended.
        lost: clients that failed on the way.
        away: clients that were not available, and were not asked.
        round_s: virtual seconds of the round.
        server_s: seconds the server worked, beside the clients and after them.
        busy_s: client -> seconds it worked, also where its update did not count.
        ages: rounds that had ended since each of the clients that answered began, where they work
            at their own pace and nobody waits; None where all begin together.
    """

    answered: tuple[str, ...]
    late: tuple[str, ...]
    lost: tuple[str, ...]
    away: tuple[str, ...]
    round_s: float
    server_s: float = 0.0
    busy_s: Mapping[str, float] = field(default_factory=dict)
    ages: tuple[int, ...] | None = None

    @property
    def silent(self) -> frozenset[str]:
        """Clients that were asked and whose updates do not count."""
        return frozenset((*self.late, *self.lost))


class Clock:
    """Virtual time of a run.

    Args:
        stints: client -> what a round takes on its machine.
        seeds: of the run.
        deadline_s: after which a round is closed; None never.
    """

    def __init__(self, stints: Mapping[str, Stint], seeds: Seeds,
                 deadline_s: float | None = None) -> None:
        self._stints, self._seeds, self._deadline_s = stints, seeds, deadline_s

    def present(self, names: Sequence[str], stage: str, round: int) -> tuple[str, ...]:
        """Those of the clients that are available at the start of a round, in the order given."""
        return tuple(name for name in names
                     if self._fate(stage, round, name)[0] < self._stints[name].availability)

    def round(
        self, asked: Sequence[str], stage: str, round: int, *, planned: int | None = None,
        server_s: float = 0.0, after_s: float = 0.0
    ) -> RoundOutcome:
        """A round of virtual time.

        Args:
            asked: clients that get a request; those of them that are away do not.
            stage: "synthesis" or "train".
            round: counted from 1 in its stage.
            planned: the round ends when so many have answered; None: when everybody has.
            server_s: seconds the server works beside the clients (proxies, server halves of split
                models);
                the round is no shorter.
            after_s: seconds the server works when the clients have answered.
        """
        available = self.present(asked, stage, round)
        arrivals: list[tuple[float, str]] = []
        failures: list[tuple[float, str]] = []
        for name in available:
            stint, (_, fate, place, slow) = self._stints[name], self._fate(stage, round, name)
            took_s = stint.transfer_s + stint.compute_s * slow_down(stint.spread, slow)
            if fate < stint.dropout:
                failures.append((place * took_s, name))
            else:
                arrivals.append((took_s, name))
        arrivals.sort()
        counted = arrivals[: planned if planned is not None else len(arrivals)]
        end_s = counted[-1][0] if counted else 0.0
        if planned is not None and len(counted) >= planned:
            closing_s = end_s
        else:
            # a lost client is noticed when its line breaks
            closing_s = max([end_s, *(when for when, _ in failures)])
        limit_s = self._deadline_s if self._deadline_s is not None else math.inf
        round_s = max(min(closing_s, limit_s), server_s) + after_s
        answered = [name for when, name in counted if when <= limit_s]
        lost = {name: when for when, name in failures if when <= min(closing_s, limit_s)}
        late = sorted({*(name for _, name in arrivals),
                       *(name for _, name in failures)} - set(answered) - set(lost))
        busy_s = {name: min(when, min(closing_s, limit_s)) for when, name in arrivals} | {
            name: min(when, min(closing_s, limit_s)) for when, name in failures}
        return RoundOutcome(tuple(sorted(answered)), tuple(late), tuple(sorted(lost)),
                       tuple(sorted(set(asked) - set(available))), round_s,
                       server_s + after_s, busy_s)

    def metrics(self, outcome: RoundOutcome) -> JsonObject:
        """What rounds.jsonl says of a round: totals, and one entry a tier; seconds and joules are
        virtual."""
        tiers: dict[str, dict[str, float]] = {}
        for kind in ("answered", "late", "lost", "away"):
            for name in getattr(outcome, kind):
                own = tiers.setdefault(self._stints[name].tier, _nothing())
                own[kind] += 1
        for name, busy_s in outcome.busy_s.items():
            stint = self._stints[name]
            waited_s = outcome.round_s - busy_s
            own, idle_s = tiers[stint.tier], waited_s if outcome.ages is None else 0.0
            whole_s = stint.compute_s + stint.transfer_s
            own["busy_s"] += busy_s
            own["idle_s"] += idle_s
            own["energy_j"] += (stint.energy_j or 0.0) * (busy_s / whole_s if whole_s
                else 1.0) + (stint.idle_w or 0.0) * idle_s
            own["link_j"] += stint.link_j * (min(1.0, busy_s / whole_s) if whole_s else 1.0)
        busy, idle = (sum(own[key] for own in tiers.values()) for key in ("busy_s", "idle_s"))
        counts = {kind: len(getattr(outcome, kind)) for kind in ("answered", "late", "lost",
            "away")}
        ages = outcome.ages
        stale = {} if not ages else {"staleness": sum(ages) / len(ages), "stalest": max(ages)}
        return {"round_s": outcome.round_s, "server_s": outcome.server_s, **counts, **stale,
                "idle_share": idle / (busy + idle) if busy + idle else 0.0,
                "energy_j": sum(own["energy_j"] + own["link_j"] for own in tiers.values()),
                "tiers": dict(sorted(tiers.items()))}

    def _fate(self, stage: str, round: int, name: str) -> tuple[float, float, float, float]:
        """Presence, fate, place of a failure, slow-down: of this client alone, whoever else there
        is."""
        generator = self._seeds.generator(f"clock-{stage}", round, name)
        presence, fate, place = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        return presence, fate, place, float(torch.randn(1, generator=generator,
            dtype=torch.float64))


def slow_down(spread: float, normal: float) -> float:
    """Log-normal with mean 1."""
    return math.exp(spread * normal - spread * spread / 2)


def _nothing() -> dict[str, float]:
    return {"answered": 0, "late": 0, "lost": 0, "away": 0, "busy_s": 0.0, "idle_s": 0.0,
            "energy_j": 0.0, "link_j": 0.0}


def amounts(metrics: JsonMapping) -> dict[str, float]:
    """What a round of virtual time adds to a run's totals, by names that ``virtual_totals``
    reads."""
    added = {"clock|total_s": metrics["round_s"], "clock|energy_j": metrics["energy_j"]}
    for tier, own in metrics["tiers"].items():
        added |= {f"clock|{tier}|{key}": value for key, value in own.items()}
    return added


def virtual_totals(totals: Mapping[str, float]) -> JsonObject | None:
    """Virtual time of a whole run: {total_s, energy_j, idle_share, tiers}; None where there was
    none."""
    if "clock|total_s" not in totals:
        return None
    tiers: dict[str, dict[str, float]] = {}
    for name, value in totals.items():
        kind, _, rest = name.partition("|")
        tier, bar, key = rest.rpartition("|")
        if kind == "clock" and bar:
            tiers.setdefault(tier, {})[key] = value
    busy, idle = (sum(own[key] for own in tiers.values()) for key in ("busy_s", "idle_s"))
    return {"total_s": totals["clock|total_s"], "energy_j": totals["clock|energy_j"],
            "idle_share": idle / (busy + idle) if busy + idle else 0.0, "tiers": tiers}
