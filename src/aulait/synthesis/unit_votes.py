"""Votes whose site protects every unit itself: a record, or all records of one value of a field.

Each unit has one vector of votes, the sum over its records, which is clipped to the public bound S
and rounded toward zero onto the grid of the noise. So a null unit in a unit's place moves the
site's sum by at most S, exactly: multiples of the grid are added without rounding. The site adds
noise of standard deviation sigma from the operating system's entropy, on the same grid, and only
then anything leaves it.

What a unit votes for follows from that unit and the candidates alone. Every text is embedded by
itself: the padding of a batch would let one record move the last digits of another's vector, and
with candidates made for it, its vote. Legend: J candidates · D width · N candidates of one unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from aulait.core.seeds import Seeds
from aulait.core.types import Record, VoteRequest
from aulait.core.units import RecordGroup, units
from aulait.privacy.noise import (
    NoiseSource,
    SeededNoise,
    SystemNoise,
    check_exact,
    grid,
    toward_zero,
)
from aulait.synthesis.embedding import Embedder, nearest_candidates

_MARGIN = 2.0**-46  # far above the rounding of a scaled float64 vector


@dataclass(frozen=True)
class VoteNoise:
    """What a site is asked to do to its votes; all of it public.

    Attributes:
        sigma: standard deviation of the noise on every candidate's votes, > 0.
        bound: S, the L2 bound of one unit's votes, > 0.
        noise_seed: makes the noise reproducible, and the votes not private; None takes the
            operating system's entropy.
    """

    sigma: float
    bound: float
    noise_seed: int | None = None

    def settings(self) -> dict[str, float | int]:
        """As they stand in a request."""
        told: dict[str, float | int] = {"sigma": self.sigma, "bound": self.bound}
        return told if self.noise_seed is None else {**told, "noise_seed": self.noise_seed}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> VoteNoise | None:
        """What a request asks for; None where the server adds the noise, or nobody does."""
        if "sigma" not in settings:
            return None
        return cls(settings["sigma"], settings["bound"], settings.get("noise_seed"))

    def source(self, client: str, round: int) -> NoiseSource:
        """Where a client takes the noise of a round from."""
        if self.noise_seed is None:
            return SystemNoise()
        return SeededNoise(Seeds(self.noise_seed).integer("votes", round, client))


def unit_vote_bound(neighbours: int, records_per_unit: int = 1) -> float:
    """S: so many records of a unit that vote apart are not clipped.

    The smallest float64 whose square is at least neighbours · records_per_unit, so that the votes
    of one record are never shortened.
    """
    square = neighbours * records_per_unit
    root = math.sqrt(square)
    return root if Fraction(root) ** 2 >= square else math.nextafter(root, math.inf)


def noised_votes(request: VoteRequest, records: Sequence[Record], embedder: Embedder,
                 noise: VoteNoise) -> Tensor:
    """A site's votes with its own noise: (J,) float32.

    Args:
        request: the candidates' embeddings (J, D) and how many each record votes for.
        records: of the site; sensitive, but for the number of their units.
        embedder: texts to vectors.
        noise: what the request says of it.

    Raises:
        PrivacyError: the noise is so small that sums on its grid would not be exact.
    """
    total_J = unit_votes(records, embedder, request.tensors["embeddings"],
                         int(request.settings["neighbours"]), noise)
    source = noise.source(request.client, request.round)
    return (total_J + source.gaussian((len(total_J),), noise.sigma)).to(torch.float32)


def unit_votes(records: Sequence[Record], embedder: Embedder, candidates_JD: Tensor,
               neighbours: int, noise: VoteNoise) -> Tensor:
    """The sum of the units' clipped votes, before the noise: (J,) float64; sensitive.

    One unit more or less moves it by at most S in L2; every entry is a multiple of the grid.
    """
    found, step = units(records), grid(noise.sigma)
    check_exact((len(found) + 1) * noise.bound, step)
    total_J = torch.zeros(len(candidates_JD), dtype=torch.float64)
    for unit in found:
        chosen_N, votes_N = _votes_of(unit, embedder, candidates_JD, neighbours)
        total_J[chosen_N] += clipped_votes(votes_N, noise.bound, step)
    return total_J


def clipped_votes(votes_N: Tensor, bound: float, step: float) -> Tensor:
    """One unit's votes, shortened to the bound and on the grid: float64, none larger than before.

    Args:
        votes_N: whole numbers >= 0.
        bound: S.
        step: of the grid; 0 is no grid.
    """
    exact_N = votes_N.to(torch.float64)
    square = float(exact_N @ exact_N)  # exact: a sum of squares of counts
    if square > math.floor(Fraction(bound) ** 2):
        exact_N = exact_N * (bound / math.sqrt(square) * (1 - _MARGIN))
    return toward_zero(exact_N, step)


def _votes_of(unit: RecordGroup, embedder: Embedder, candidates_JD: Tensor,
              neighbours: int) -> tuple[Tensor, Tensor]:
    """The candidates that a unit's records vote for, and how often."""
    vectors_BD = torch.cat([embedder.embed([record.full]) for record in unit])
    chosen_BN = nearest_candidates(vectors_BD, candidates_JD, neighbours)
    chosen_N, votes_N = torch.unique(chosen_BN, return_counts=True)
    return chosen_N, votes_N
