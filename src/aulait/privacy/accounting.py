"""How much privacy is spent: events, epsilon of many events, noise for a target, one account per
role.

All numbers are for one client with all its records, or for one record where ``unit`` says so. A
noise multiplier z is sigma divided by the sensitivity, which already holds the factor 2 of the
relation "replace"; so everything here is the same for both units and relations. Poisson sampling is
accounted for "add-remove" and "zero-out" only (the aggregator refuses "replace"): the unit is in
one of two neighbours, and both directions are composed.

Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, for
full participation; ``aulait.privacy.privacy_loss`` for Poisson sampling.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from aulait.core.errors import PrivacyError, require
from aulait.privacy.privacy_loss import SampledGaussian, composed_epsilon, gaussian_epsilon
from aulait.privacy.sampled_renyi import renyi_epsilon

_MOST_STEPS = 10**12  # of all releases together
_LEAST_DELTA = 1e-300
_FINE = 1.0 + 8e-4  # a calibrated multiplier over one that does not meet the target


@dataclass(frozen=True)
class Event:
    """One release as it is accounted for a client (or record) that may take part in it.

    Attributes:
        noise_multiplier: sigma divided by the sensitivity, finite, at least 0; 0 is no privacy.
        sampling_rate: probability in (0, 1] with which it takes part (Poisson); 1 is full
            participation.
        steps: how many such mechanisms the release holds, one after the other, each with its own
            sampling; at least 1.
        concentrated: whether no more is known of it than that its Rényi divergences are at most
            those of the Gaussian; without sampling it is then 1/(2 z²)-concentrated differentially
            private.
        turn: number of the one fixed cohort whose clients take part, where cohorts take turns: no
            client is in two of them. None: whoever has the account takes part.
        most: in how many releases of this very kind a client takes part at most, however many
            there are; None: in all of them.

    Raises:
        PrivacyError: a number is outside its range.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1
    concentrated: bool = False
    turn: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        z, rate = self.noise_multiplier, self.sampling_rate
        require(0 <= z < math.inf, PrivacyError,
                f"noise multiplier is {z}, expected finite and >= 0; correct it")
        require(0 < rate <= 1, PrivacyError,
                f"sampling rate is {rate}, expected a number in (0, 1]; correct it")
        require(self.steps >= 1, PrivacyError,
                f"{self.steps} steps in a release, expected at least 1; correct it")
        require(self.turn is None or rate == 1, PrivacyError,
                f"sampling rate {rate} of a release of one cohort found, expected 1: its members "
                "are public")
        require(self.most is None or (self.most >= 1 and rate == 1 and self.turn is None),
                PrivacyError,
                f"at most {self.most} participations at sampling rate {rate} and turn {self.turn} "
                "found, expected at least 1, without sampling or turns; correct it")


def epsilon(events: Iterable[Event] | Mapping[Event, int], delta: float) -> float:
    """The smallest epsilon for which all events together, in any order, are (epsilon,
    delta)-private; where fixed cohorts take turns, for the client that pays most.

    Exact with full participation (one Gaussian, 1/z^2 summed over events); an upper bound where one
    of them is accounted by Rényi divergences, which is some percent more; with Poisson sampling an
    upper bound, about one percent above the smallest; docs/decisions/0014-accounting.md says where
    it is more. Time and memory are bounded, however many events.

    Args:
        events: one by one, or event -> how often.
        delta: in (0, 1).

    Returns:
        Epsilon, at least 0; 0 without events, inf when an event has no noise.

    Raises:
        PrivacyError: delta is outside (0, 1) or below 1e-300, or there are more than 10^12 steps.
    """
    return _epsilon(_grouped(Counter(events)), _delta(delta))


def calibrate(target: float, delta: float, releases: int, sampling_rate: float = 1.0,
              beside: Mapping[Event, int] | None = None) -> float:
    """The smallest noise multiplier with which ``releases`` equal releases stay within ``target``.

    Args:
        target: epsilon, finite and > 0.
        delta: in (0, 1).
        releases: how many, at least 1.
        sampling_rate: probability of taking part, in (0, 1].
        beside: what the same unit pays for besides, event -> how often.

    Returns:
        z with ``epsilon`` of all together at most the target; with sampling up to 0.1 % too large.

    Raises:
        PrivacyError: an argument is outside its range, or ``beside`` leaves nothing of the target.
    """
    require(releases >= 1, PrivacyError,
            f"{releases} releases to calibrate, expected at least 1; check the rounds")
    single, others = _single(target, delta), Counter(beside or {})
    if not others and sampling_rate == 1.0:
        return math.sqrt(releases) * single
    require(epsilon(others, delta) < target, PrivacyError,
            f"epsilon {epsilon(others, delta):.6g} is spent beside what is calibrated, expected "
            f"less than the target {target:g}; give a larger privacy.epsilon")
    return calibrate_events(
        target, delta, lambda z: Counter({Event(z, sampling_rate): releases}) + others,
        math.sqrt(releases) * single)


