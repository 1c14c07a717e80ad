"""Who takes part in a round."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from aulait.core.cohort_turn import CohortTurn
from aulait.core.seeds import Seeds


@dataclass(frozen=True)
class Buffer:
    """A round of the asynchronous schedule: who begins in it, and whose updates fill its buffer.

    Attributes:
        beginning: clients that begin in it, from the factors as they are before it.
        filling: client -> rounds that have ended since it began; its update is one of those that
            fill the buffer.
        exponent: a; an update of that age counts (1 + age)^-a.
        most: updates of any one client in the whole run, at most.
    """

    beginning: frozenset[str]
    filling: Mapping[str, int]
    exponent: float
    most: int

    @property
    def discounts(self) -> dict[str, float]:
        """Client -> by how much its update counts less for its age; all of it public."""
        return {name: (1.0 + age) ** -self.exponent for name, age in self.filling.items()}


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The sites of a round and the public numbers of their release.

    Attributes:
        round: counted from 1.
        local: names of the clients asked to work on their own data.
        proxies: name of a proxy -> the number of clients it stands for (0 for a proxy that only
            calibrates).
        planned: the public number of clients that the sum over ``local`` was planned for.
        sampling_rate: probability with which each client of the role was drawn; 1 for everyone.
        noise_multiplier: noise over sensitivity of this round's release; 0 without privacy.
        search_noise_multiplier: that of the release of the round's line search; 0 without privacy,
            infinite where none is planned.
        lr: learning rate of the local steps.
        role: the role whose budget the release spends.
        population: names of all clients of the role, public; empty where everyone has the adapter's
            rank.
        step: what a released sum of gradients is multiplied by to be a sum of the clients' moves;
            None where they send how they moved.
        turn: of the fixed cohort that these clients are; None where there are none.
        buffer: whose updates count in this round, where clients work at their own pace; None where
            all that are asked answer in it.
    """

    round: int
    local: tuple[str, ...]
    proxies: Mapping[str, float]
    planned: int
    sampling_rate: float = 1.0
    noise_multiplier: float = 0.0
    search_noise_multiplier: float = 0.0
    lr: float = 1e-3
    role: str = "local"
    population: tuple[str, ...] = ()
    turn: CohortTurn | None = None
    step: float | None = None
    buffer: Buffer | None = None

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the clients that are sent something in this round."""
        if self.buffer is None:
            return self.local
        return tuple(name for name in self.local if name in self.buffer.beginning)

    @property
    def everyone(self) -> tuple[str, ...]:
        """Names of all sites that work in this round: local clients first, then proxies."""
        return (*self.local, *(name for name in self.proxies if name not in self.local))


def everyone(names: Sequence[str]) -> tuple[str, ...]:
    """All of them, sorted."""
    return tuple(sorted(names))


def poisson_sample(names: Sequence[str], rate: float, seeds: Seeds, round: int,
                   secret: bool) -> tuple[str, ...]:
    """Each client on its own with probability ``rate``.

    Args:
        names: the population.
        rate: in (0, 1].
        seeds: used when ``secret`` is false.
        round: counted from 1.
        secret: draw from the operating system's entropy, as privacy amplification by sampling
            demands: whoever knew the seed would know who took part.
    """
    if secret:  # not torch: its generator keeps 32 bits of a seed, which can be tried out
        system = random.SystemRandom()
        draw = [system.random() for _ in names]
    else:
        draw = torch.rand(len(names), generator=seeds.generator("cohort", round),
                          dtype=torch.float64).tolist()
    return tuple(name for name, value in zip(sorted(names), draw, strict=True) if value < rate)


def cohort_of_turn(names: Sequence[str], turn: CohortTurn, seeds: Seeds) -> tuple[str, ...]:
    """The members of one of the fixed cohorts, sorted: all names are dealt once, by the run's seed,
    and stay where they are."""
    ordered = sorted(names)
    shuffled = torch.randperm(len(ordered), generator=seeds.generator("turns")).tolist()
    return tuple(sorted(ordered[i] for i in shuffled[turn.number :: turn.cohorts]))


def fixed_sample(names: Sequence[str], count: int, seeds: Seeds, round: int) -> tuple[str, ...]:
    """``count`` of the names without replacement, by the run's seed, sorted."""
    ordered = sorted(names)
    shuffled = torch.randperm(len(ordered), generator=seeds.generator("cohort", round)).tolist()
    return tuple(sorted(ordered[i] for i in shuffled[:count]))
