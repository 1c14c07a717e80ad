"""The privacy plan: every release of a run, its noise and what it costs, as data, before it starts.

It follows from public settings alone. ``aulait plan`` prints it, the run draws its noise by it, a
site compares it with its own limit, and after every round the ledger is held against it. So what is
promised, what is spent and what is told cannot drift apart.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aulait.core.cohort_turn import CohortTurn
from aulait.core.errors import PrivacyError, require
from aulait.privacy.accounting import (
    Event,
    calibrate,
    calibrate_events,
    epsilon,
    split_budget,
)
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger_line import LedgerLine
from aulait.privacy.mechanisms import find_mechanism
from aulait.privacy.noise_grid import MOST_SUMMANDS, grid, least_multiplier, sums_are_exact
from aulait.privacy.record_level import RecordMechanism, SiteNoise, same_relation

ROLES = ("proxy", "local", "split")
WITHIN = {"search": "train"}  # releases that are made within the rounds of another stage


@dataclass(frozen=True, kw_only=True)
class ReleaseSchedule:
    """What every round of one stage will release; its noise is not yet known.

    Attributes:
        stage: "synthesis", "train", or "search" for the line searches of the rounds of "train".
        rounds: of the stage, at least 1; each makes one release.
        role: roles that are charged, as "proxy" or "proxy+local".
        mechanism: name of the mechanism.
        bound: L2 bound of one unit's part, > 0; None where the proxies' updates will give it.
        sampling_rate: probability with which the unit takes part (Poisson); 1 is always.
        steps: noised mechanisms in one release.
        cohorts: fixed ones that take turns, round by round; 1 is everybody in every round.
        most: rounds in which one unit takes part at most, where a public schedule says who does;
            None: in all rounds of its cohort.
    """

    stage: str
    rounds: int
    role: str
    mechanism: str
    bound: float | None = None
    sampling_rate: float = 1.0
    steps: int = 1
    cohorts: int = 1
    most: int | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """The single roles that are charged."""
        return tuple(self.role.split("+"))

    @property
    def rounds_of(self) -> str:
        """The stage in whose rounds it is made."""
        return WITHIN.get(self.stage, self.stage)

    @property
    def participations(self) -> int:
        """Rounds in which one unit takes part at most."""
        return min(math.ceil(self.rounds / self.cohorts), self.most or self.rounds)

    def event(self, noise_multiplier: float, round: int = 1) -> Event:
        """One round as the accountant counts it."""
        found = find_mechanism(self.mechanism).event(noise_multiplier, self.sampling_rate,
                                                     self.steps)
        turn = CohortTurn.of_round(round, self.cohorts)
        return replace(found, turn=None if turn is None else turn.number, most=self.most)

    def all_events(self, noise_multiplier: float) -> Counter[Event]:
        """All rounds as the accountant counts them."""
        found: Counter[Event] = Counter()
        for first in range(1, min(self.rounds, self.cohorts) + 1):
            found[self.event(noise_multiplier, first)] += len(
                range(first, self.rounds + 1, self.cohorts))
        return found


@dataclass(frozen=True, kw_only=True)
class PlannedRelease(ReleaseSchedule):
    """What every round of one stage will release, with its noise.

    Attributes:
        noise_multiplier: sigma / sensitivity, > 0.
        sensitivity: L2 distance by which one unit moves what gets the noise; None where the bound
            is not known before the run.
    """

    noise_multiplier: float
    sensitivity: float | None

    @property
    def sigma(self) -> float | None:
        """Standard deviation of the noise; None where the bound is not known before the run."""
        return None if self.sensitivity is None else self.noise_multiplier * self.sensitivity

    @property
    def events(self) -> Counter[Event]:
        """All rounds as the accountant counts them."""
        return self.all_events(self.noise_multiplier)


@dataclass(frozen=True)
class PrivacyPlan:
    """Everything that a run will release about its clients.

    Attributes:
        config: the promise: unit, relation, delta, and whether privacy is off.
        releases: one entry for each stage that releases something under noise; empty when off.
        budget: role -> epsilon it may spend; infinite where only a noise multiplier was given;
            empty when off.
        epsilon: role -> epsilon that it will have spent after the last round; infinite when privacy
            is off and for roles whose votes get no noise.
        exact_roles: roles whose votes are released as they are, a control of simulations.
    """

    config: PrivacyConfig
    releases: tuple[PlannedRelease, ...]
    budget: Mapping[str, float]
    epsilon: Mapping[str, float]
    exact_roles: tuple[str, ...] = ()

    @property
    def events(self) -> dict[str, Counter[Event]]:
        """Role -> everything that it will be charged with, as the accountant counts it."""
        found: defaultdict[str, Counter[Event]] = defaultdict(Counter)
        for release in self.releases:
            for role in release.roles:
                found[role] += release.events
        return dict(found)

    def noise_multiplier(self, stage: str) -> float:
        """Noise over sensitivity of the stage's releases: 0 without privacy; infinite where no
        release is planned, so that one cannot happen by mistake."""
        if self.config.off:
            return 0.0
        return next((r.noise_multiplier for r in self.releases if r.stage == stage), math.inf)

    def has_release(self, stage: str, round: int) -> bool:
        """Whether a round releases something under noise."""
        return self.release_count(stage, round) > 0

    def release_count(self, stage: str, round: int) -> int:
        """How many releases under noise a round makes."""
        return len(self._planned(stage, round))

    @property
    def record_mechanisms(self) -> dict[str, RecordMechanism] | None:
        """Stage -> what a round of it asks of any unit at most, where the sites add the noise; None
        where they do not."""
        if not self.config.protects_records:
            return None
        return {r.stage: RecordMechanism(r.mechanism, r.steps, r.sampling_rate)
                for r in self.releases}

    def site_noise(self, stage: str = "train") -> SiteNoise | None:
        """What the sites are asked to do to their own training; None where they add no noise."""
        release = next((r for r in self.releases if r.stage == stage), None)
        if not self.config.protects_records or release is None:
            return None
        assert release.bound is not None  # the settings name it for this unit
        assert release.sigma is not None
        return SiteNoise(mechanism=release.mechanism, clip=release.bound, sigma=release.sigma,
                         most_rate=release.sampling_rate, most_steps=release.steps,
                         noise_seed=self.config.noise_seed)

    def check_run(self, done: Sequence[tuple[str, int]], lines: Sequence[LedgerLine]) -> None:
        """Hold all that a run has released against the plan, before its result is written.

        A round that was interrupted and made again has several lines, all of them charged: each is
        compared.

        Args:
            done: (stage, round) of every round done.
            lines: all lines of the ledger.

        Raises:
            PrivacyError: a round has no line though one was planned, or a line is not of the plan.
        """
        there = {(line.stage, line.round) for line in lines}
        for stage, round in done:
            if any((r.stage, round) not in there for r in self._planned(stage, round)):
                self.check(stage, round, ())
        for line in lines:
            planned = [r for r in self._planned(WITHIN.get(line.stage, line.stage), line.round)
                       if r.stage == line.stage]
            self._hold(planned, (line,), line.stage, line.round)

    def check(self, stage: str, round: int, lines: Sequence[LedgerLine]) -> None:
        """Hold what a round has released against the plan.

        Args:
            stage: "synthesis" or "train".
            round: counted from 1 in its stage.
            lines: ledger lines that the round has added.

        Raises:
            PrivacyError: a planned release is missing, there is one more, or one differs.
        """
        self._hold(self._planned(stage, round), lines, stage, round)

    def _planned(self, stage: str, round: int) -> list[PlannedRelease]:
        """The releases of a round, in their order."""
        return [r for r in self.releases if r.rounds_of == stage and 1 <= round <= r.rounds]

    def _hold(self, planned: Sequence[PlannedRelease], lines: Sequence[LedgerLine], stage: str,
              round: int) -> None:
        """Compare lines with the releases that were planned for a round."""
        where = f"{stage} round {round}"
        require(len(lines) == len(planned), PrivacyError,
                f"{where} has {len(lines)} lines in the ledger, expected {len(planned)} by the "
                "privacy plan; the method must release once a round, by the aggregator")
        for release, line in zip(planned, lines, strict=True):
            told, expected = self._compared(round, release, line)
            differing = [key for key in expected if told[key] != expected[key]]
            text = ", ".join(f"{key} {told[key]} instead of {expected[key]}" for key in differing)
            require(not differing, PrivacyError,
                    f"{where} has release {line.release} with {text}; the privacy plan was another")

    def _compared(
        self, round: int, release: PlannedRelease, line: LedgerLine
    ) -> tuple[dict[str, object], dict[str, object]]:
        """What a ledger line says, and what the plan says, by the same names."""
        same = same_relation(line.unit, line.relation, self.config.relation)
        event = release.event(release.noise_multiplier, round)
        # a round that was made again is charged to everybody, which is no less than planned
        again = replace(line.event, most=event.most) if line.event.most is None else line.event
        told: dict[str, object] = {
            "stage": line.stage, "round": line.round, "role": line.role,
            "mechanism": line.mechanism, "event": again, "delta": line.delta,
            "relation": self.config.relation if same else line.relation, "unit": line.unit}
        expected: dict[str, object] = {
            "stage": release.stage, "round": round, "role": release.role,
            "mechanism": release.mechanism, "event": event,
            "delta": self.config.delta, "relation": self.config.relation,
            "unit": self.config.unit}
        if release.sensitivity is not None:
            close = math.isclose(line.sensitivity, release.sensitivity, rel_tol=1e-9)
            told["sensitivity"] = release.sensitivity if close else line.sensitivity
            expected["sensitivity"] = release.sensitivity
        return told, expected


def plan_privacy(
    config: PrivacyConfig, schedules: Sequence[ReleaseSchedule],
    exact_roles: Sequence[str] = (), roles: Sequence[str] = ROLES,
) -> PrivacyPlan:
    """Noise multipliers that meet the target for every role, or the one that was given.

    Args:
        config: the promise.
        schedules: what the stages will release: votes, training, line searches, in this order.
            Stages without a release are left out.
        exact_roles: roles whose votes get no noise at all.
        roles: all roles that have an account.

    Raises:
        PrivacyError: the promise is incomplete, or a combination is not accounted.
    """
    exact = tuple(exact_roles)
    if config.off:
        return PrivacyPlan(config, (), {}, dict.fromkeys(roles, math.inf), exact)
    if config.delta is None or config.relation is None:
        raise PrivacyError("privacy is on without delta or relation; write them")
    cap = math.inf if config.epsilon is None else config.epsilon
    releases = []
    for schedule, multiplier in zip(schedules, _multipliers(config, schedules), strict=True):
        mechanism = find_mechanism(schedule.mechanism, config.unit)
        require(config.relation in mechanism.relations, PrivacyError,
                f"privacy.relation = '{config.relation}' found with mechanism "
                f"'{schedule.mechanism}', expected one of: {', '.join(mechanism.relations)}")
        bound = schedule.bound
        releases.append(PlannedRelease(
            **vars(schedule), noise_multiplier=multiplier,
            sensitivity=None if bound is None else mechanism.sensitivity(bound, config.relation)))
        _check_grid(releases[-1], mechanism.sensitivity(1.0, config.relation))
    spent = {role: math.inf if role in exact else _epsilon(releases, role, config.delta)
             for role in roles}
    return PrivacyPlan(config, tuple(releases), dict.fromkeys(roles, cap), spent, exact)


def _check_grid(release: PlannedRelease, sensitivity: float) -> None:
    """Raise unless sums that get this noise are exact, before anybody works for one.

    Args:
        release: with its noise.
        sensitivity: of a bound of 1.
    """
    z, least = release.noise_multiplier, least_multiplier(sensitivity)
    exact = z >= least
    if not exact and release.bound is not None:  # the grid may be finer beside this bound
        exact = sums_are_exact(MOST_SUMMANDS * release.bound, grid(z * sensitivity * release.bound))
    require(exact or z == 0, PrivacyError,
            f"noise multiplier {z:.3g} of stage '{release.stage}' found, expected at least "
            f"{least:.3g}: with less, sums and noise are not exact; raise "
            "privacy.noise_multiplier, or lower privacy.epsilon")


def _epsilon(releases: Sequence[PlannedRelease], role: str, delta: float) -> float:
    """Epsilon of one role after all releases."""
    events: Counter[Event] = Counter()
    for release in releases:
        if role in release.roles:
            events += release.events
    return epsilon(events, delta)


def _multipliers(config: PrivacyConfig, schedules: Sequence[ReleaseSchedule]) -> list[float]:
    """The noise multiplier of every stage."""
    if config.noise_multiplier is not None:
        return [config.noise_multiplier] * len(schedules)
    target, delta = config.epsilon, config.delta
    if target is None or delta is None:
        raise PrivacyError("privacy has neither epsilon nor noise_multiplier; set one of them")
    votes = next((s for s in schedules if s.stage == "synthesis"), None)
    updates = next((s for s in schedules if s.stage == "train"), None)
    search = next((s for s in schedules if s.stage == "search"), None)
    if search is not None:
        return _searched_multipliers(config, schedules)
    if votes is not None and updates is not None and {*votes.roles} & {*updates.roles}:
        # a client that votes and trains pays for both out of one budget
        require(votes.sampling_rate == 1.0 and votes.steps == 1, PrivacyError,
                "votes with sampling or several noised steps a round found, which is not "
                "accounted; let every client vote")
        split = split_budget(target, delta, votes.rounds, updates.participations,
                             config.vote_fraction)
        if updates.sampling_rate == 1.0 and updates.steps == 1:
            return _scaled(split, schedules, target, delta)
        paid = votes.all_events(split[0])
        return [split[0], _calibrated(updates, target, delta, paid)]
    return [_calibrated(schedule, target, delta) for schedule in schedules]


def _searched_multipliers(config: PrivacyConfig,
                          schedules: Sequence[ReleaseSchedule]) -> list[float]:
    """The noise multiplier of every stage where the clients that train also search for the step:
    they pay for updates, searches, and, where they vote too, votes out of one budget, each its
    share of mu^2.

    Raises:
        PrivacyError: clients are sampled, which is not accounted together with a search.
    """
    target, delta = config.epsilon, config.delta
    assert target is not None
    assert delta is not None
    sampled = [s.stage for s in schedules if s.sampling_rate != 1.0 or s.steps != 1]
    require(not sampled, PrivacyError,
            f"stage '{''.join(sampled[:1])}' samples its units, which is not accounted together "
            "with a line search; set algorithm.server = 'plain'")
    searchers = {*next(s for s in schedules if s.stage == "search").roles}
    vote = next((s for s in schedules if s.stage == "synthesis" and {*s.roles} & searchers), None)
    voting = config.vote_fraction if vote is not None else 0.0
    shares = {"synthesis": voting, "train": (1 - voting) * (1 - config.search_fraction),
              "search": (1 - voting) * config.search_fraction}
    single = calibrate(target, delta, 1)
    found = {s.stage: single * math.sqrt(s.rounds / shares[s.stage]) for s in schedules
             if s.stage != "synthesis" or s is vote}
    paid = sum((s.all_events(found[s.stage]) for s in schedules
                if s.stage in found and s.stage != "train"), Counter[Event]())
    updates = next(s for s in schedules if s.stage == "train")
    whole = paid + updates.all_events(found["train"])
    if epsilon(whole, delta) > target:  # a mechanism that costs more than the Gaussian
        found["train"] = _calibrated(updates, target, delta, paid)
    return [found[s.stage] if s.stage in found else _calibrated(s, target, delta)
            for s in schedules]


def _scaled(split: tuple[float, float], schedules: Sequence[ReleaseSchedule], target: float,
            delta: float) -> list[float]:
    """The multipliers of votes and updates, both by one factor larger where their mechanisms cost
    more than Gaussians."""
    def events(factor: float) -> Counter[Event]:
        return sum((schedule.all_events(factor * multiplier)
                    for schedule, multiplier in zip(schedules, split, strict=True)),
                   Counter[Event]())

    if epsilon(events(1.0), delta) <= target:
        return list(split)
    factor = calibrate_events(target, delta, events, 1.0)
    return [factor * multiplier for multiplier in split]


def _calibrated(schedule: ReleaseSchedule, target: float, delta: float,
                paid: Counter[Event] | None = None) -> float:
    """The noise multiplier with which all rounds of a stage stay within the target, together with
    what the same client pays elsewhere.

    Args:
        schedule: of the stage.
        target: epsilon of all.
        delta: of that epsilon.
        paid: events elsewhere.

    Raises:
        PrivacyError: no noise is enough.
    """
    def events(multiplier: float) -> Counter[Event]:
        return schedule.all_events(multiplier) + (paid or Counter())

    gaussian = calibrate(target, delta, schedule.participations * schedule.steps,
                         schedule.sampling_rate)
    if epsilon(events(gaussian), delta) <= target:
        return gaussian
    # Something is paid elsewhere, or the mechanism costs more than the Gaussian of its multiplier.
    try:
        return calibrate_events(target, delta, events, gaussian)
    except PrivacyError as error:
        raise PrivacyError(f"stage '{schedule.stage}' with mechanism '{schedule.mechanism}': "
                           f"{error}") from error
