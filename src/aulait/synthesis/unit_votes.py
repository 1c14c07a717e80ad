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
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from aulait.core.seeds import Seeds
from aulait.core.types import Record, VoteRequest
from aulait.core.units import RecordGroup, units
from aulait.privacy.noise import SeededNoise, SystemNoise, toward_zero
from aulait.privacy.noise_grid import check_exact, grid
from aulait.privacy.noise_source import NoiseSource
from aulait.privacy.record_level import SiteNoise
from aulait.synthesis.embedding import Embedder, nearest_candidates

_MARGIN = 2.0**-46  # far above the rounding of a scaled float64 vector


def noise_source(noise: SiteNoise, client: str, round: int) -> NoiseSource:
    """Where a client takes the noise of a round from: the operating system's entropy, or a stream
    of its own and of that round where a seed is named (not private)."""
    if noise.noise_seed is None:
        return SystemNoise()
    return SeededNoise(Seeds(noise.noise_seed).integer("votes", round, client))


def noised_votes(request: VoteRequest, records: Sequence[Record], embedder: Embedder,
                 noise: SiteNoise) -> Tensor:
    """A site's votes with its own noise: (J,) float32. Where it adds its noise when it masks its
    votes, their exact sum on the grid, float64, which is sensitive until then.

    Args:
        request: the candidates' embeddings (J, D) and how many each record votes for.
        records: of the site; sensitive, but for the number of their units.
        embedder: texts to vectors.
        noise: its deviation, and the bound S of a unit's votes; public.

    Raises:
        PrivacyError: the noise is so small that sums on its grid would not be exact.
    """
    total_J = unit_votes(records, embedder, request.tensors["embeddings"],
                         int(request.settings["neighbours"]), noise)
    if noise.summed:
        return total_J
    source = noise_source(noise, request.client, request.round)
    return (total_J + source.gaussian((len(total_J),), noise.sigma)).to(torch.float32)


def unit_votes(records: Sequence[Record], embedder: Embedder, candidates_JD: Tensor,
               neighbours: int, noise: SiteNoise) -> Tensor:
    """The sum of the units' clipped votes, before the noise: (J,) float64; sensitive.

    One unit more or less moves it by at most S in L2; every entry is a multiple of the grid.
    """
    found, step = units(records), grid(noise.sigma)
    check_exact((len(found) + 1) * noise.clip, step)
    total_J = torch.zeros(len(candidates_JD), dtype=torch.float64)
    for unit in found:
        chosen_N, votes_N = _votes_of(unit, embedder, candidates_JD, neighbours)
        total_J[chosen_N] += clipped_votes(votes_N, noise.clip, step)
    return total_J


def clipped_votes(votes_N: Tensor, bound: float, step: float) -> Tensor:
    """One unit's votes, shortened to the bound and on the grid: float64, none larger than before.

    ``clipping.clip_vector`` would keep a margin below the bound; votes are whole numbers whose
    length is known exactly, so that those within the bound stay whole.

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
