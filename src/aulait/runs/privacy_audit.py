"""An audit of this installation's releases as a run makes them: canary units go in by fair coins,
through the aggregator or a site's own noise, and an attacker says from what comes out which were
in.

Every canary moves a direction of its own: of a sum a coordinate, of votes candidates that nobody
else is near to. It sends far more than its bound allows, so that an audit sees clipping too. The
attacker knows everything but the coins and the noise, and sums each canary's direction over all
rounds, weighed by likelihood. What is proven must stay below what is claimed
(``aulait.privacy.audit_bounds``). Nothing is read but the releases' numbers: no model, no data. So
the audit is of code and noise, not of one run's luck, and what a run has released is not looked at.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from aulait.core.cohort_turn import CohortTurn
from aulait.core.factors import Trainable
from aulait.core.files import JsonObject
from aulait.core.types import Adapter, ClientUpdate, Plan, Record, Site, VoteRequest
from aulait.privacy.accounting import Accountant, epsilon
from aulait.privacy.aggregator import KnownSites, PrivateAggregator, Release
from aulait.privacy.audit_bounds import one_run_epsilon, proven_mu
from aulait.privacy.banded import Banded
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.mechanisms import find_mechanism
from aulait.privacy.noise import SystemNoise
from aulait.privacy.plan import PlannedRelease
from aulait.privacy.record_level import PRIVATE, VOTES, SiteNoise
from aulait.privacy.secure.local_round import begin_round
from aulait.synthesis.embedding import votes
from aulait.synthesis.unit_votes import noised_votes
from aulait.training.record_gradients import PrivateTraining, batches, noised_steps
from aulait.training.unit_sums import clipped_units

TOGETHER: Final = 64  # canaries of one federation
FULL, QUICK = 32_768, 4096
STEPS: Final = "dp-sgd"
# steps of DP-SGD in all federations of an audit, and the fewest federations whatever that takes
_MOST_STEPS, _FEWEST = 60_000, 16
# of the bound on epsilon, which is modest, and of that on mu, which is close to the truth
CONFIDENCE, CONFIDENCE_MU = 0.99, 0.9999
_RECORDS: Final = 4  # of a canary client, all of which vote alike
_SECRET: Final = random.SystemRandom()
_LOUD: Final = 1e6  # how much longer than its bound a canary's update is


@dataclass(frozen=True)
class Audited:
    """What the audit of one stage's releases found.

    Attributes:
        release: the stage.
        canaries: how many.
        right: share of them about which the attacker is right.
        proven_epsilon: at least this much is spent, whatever canaries do to one another.
        claimed_epsilon: by the plan, at its delta.
        proven_mu: at least this, as canaries do not disturb one another; None with sampling.
        claimed_mu: of full participation; None with sampling.
    """

    release: PlannedRelease
    canaries: int
    right: float
    proven_epsilon: float
    claimed_epsilon: float
    proven_mu: float | None
    claimed_mu: float | None

    @property
    def holds(self) -> bool:
        """Whether nothing was proven beyond the claim."""
        return self.proven_epsilon <= self.claimed_epsilon and (
            self.proven_mu is None or self.claimed_mu is None
            or self.proven_mu <= self.claimed_mu)

    def as_dict(self) -> JsonObject:
        """For one JSON document."""
        return {"stage": self.release.stage, "role": self.release.role,
                "mechanism": self.release.mechanism, "rounds": self.release.rounds,
                **{key: value for key, value in vars(self).items() if key != "release"},
                "holds": self.holds}


def audit(config: PrivacyConfig, release: PlannedRelease, canaries: int,
          note: Callable[[int, int], None] = lambda done, whole: None) -> Audited | None:
    """Attack the releases of one stage.

    Args:
        config: the promise.
        release: what every round of the stage releases.
        canaries: how many; under secure aggregation, which costs more, one of 64.
        note: told how many are done, of how many.

    Returns:
        What was found; None where a site clips whole batches, which no unit is told from, and where
        sites mask the sum of their units, for which no attack is built.
    """
    attack = _attack(config, release)
    if attack is None:
        return None
    scores: list[float] = []
    coins: list[bool] = []
    federations = max(1, (canaries // 64 if config.secure else canaries) // TOGETHER)
    if release.mechanism == STEPS:
        steps = release.rounds * release.steps
        federations = min(federations, max(_FEWEST, _MOST_STEPS // steps))
    for done in range(federations):
        note(done, federations)
        there = [bool(_SECRET.getrandbits(1)) for _ in range(TOGETHER)]
        scores += attack(there).tolist()
        coins += there
    assert config.delta is not None  # a promise has one
    full = release.sampling_rate == 1.0
    mu = (math.sqrt(release.participations * release.steps) / release.noise_multiplier if full
          else None)
    middle = (mu or 0.0) / 2.0
    guessed = sum((score > middle) == coin for score, coin in zip(scores, coins, strict=True))
    return Audited(
        release, len(scores), guessed / len(scores),
        one_run_epsilon(scores, coins, config.delta, CONFIDENCE),
        epsilon(Counter(release.events), config.delta),
        proven_mu(scores, coins, (middle - 1.0, middle, middle + 1.0), CONFIDENCE_MU) if full
        else None, mu)


def _attack(config: PrivacyConfig,
            release: PlannedRelease) -> Callable[[Sequence[bool]], Tensor] | None:
    """Coins of the canaries of one federation -> their scores over all rounds; standard normal for
    absent ones where everybody takes part."""
    if release.mechanism == STEPS:
        return lambda there: _steps_of_a_site(release, there)
    if config.unit == "record":
        return (lambda there: _votes_of_a_site(config, release, there)) if (
            release.mechanism == VOTES) else None
    return lambda there: _sums_over_clients(config, release, there)


def _sums_over_clients(config: PrivacyConfig, release: PlannedRelease,
                       there: Sequence[bool]) -> Tensor:
    """Scores of canary clients whose sum the aggregator releases."""
    z, rate, bound = release.noise_multiplier, release.sampling_rate, release.bound or 1.0
    template = {"votes": torch.zeros(len(there))}
    names = tuple(f"canary-{k}" for k in range(len(there)))
    # under secure aggregation as many more drop out as may, so that the noise is the least
    gone = math.floor(len(there) / (1.0 - config.dropouts)) - len(there) if config.secure else 0
    asked = (*names, *(f"gone-{k}" for k in range(gone)))
    told = config.model_copy(update={"epsilon": None, "noise_multiplier": z, "noise_seed": None,
                                     "clip": bound, "clip_scale": 1.0})
    assert config.delta is not None
    accountant = Accountant(config.delta, dict.fromkeys(release.roles, math.inf))
    through = PrivateAggregator(told, Ledger(None), accountant, SystemNoise(),
                                KnownSites(secure_sum=begin_round))
    seen: list[Tensor] = []
    for round in range(1, release.rounds + 1):
        turn = CohortTurn.of_round(round, release.cohorts)  # all canaries are of the first cohort
        # of a schedule that bounds how often a client takes part, they fill the first buffers
        away = bool(turn and turn.number) or round > (release.most or release.rounds)
        drawn = [(rate == 1.0 or _SECRET.random() < rate) and not away for _ in there]
        sent = [ClientUpdate(name, {"votes": vector})
                for k, name in enumerate(names)
                if drawn[k] and (vector := _sent(config, release, there[k], k, len(there)))
                is not None]
        out = through.release(sent, Release(
            stage=release.stage, round=round, role=release.role, bound=bound, noise_multiplier=z,
            planned=len(asked), template=template, sampling_rate=rate, clients=asked, turn=turn,
            most=release.most))
        shown = out.total["votes"].double() / bound
        if config.relation == "replace":
            shown = shown / 2.0 + (0.0 if away else 0.5)
        seen.append(shown)
    if rate == 1.0:
        return _matched(torch.stack(seen), release)
    return sum((_likelihood(shown, z, rate) for shown in seen), torch.zeros(len(there)).double())


def _sent(config: PrivacyConfig, release: PlannedRelease, there: bool, place: int,
          count: int) -> Tensor | None:
    """What a client sends; None where it is not in the federation."""
    axis = _axis(release.stage, place, count) * (_LOUD * (release.bound or 1.0))
    if there:
        return axis
    if config.relation == "replace":
        return -axis
    return torch.zeros(count) if config.relation == "zero-out" else None


@lru_cache(maxsize=2 * TOGETHER)
def _axis(stage: str, place: int, count: int) -> Tensor:
    """The direction of a canary client."""
    axes = torch.eye(count)
    if stage == "synthesis":  # records that all vote for one candidate, by the real count
        return votes(axes[[place] * _RECORDS], axes, 1)
    return axes[place]


def _likelihood(seen: Tensor, z: float, rate: float) -> Tensor:
    """The log-likelihood ratio of N(1, z²) with this probability, else N(0, z²), to N(0, z²)."""
    ratio = (2.0 * seen - 1.0) / (2.0 * z * z)
    return torch.log1p(rate * torch.expm1(ratio.clamp(max=600.0)))


def _matched(seen: Tensor, release: PlannedRelease) -> Tensor:
    """Scores that are standard normal for absent canaries: what was seen, freed of what the noise
    remembers, in the rounds where a present one shows, weighed by how much it shows.

    Args:
        seen: rounds × canaries; a present canary adds 1 in each round of the first cohort, of a
            schedule in as many as it may.
        release: says what the noise remembers.
    """
    mechanism, rounds = find_mechanism(release.mechanism), release.rounds
    weights: tuple[float, ...] = (1.0,)
    length = 1.0
    if isinstance(mechanism, Banded):
        weights, length = mechanism.coefficients, mechanism.length
    shows = torch.zeros(rounds, dtype=torch.float64)
    shows[: release.most or rounds : release.cohorts] = 1.0
    fresh, pattern = torch.zeros_like(seen), torch.zeros_like(shows)
    for back, weight in enumerate(weights[:rounds]):
        fresh[back:] += weight * seen[: rounds - back]
        pattern[back:] += weight * shows[: rounds - back]
    scores: Tensor = pattern @ fresh / (release.noise_multiplier * length * pattern.norm())
    return scores


def _steps_of_a_site(release: PlannedRelease, there: Sequence[bool]) -> Tensor:
    """Scores of canary units of one site, whose gradients, clipped and noised, every step of it
    sums over a secret draw. In the place of an absent one stands a null one. Whoever sees the
    factors after each step sees the noised sums."""
    assert release.bound is not None
    assert release.sigma is not None
    count, rate, z = len(there), release.sampling_rate, release.noise_multiplier
    work = PrivateTraining(
        start=Adapter({}, 1.0), records=[Record(str(k), unit=str(k)) for k in range(count)],
        trainable=Trainable.AB, steps=release.steps, batch=count, lr=1.0, mode="records",
        clip=release.bound, sigma=release.sigma, seed=0, most=rate)
    gradients = torch.diag(torch.tensor(there, dtype=torch.float64)) * (_LOUD * release.bound)
    source, seen = SystemNoise(), []
    for _ in range(release.rounds):
        for batch in batches(work):
            drawn = (gradients[int(unit[0].text)] for unit in batch)
            seen.append(noised_steps(clipped_units(drawn, count, work.clip, work.sigma), work,
                                     source)
                        / release.bound)
    if rate == 1.0:
        return torch.stack(seen).sum(0) / (z * math.sqrt(len(seen)))
    return torch.stack([_likelihood(shown, z, rate) for shown in seen]).sum(0)


class _Axes:
    """An embedder whose texts are numbers: each has an axis of its own."""

    name = "axes"

    def __init__(self, width: int) -> None:
        self.width = width

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        return torch.eye(self.width)[[int(text) for text in texts]]


def _votes_of_a_site(config: PrivacyConfig, release: PlannedRelease,
                     there: Sequence[bool]) -> Tensor:
    """Scores of canary units of one site, which adds the noise to its votes itself. In the place of
    an absent one stands a null one, whatever the relation."""
    assert release.bound is not None
    assert release.sigma is not None
    count, each = len(there), config.unit_records
    near = max(1, round(release.bound**2 / each))  # candidates that a record votes for
    noise = SiteNoise(mechanism=VOTES, clip=release.bound, sigma=release.sigma, most_rate=1.0,
                      most_steps=1)
    candidates = torch.eye(count).repeat_interleave(near, 0)
    units = [str(k) for k in range(count) if there[k]]
    site = Site("site", Plan("tier", "proxy", 1, 1, 1), [
        Record(text, unit=text) for text in units for _ in range(2 * each)])
    total = torch.zeros(count, dtype=torch.float64)
    for number in range(1, release.rounds + 1):
        request = VoteRequest(site.name, number, {"embeddings": candidates},
                              {"neighbours": near, PRIVATE: noise.setting()})
        counted = noised_votes(request, site.train, _Axes(count), noise)
        total += counted.double().view(count, near).sum(1) / math.sqrt(near)
    return total / (release.sigma * math.sqrt(release.rounds))