def calibrate_events(target: float, delta: float, events: Callable[[float], Counter[Event]],
                     start: float) -> float:
    """The smallest noise multiplier with which ``events`` of it stay within ``target``, at most
    0.1 % too large.

    Args:
        target: epsilon, finite and > 0.
        delta: in (0, 1).
        events: what a noise multiplier pays for; more noise costs less.
        start: a first guess.

    Raises:
        PrivacyError: no multiplier up to a million times the guess meets the target.
    """
    def cost(z: float, rough: bool) -> float:
        return _epsilon(_grouped(events(z)), _delta(delta), rough)

    def meets(z: float) -> bool:
        return cost(z, False) <= target

    low, high = _bracket(lambda z: cost(z, True) <= target, start)
    while high / low > 1.003:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle, True) <= target else (middle, high)
    low, high = _bracket(meets, _newton(cost, high, target), 1.0006)
    while high / low > _FINE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _newton(cost: Callable[[float, bool], float], start: float, target: float) -> float:
    """About the multiplier that costs the target, by secants in logarithms."""
    def excess(at: float, rough: bool = False) -> float:
        return math.log(max(cost(math.exp(at), rough), 1e-300) / target)

    at = math.log(start)
    slope = min((excess(at + 0.05, True) - excess(at, True)) / 0.05, -0.1)
    found = excess(at)
    for _ in range(5):
        step = min(max(-found / slope, -0.5), 0.5)
        if abs(step) < 2e-4:
            break
        after = excess(at + step)
        slope = min((after - found) / step, -0.1)
        at, found = at + step, after
    return math.exp(at)


def _bracket(meets: Callable[[float], bool], start: float,
             factor: float = 2.0) -> tuple[float, float]:
    """Two multipliers around the smallest that meets: the first does not, the second does."""
    if meets(start):
        low = high = start
        while meets(low):
            low, high, factor = low / factor, low, factor**1.5
        return low, high
    low = high = start
    while not meets(high):
        require(high < 1e6 * start, PrivacyError, "no noise meets the target epsilon, up to "
                f"multiplier {high:.3g}; give a larger privacy.epsilon, or another mechanism")
        low, high, factor = high, high * factor, factor**1.5
    return low, high


def split_budget(target: float, delta: float, votes: int, updates: int,
                 vote_fraction: float) -> tuple[float, float]:
    """Noise multipliers for a client that votes and also trains, with full participation.

    Args:
        target: epsilon of both together, finite and > 0.
        delta: in (0, 1).
        votes: releases of votes, at least 0.
        updates: releases of updates, at least 0; not both 0.
        vote_fraction: share of mu^2 given to the votes, in (0, 1); without one of them the other
            gets all.

    Returns:
        (z of a vote, z of an update); inf for what does not happen, so that it can never be
        released by mistake.

    Raises:
        PrivacyError: an argument is outside its range.
    """
    sound = min(votes, updates) >= 0 and votes + updates > 0 and 0 < vote_fraction < 1
    require(sound, PrivacyError,
            f"{votes} votes and {updates} updates at fraction {vote_fraction}, expected >= 1 "
            "release and fraction in (0, 1); check the rounds and privacy.vote_fraction")
    share = 1.0 if updates == 0 else 0.0 if votes == 0 else vote_fraction
    single = _single(target, delta)
    z_vote = single * math.sqrt(votes / share) if votes else math.inf
    z_update = single * math.sqrt(updates / (1.0 - share)) if updates else math.inf
    return z_vote, z_update


class Accountant:
    """What every role has spent and may spend.

    Roles are sets of clients without a common member ("proxy", "local", "split"), fixed by public
    facts; each has its own account. A release that touches clients of several roles ("proxy+local")
    is charged to each of them.

    Args:
        delta: in (0, 1).
        budget: role -> largest epsilon it may spend; inf for no limit.

    Raises:
        PrivacyError: delta is outside (0, 1), or a budget is negative or not a number.
    """

    def __init__(self, delta: float, budget: Mapping[str, float]) -> None:
        self.delta = _delta(delta)
        self.budget = dict(budget)
        for role, limit in self.budget.items():
            require(limit >= 0 and "+" not in role, PrivacyError,
                    f"budget of role '{role}' is {limit}, expected one role and a number >= 0; "
                    "check privacy.epsilon")
        self._events: dict[str, Counter[Event]] = {role: Counter() for role in self.budget}

    def roles(self, role: str) -> tuple[str, ...]:
        """The single roles in "proxy+local", sorted.

        Raises:
            PrivacyError: one of them has no account.
        """
        known = ", ".join(sorted(self.budget))
        for part in role.split("+"):
            require(part in self.budget, PrivacyError, f"role '{part}' has no privacy account, "
                    f"expected one of: {known}; give it a budget")
        return tuple(sorted(set(role.split("+"))))

    def events(self, role: str) -> Counter[Event]:
        """How often each event was charged to one role."""
        return Counter(self._events[role])

    def spent(self, role: str) -> float:
        """Epsilon of one role so far."""
        return _epsilon(_grouped(self._events[role]), self.delta)

    def would_spend(self, role: str, event: Event) -> float:
        """Epsilon of one role if the event were added; nothing is charged."""
        return _epsilon(_grouped(self._events[role] + Counter([event])), self.delta)

    def add(self, roles: str | Iterable[str], event: Event) -> None:
        """Charge the event to every role named ("proxy", "proxy+local" or several names)."""
        for role in self.roles(roles if isinstance(roles, str) else "+".join(roles)):
            self._events[role][event] += 1


