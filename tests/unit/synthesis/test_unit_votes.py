"""Votes that a site protects by itself: sensitivity, grid, noise, and what an adversary learns who
knows all the rest."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from tests.auditing import success_interval
from tests.oracle import unit_votes as oracle
from tests.tiny_run import WordEmbedder

from aulait.core.errors import PrivacyError
from aulait.core.types import Plan, Record, Site, VoteRequest
from aulait.privacy.accounting import calibrate, epsilon
from aulait.privacy.mechanisms import find_mechanism
from aulait.privacy.noise_grid import grid
from aulait.privacy.record_level import PRIVATE, VOTES, SiteNoise, unit_vote_bound
from aulait.synthesis import private_evolution
from aulait.synthesis.embedding import SentenceEmbedder
from aulait.synthesis.unit_votes import clipped_votes, noised_votes, unit_votes

EMBEDDER = WordEmbedder()
CANDIDATES = EMBEDDER.embed(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"])
PLAN = Plan("laptop", "proxy", 1, 1, 1)


def noise(sigma=1.0, bound=1.0, seed=None) -> SiteNoise:
    return SiteNoise(mechanism=VOTES, clip=bound, sigma=sigma, most_rate=1.0, most_steps=1,
                     noise_seed=seed)


def records(*texts, unit=None):
    return tuple(Record(text, unit=unit) for text in texts)


def exact(tensor):
    return [Fraction(value) for value in tensor.tolist()]


words = st.text(alphabet="abcdefgh", min_size=1, max_size=3)
one_unit = st.lists(words, min_size=1, max_size=5)
sigmas = st.floats(0.05, 400.0)


@settings(max_examples=60, deadline=None)
@given(sites=st.lists(one_unit, max_size=6), extra=one_unit, neighbours=st.integers(1, 4),
       kept=st.integers(1, 6), sigma=sigmas,
       fields=st.booleans())
def test_one_unit_moves_the_sum_by_at_most_the_bound_exactly(sites, extra, neighbours, kept, sigma,
        fields):
    """In fractions, without any tolerance: records, or all records of one patient."""
    bound = unit_vote_bound(neighbours, kept if fields else 1)
    asked = noise(sigma, bound)
    if fields:
        before = tuple(r for i, texts in enumerate(sites) for r in records(*texts, unit=f"p{i}"))
        added = records(*extra, unit="new")
    else:
        before = tuple(r for texts in sites for r in records(*texts) if r.text != extra[0])
        added = records(extra[0], extra[0])  # the same record twice is one unit
    alone = exact(unit_votes(before, EMBEDDER, CANDIDATES, neighbours, asked))
    together = exact(unit_votes((*before, *added), EMBEDDER, CANDIDATES, neighbours, asked))
    moved = [b - a for a, b in zip(alone, together, strict=True)]
    assert sum(value**2 for value in moved) <= Fraction(bound) ** 2
    assert moved == exact(unit_votes(added, EMBEDDER, CANDIDATES, neighbours,
        asked)), "nothing of the others has changed"
    assert all(value >= 0 and (value / Fraction(grid(sigma))).denominator == 1
               for value in together)
    shuffled = unit_votes((*added, *before[::-1]), EMBEDDER, CANDIDATES, neighbours, asked)
    assert exact(shuffled) == together, "sums on the grid do not hang on the order"


@settings(max_examples=60, deadline=None)
@given(votes=st.lists(st.integers(1, 10**6), min_size=1, max_size=30), square=st.integers(1, 400),
       sigma=sigmas)
def test_clipping_never_exceeds_the_bound_and_leaves_what_is_within(votes, square, sigma):
    bound, step = unit_vote_bound(square), grid(sigma)
    clipped = exact(clipped_votes(torch.tensor(votes), bound, step))
    assert sum(value**2 for value in clipped) <= Fraction(bound) ** 2
    if sum(v * v for v in votes) <= square and step <= 1:
        assert clipped == votes, "the votes of a record that is within the bound are whole"
    else:
        length = math.sqrt(sum(v * v for v in votes))
        for value, vote in zip(clipped, votes, strict=True):
            assert value <= vote
            assert float(value) >= min(1.0, bound / length) * vote * (1 - 1e-13) - step * (1 + 1e-9)


@pytest.mark.parametrize("bound_of", [1, 2, 3, 5, 7, 10, 40])
def test_a_record_keeps_its_votes_whole(bound_of):
    """The root of 3 as a float64 is a little less than the root of 3; the bound is the float64
    above it."""
    assert clipped_votes(torch.ones(bound_of, dtype=torch.long), unit_vote_bound(bound_of),
                         2.0**-30).tolist() == [1.0] * bound_of
    assert Fraction(unit_vote_bound(bound_of)) ** 2 >= bound_of


@pytest.mark.parametrize("neighbours", [1, 2, 5])
@pytest.mark.parametrize("fields", [False, True])
def test_a_site_sends_what_the_slow_oracle_sends(neighbours, fields):
    """The same seeded noise: the same float32 numbers."""
    texts = ["alpha one", "beta", "beta", "gamma ray", "alpha two", "delta", "zeta",
             "zeta function", "epsilon"]
    own = tuple(Record(text, prompt="why?" if i % 4 == 0 else None, unit=f"p{i % 3}" if fields
                       else None) for i, text in enumerate(texts))
    bound = unit_vote_bound(neighbours, 2 if fields else 1)
    asked = noise(1.7, bound, seed=11)
    request = VoteRequest("ann", 3, {"embeddings": CANDIDATES},
                          {"neighbours": neighbours, PRIVATE: asked.setting()})
    (update,) = private_evolution.answer([request], [Site("ann", PLAN, own)], None, EMBEDDER)
    clean = oracle.votes(own, lambda text: EMBEDDER.embed([text])[0], CANDIDATES, neighbours, bound,
                         1.7)
    drawn = oracle.noise(11, "ann", 3, len(CANDIDATES), 1.7)
    expected = torch.tensor([float(a + b) for a, b in zip(clean, drawn, strict=True)],
                            dtype=torch.float64).to(torch.float32)
    # a shortened vote may be a step lower; so many units are shortened
    close = float(oracle.grid(1.7)) * (3 if fields else 1)
    assert update.tensors.keys() == {"votes"}
    assert not update.info
    assert update.weight == (3 if fields
        else 8), "the number of units is public, that of a unit's records is not"
    assert float((update.tensors["votes"] - expected).abs().max()) <= close


def test_the_noise_is_another_for_every_client_and_round_and_fresh_without_a_seed():
    def sent(client="a", round=1, seed: int | None = 4):
        request = VoteRequest(client, round, {"embeddings": CANDIDATES}, {"neighbours": 1})
        return tuple(noised_votes(request, records("alpha"), EMBEDDER, noise(seed=seed)).tolist())

    assert sent() == sent()
    assert len({sent(), sent("b"), sent(round=2), sent(seed=5), sent(seed=None),
                sent(seed=None)}) == 6


def test_a_site_without_records_sends_noise_of_the_same_deviation():
    request = VoteRequest("a", 1, {"embeddings": torch.eye(4000, 8)}, {"neighbours": 1})
    drawn = noised_votes(request, (), EMBEDDER, noise(sigma=2.5))
    assert drawn.shape == (4000,)
    assert float(drawn.std()) == pytest.approx(2.5, rel=6 / math.sqrt(8000))
    assert bool((torch.remainder(drawn.double(), grid(2.5)) == 0).all())


def test_noise_that_is_too_small_for_exact_sums_is_refused_before_anything_is_counted():
    request = VoteRequest("a", 1, {"embeddings": CANDIDATES}, {"neighbours": 1})
    with pytest.raises(PrivacyError, match="raise the noise multiplier"):
        noised_votes(request, records("a", "b"), EMBEDDER, noise(sigma=1e-12))


class Moody:
    """An embedder whose vectors of one batch move each other, as padding does."""

    name, width = "moody", 8

    def embed(self, texts):
        rows = WordEmbedder().embed(texts)
        return rows if len(texts) == 1 else rows + 0.7 * rows.mean(0)


def test_a_record_votes_alike_whatever_the_other_records_are():
    own, others = records("alpha"), records("beta", "gamma", "delta")
    asked = noise()
    alone = unit_votes(own, Moody(), CANDIDATES, 1, asked)
    rest = unit_votes(others, Moody(), CANDIDATES, 1, asked)
    assert torch.equal(unit_votes(own + others, Moody(), CANDIDATES, 1, asked), alone + rest)


class Remembering(SentenceEmbedder):
    """The real memory over a model whose rows move one another."""

    def __init__(self) -> None:
        class Model:
            def get_embedding_dimension(self):
                return 8

            def encode(self, texts, **_):
                return Moody().embed(texts)

        super().__init__("moody", Model(), capacity=50)


def test_what_was_embedded_together_before_is_not_used_for_a_unit():
    used = Remembering()
    used.embed(["alpha", "beta", "delta"])
    asked = noise()
    assert torch.equal(unit_votes(records("alpha", "beta"), used, CANDIDATES, 1, asked),
                       unit_votes(records("alpha", "beta"), Remembering(), CANDIDATES, 1, asked))


# -- the mechanism, and an adversary
# ---------------------------------------------------------------------------------


def test_the_mechanism_says_what_it_protects():
    mechanism = find_mechanism(VOTES, "record")
    assert mechanism.relations == ("zero-out", "replace")
    assert not mechanism.amplified
    assert mechanism.sensitivity(3.0, "zero-out") == 3.0
    assert mechanism.sensitivity(3.0,
        "replace") >= math.sqrt(
            2) * 3.0, "two votes that are not negative are at most that far apart"
    with pytest.raises(PrivacyError, match="protects"):
        find_mechanism(VOTES, "client")


@pytest.mark.parametrize(("claimed", "rounds", "fields"),
                         [(1.0, 1, False), (1.0, 3, True), (4.0, 3, False)])
def test_an_adversary_who_knows_all_but_one_unit_does_no_better_than_claimed(claimed, rounds,
        fields):
    """It knows every other record, the grid and the candidates (chosen so that the unit's votes
    crowd on one), reads the float32 answers of all rounds, and tests by their likelihood: of all
    tests the most powerful.

    Its rate of hits stays below exp(epsilon) times its rate of false alarms plus delta, at every
    threshold, within the binomial interval; and it is as good as a Gaussian mechanism of the same
    noise allows, so the audit has power.
    """
    tries, delta = 3000, 1e-5
    multiplier = calibrate(claimed, delta, rounds)
    assert epsilon(Counter({find_mechanism(VOTES).event(multiplier, 1.0, 1): rounds}),
                   delta) <= claimed
    bound = unit_vote_bound(1, 4 if fields else 1)
    asked = noise(multiplier * bound, bound)
    others = tuple(Record(f"b{i} other", unit=f"q{i}" if fields else None) for i in range(3))
    unit = (
        records("alpha", "alpha once more", "alpha again", "alpha!", unit="victim") if fields
        else records("alpha")
    )
    known = unit_votes(others, EMBEDDER, CANDIDATES, 1, asked)
    moved = unit_votes(unit, EMBEDDER, CANDIDATES, 1, asked)
    assert float(moved.norm()) == pytest.approx(bound, rel=1e-4), "the unit uses its whole bound"
    request = VoteRequest("ann", 1, {"embeddings": CANDIDATES}, {"neighbours": 1})

    def statistic(own) -> float:
        seen = [noised_votes(request, own, EMBEDDER, asked).double() - known for _ in range(rounds)]
        return sum(float(value @ moved) for value in seen) / (bound * asked.sigma)

    without = sorted(statistic(others) for _ in range(tries))
    present = [statistic(others + unit) for _ in range(tries)]
    for quantile in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        # fixed beforehand
        threshold = norm.ppf(quantile) * math.sqrt(rounds) + rounds / multiplier / 2
        false = success_interval(sum(value > threshold for value in without), tries)
        hits = success_interval(sum(value > threshold for value in present), tries)
        assert hits[0] <= math.exp(claimed) * false[1] + delta
        assert 1 - false[1] <= math.exp(claimed) * (1 - hits[0]) + delta
        expected = norm.sf((threshold - rounds / multiplier) / math.sqrt(rounds))
        assert hits[0] <= expected <= hits[1]


def test_the_lowest_bits_of_an_answer_do_not_tell_which_sum_was_noised():
    """Before, a float32 or float64 sum with noise showed its grid: with the unit, sums of thirds;
    without, whole numbers."""
    bound, sigma = 1.0, 1.5
    asked, request = noise(sigma, bound), VoteRequest("a", 1, {"embeddings": CANDIDATES},
        {"neighbours": 1})
    # clipped: votes of 3/sqrt(10) and 1/sqrt(10)
    patient = records("alpha", "alpha x", "alpha y", "beta", unit="v")
    for own in (records("gamma", unit="w"), (*records("gamma", unit="w"), *patient)):
        drawn = torch.stack([noised_votes(request, own, EMBEDDER, asked)
                             for _ in range(200)]).double()
        assert bool(
            (torch.remainder(drawn,
                grid(sigma)) == 0).all()), (
                    "every answer is on the public grid, whatever the records"
                )


def test_a_seed_in_a_request_is_used_and_said_to_be_not_private():
    asked = noise(seed=3)
    assert SiteNoise.read({PRIVATE: asked.setting()}) == asked
    request = VoteRequest("a", 1, {"embeddings": CANDIDATES}, {"neighbours": 1})
    first = noised_votes(request, records("alpha"), EMBEDDER, asked)
    assert torch.equal(first, noised_votes(replace(request), records("alpha"), EMBEDDER, asked))
