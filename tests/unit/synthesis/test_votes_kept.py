"""How many of the true winners survive the noise: the unit record at sites against the unit client,
by the product's own code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aulait.core.types import Record, VoteRequest
from aulait.privacy.accounting import calibrate
from aulait.privacy.clipping import clip
from aulait.privacy.noise import SystemNoise
from aulait.privacy.record_level import VOTES, SiteNoise, unit_vote_bound
from aulait.synthesis import private_evolution, selection
from aulait.synthesis.unit_votes import noised_votes

CANDIDATES, KEEP, SITES, RECORDS, ROUNDS = 300, 60, 8, 1000, 5
SHARES = 1 / np.arange(1, CANDIDATES + 1) ** 0.8
SHARES /= SHARES.sum()


class Addresses:
    """A text that says for which candidate it votes: its vector is that of the candidate."""

    name, width = "addresses", CANDIDATES

    def embed(self, texts):
        return torch.eye(CANDIDATES)[[int(text.split()[0]) for text in texts]]


def kept(votes) -> float:
    """Share of the true winners among the winners of these votes."""
    return len(set(range(KEEP)) & set(selection.rank_candidates(votes, KEEP))) / KEEP


def of_records(multiplier: float, rng) -> float:
    """Every site protects each of its records."""
    bound = unit_vote_bound(1)
    noise = SiteNoise(mechanism=VOTES, clip=bound, sigma=multiplier * bound, most_rate=1.0,
                      most_steps=1)
    request, total = VoteRequest("s", 1, {"embeddings": torch.eye(CANDIDATES)},
        {"neighbours": 1}), torch.zeros(CANDIDATES)
    for _ in range(SITES):
        counts = rng.multinomial(RECORDS, SHARES)
        own = [Record(f"{j} {i}") for j, count in enumerate(counts) for i in range(count)]
        total += noised_votes(request, own, Addresses(), noise)
    return kept(total)


def of_clients(multiplier: float, rng, cap: int = 30) -> float:
    """The aggregator protects each site as a whole."""
    bound, total = private_evolution.vote_bound(cap), torch.zeros(CANDIDATES, dtype=torch.float64)
    for _ in range(SITES):
        total += clip({"votes": torch.from_numpy(rng.multinomial(cap, SHARES).astype(np.float32))},
                      bound)["votes"].double()
    return kept(total + SystemNoise().gaussian((CANDIDATES,), multiplier * bound))


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "expected"), [(1.0, 0.60), (3.0, 0.80), (8.0, 0.88)])
def test_votes_of_records_keep_most_of_the_true_winners(epsilon, expected):
    """The figures of a simulation outside of the product: 0.60, 0.80, 0.88; whole clients keep 0.22
    to 0.25, chance 0.20."""
    rng, multiplier = np.random.default_rng(0), calibrate(epsilon, 1e-5, ROUNDS)
    tries = 6
    records = [of_records(multiplier, rng) for _ in range(tries)]
    clients = [of_clients(multiplier, rng) for _ in range(40)]
    print(f"epsilon {epsilon:g}: records {np.mean(records):.2f}, clients {np.mean(clients):.2f}, "
          f"chance {KEEP / CANDIDATES:.2f}")
    assert np.mean(records) == pytest.approx(expected, abs=0.02 + 4 * 0.05 / math.sqrt(tries))
    assert np.mean(clients) < 0.35