def of_worst_turn(events: Mapping[Event, int]) -> Counter[Event]:
    """What the client pays that pays most: everybody's events, of those that bound how often a
    client takes part so many, and those of the fixed cohort with the least noise. Of Gaussians of
    full participation the one with the largest sum of 1/z² is the worst, whatever else is paid.

    Args:
        events: of one role, event -> how often.

    Returns:
        Event -> how often, none of them of a cohort or bounded.
    """
    common: Counter[Event] = Counter()
    turns: dict[int, Counter[Event]] = {}
    for event, count in events.items():
        own = common if event.turn is None else turns.setdefault(event.turn, Counter())
        own[replace(event, turn=None, most=None)] += min(count, event.most or count)
    return common + max((turns[turn] for turn in sorted(turns)), key=_cost, default=Counter())


def _cost(events: Counter[Event]) -> float:
    """The sum of 1/z²."""
    return math.fsum(count * event.steps / event.noise_multiplier**2 if event.noise_multiplier
                     else math.inf for event, count in events.items())


_Groups = tuple[tuple[float, float, bool, int], ...]


def _grouped(events: Counter[Event]) -> _Groups:
    """(z, sampling rate, whether concentrated, count) of the client that pays most, sorted: the
    same events always give the same sums, hence the same epsilon."""
    total: Counter[tuple[float, float, bool]] = Counter()
    for event, count in of_worst_turn(events).items():
        total[event.noise_multiplier, event.sampling_rate,
              event.concentrated] += count * event.steps
    return tuple(sorted((*key, count) for key, count in total.items()))


@lru_cache(maxsize=4096)
def _epsilon(groups: _Groups, delta: float, rough: bool = False) -> float:
    steps = sum(count for *_, count in groups)
    require(steps <= _MOST_STEPS, PrivacyError,
            f"{steps} noised steps to account, expected at most {_MOST_STEPS:.0e}; check the "
            "rounds")
    if any(concentrated for _, _, concentrated, _ in groups):
        if any(rate < 1.0 for _, rate, _, _ in groups):
            return renyi_epsilon([(z, rate, count) for z, rate, _, count in groups], delta)
        return concentrated_epsilon(
            math.fsum(count / (2.0 * z * z) if z else math.inf for z, _, _, count in groups),
            delta)
    return composed_epsilon([SampledGaussian(z, rate, count) for z, rate, _, count in groups],
                            delta, rough)


def concentrated_epsilon(rho: float, delta: float) -> float:
    """The smallest epsilon that rho-concentrated differential privacy proves by its Rényi
    divergences.

    The smallest over orders a > 1 of a rho + (log(1/delta) + (a-1) log(1 - 1/a) - log a) / (a-1).
    Source: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS
    2020, Proposition 12.

    Args:
        rho: at least 0; inf is no noise.
        delta: in (0, 1).
    """
    if not 0.0 < rho < math.inf:
        return rho
    last: float = 0.0
    logs = np.linspace(-30.0, 60.0, 181)  # of a - 1
    for _ in range(8):
        less = np.exp(logs)
        order = 1.0 + less
        found = order * rho + (
            -math.log(delta) + less * (logs - np.log1p(less)) - np.log1p(less)) / less
        best = int(np.argmin(found))
        last = float(found[best])
        logs = np.linspace(logs[max(best - 1, 0)], logs[min(best + 1, len(logs) - 1)], 41)
    return max(0.0, last)


def _single(target: float, delta: float) -> float:
    """The noise multiplier of a single full release that meets the target with a little to spare
    for rounding."""
    text = f"target epsilon is {target}, expected a finite number > 0; set privacy.epsilon"
    require(0 < target < math.inf, PrivacyError, text)
    if 1e-6 <= target <= 1e6 and _delta(delta) >= 1e-30:
        import dp_accounting  # takes a second, and most commands do not need it

        with np.errstate(all="ignore"):
            z = float(dp_accounting.get_sigma_gaussian(target, delta)) * (1.0 + 1e-9)
        if z > 0.0 and gaussian_epsilon(1.0 / (z * (1.0 - 1e-12)), delta) <= target:
            return z
    low, high = -400.0, 400.0  # log of 1/z, where dp-accounting's absolute tolerance is too coarse
    for _ in range(100):
        middle = (low + high) / 2.0
        met = gaussian_epsilon(math.exp(middle), _delta(delta)) <= target
        low, high = (middle, high) if met else (low, middle)
    return math.exp(-low) * (1.0 + 1e-9)


def _delta(delta: float) -> float:
    require(_LEAST_DELTA <= delta < 1, PrivacyError,
            f"delta is {delta}, expected a number between 0 and 1, at least {_LEAST_DELTA}; set "
            "privacy.delta")
    return delta
