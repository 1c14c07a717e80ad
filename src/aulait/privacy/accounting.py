"""How much privacy is spent: events, epsilon of many events, noise for a target, one account per
role.

All numbers are for one client with all its records, or for one record where ``unit`` says so. A
noise multiplier z is sigma divided by the sensitivity, which already holds the factor 2 of the
relation "replace"; so everything here is the same for both units and relations. Poisson sampling is
accounted for "add-remove" only (the aggregator refuses the other).

Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, for
full participation; privacy loss distributions for Poisson sampling.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from aulait.core.errors import PrivacyError, require

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution


@dataclass(frozen=True)
class Event:
    """One release as it is accounted for a client (or record) that may take part in it.

    Attributes:
        noise_multiplier: sigma divided by the sensitivity, finite, at least 0; 0 is no privacy.
        sampling_rate: probability in (0, 1] with which it takes part (Poisson); 1 is full
            participation.
        steps: how many such mechanisms the release holds, one after the other, each with its own
            sampling; at least 1.

    Raises:
        PrivacyError: a number is outside its range.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        z, rate = self.noise_multiplier, self.sampling_rate
        require(0 <= z < math.inf, PrivacyError,
                f"noise multiplier is {z}, expected finite and >= 0; correct it")
        require(0 < rate <= 1, PrivacyError,
                f"sampling rate is {rate}, expected a number in (0, 1]; correct it")
        require(self.steps >= 1, PrivacyError,
                f"{self.steps} steps in a release, expected at least 1; correct it")


def epsilon(events: Iterable[Event] | Mapping[Event, int], delta: float) -> float:
    """The smallest epsilon for which all events together, in any order, are (epsilon,
    delta)-private.

    Exact with full participation (one Gaussian, 1/z^2 summed over events); with Poisson sampling an
    upper bound on a fine grid, for "add-remove".

    Args:
        events: one by one, or event -> how often.
        delta: in (0, 1).

    Returns:
        Epsilon, at least 0; 0 without events, inf when an event has no noise.
    """
    return _epsilon(_grouped(Counter(events)), _delta(delta))


def calibrate(target: float, delta: float, releases: int, sampling_rate: float = 1.0) -> float:
    """The smallest noise multiplier with which ``releases`` equal releases stay within ``target``.

    Args:
        target: epsilon, finite and > 0.
        delta: in (0, 1).
        releases: how many, at least 1.
        sampling_rate: probability of taking part, in (0, 1].

    Returns:
        z with ``epsilon([Event(z, sampling_rate)] * releases, delta) <= target``; with sampling up
        to 0.1 % too large.

    Raises:
        PrivacyError: an argument is outside its range.
    """
    require(releases >= 1, PrivacyError,
            f"{releases} releases to calibrate, expected at least 1; check the rounds")
    enough = math.sqrt(releases) * _single(target, delta)
    if sampling_rate == 1.0:
        return enough

    def meets(z: float) -> bool:
        return epsilon([Event(z, sampling_rate)] * releases, delta) <= target

    while not meets(enough):  # sampling never needs more noise; only the grid's rounding up can
        enough *= 1.01
    less = enough / 2
    while meets(less):
        enough, less = less, less / 2
    while enough / less > 1.001:  # ``enough`` always meets the target, ``less`` never does
        middle = math.sqrt(enough * less)
        enough, less = (middle, less) if meets(middle) else (enough, middle)
    return enough


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


_Groups = tuple[tuple[float, float, int], ...]


def _grouped(events: Counter[Event]) -> _Groups:
    """(z, sampling rate, count), sorted: the same events always give the same sums, hence the same
    epsilon."""
    total: Counter[tuple[float, float]] = Counter()
    for event, count in events.items():
        total[event.noise_multiplier, event.sampling_rate] += count * event.steps
    return tuple(sorted((z, rate, count) for (z, rate), count in total.items()))


@lru_cache(maxsize=4096)
def _epsilon(groups: _Groups, delta: float) -> float:
    if not groups:
        return 0.0
    mu = math.hypot(*(math.sqrt(count) / z if z else math.inf for z, _, count in groups))
    if mu > 1e4:  # epsilon above 5e7 is no privacy
        return math.inf
    if all(rate == 1.0 for _, rate, _ in groups):
        import dp_accounting  # takes a second, and most commands do not need it

        return float(dp_accounting.get_epsilon_gaussian(1.0 / mu, delta))
    # Fine against the spread of one sampled loss, yet not too many points for its range; rounding
    # on it is upwards.
    spread = min(rate / z for z, rate, _ in groups)
    grid = max(1e-4, 2e-3 * spread, 5e-6 * max(0.5 / z**2 + 8.0 / z for z, _, _ in groups))
    parts = [_loss(z, rate, grid).self_compose(count) for z, rate, count in groups]
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _loss(z: float, rate: float, grid: float) -> PrivacyLossDistribution:
    """Privacy loss distribution of one release, rounded so that epsilon is never too small."""
    from dp_accounting.pld import privacy_loss_distribution as losses  # takes a second

    return losses.from_gaussian_mechanism(z, sampling_prob=rate, value_discretization_interval=grid)


def _single(target: float, delta: float) -> float:
    """The noise multiplier of a single full release that meets the target with a little to spare
    for rounding."""
    text = f"target epsilon is {target}, expected a finite number > 0; set privacy.epsilon"
    require(0 < target < math.inf, PrivacyError, text)
    import dp_accounting  # takes a second, and most commands do not need it

    z = float(dp_accounting.get_sigma_gaussian(target, _delta(delta))) * (1.0 + 1e-9)
    while dp_accounting.get_epsilon_gaussian(z * (1.0 - 1e-12), delta) > target:
        z *= 1.0 + 1e-9
    return z


def _delta(delta: float) -> float:
    require(0 < delta < 1, PrivacyError,
            f"delta is {delta}, expected a number between 0 and 1; set privacy.delta")
    return delta
