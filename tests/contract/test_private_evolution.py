"""Stage 1 with made-up embedders and writers: votes, sensitivity, selection, breeding, expansion, shards."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.closeness import assert_near
from tests.oracle import selection as oracle

from aulait.core.cohort import Cohort
from aulait.core.seeds import Seeds
from aulait.core.types import Plan, Record, Site, VoteRequest
from aulait.methods.contract import RunContext, Server
from aulait.privacy import clipping
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import KnownSites, PrivateAggregator, Release
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.synthesis import private_evolution, selection
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.population import EvolutionState, Text
from aulait.synthesis.private_evolution import EvolutionContext

SEEDS = Seeds(5)
OFF = PrivacyConfig(off=True)
NO_CONTEXT = RunContext({}, 1, 1.0, SEEDS)
ON = PrivacyConfig(noise_multiplier=1.0, delta=1e-5, relation="add-remove")
WIDTH = 6


class PointEmbedder:
    """A unit vector that follows from the first letter of the text, so that texts of a letter are alike."""

    name, width = "points", WIDTH

    def __init__(self) -> None:
        self.asked = []

    def embed(self, texts):
        self.asked.append(list(texts))
        return torch.stack([self.one(text) for text in texts]) if texts else torch.zeros(0, WIDTH)

    @staticmethod
    def one(text):
        near = torch.randn(WIDTH, generator=torch.Generator().manual_seed(ord(text[0])))
        far = torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, text))))
        vector = near + 0.02 * far
        return vector / vector.norm()


class Writer:
    """Appends a mark; fails where it is told to."""

    def __init__(self, fails=lambda text, seed: False) -> None:
        self.fails, self.calls, self.made, self.examples = fails, [], [], []

    def vary(self, texts, seed):
        self.calls.append((list(texts), seed))
        self.made.append([None if self.fails(text, seed) else f"{text}.{seed % 9973}.{i}" for i, text in enumerate(texts)])
        return self.made[-1]

    def write(self, examples, count, seed):
        self.examples.append(list(examples))
        return [f"new {i}" for i in range(count)]


def site(name: str, texts) -> Site:
    return Site(name, Plan("laptop", "proxy", 1, 1, 1), tuple(Record(text) for text in texts))


def aggregator(privacy=OFF, ledger=None) -> PrivateAggregator:
    accountant = None if privacy.off else Accountant(1e-5, {"proxy": math.inf})
    return PrivateAggregator(privacy, ledger or Ledger(None), accountant, SystemNoise(), KnownSites(frozenset({"proxy-000"})))


def ask_of(sites, embedder, heard=None):
    def ask(requests):
        if heard is not None:
            heard.extend(requests)
        return private_evolution.answer(requests, [sites[request.client] for request in requests], NO_CONTEXT, embedder)

    return ask


def a_round(config, state, sites, *, writer=None, embedder=None, the_door=None, bound=10.0, ask=None, z=0.0, number=None):
    embedder = embedder or PointEmbedder()
    cohort = Cohort(
        round=number or state.round + 1, local=tuple(sorted(sites)), proxies={}, planned=len(sites), noise_multiplier=z, role="proxy"
    )
    context = evolution(embedder=embedder, writer=writer, bound=bound)
    return private_evolution.step(config, context, state, cohort, Server(ask or ask_of(sites, embedder), the_door or aggregator()))


def evolution(public=(), *, embedder=None, writer=None, bound=10.0, seeds=SEEDS):
    return EvolutionContext(seeds, public, embedder or PointEmbedder(), writer or Writer(), bound)


PUBLIC = [f"{letter}{number} public" for letter in "abcdef" for number in range(4)]
SITES = {"s1": site("s1", ["a one", "a two", "b three"]), "s2": site("s2", ["c four"]), "s3": site("s3", ["a five", "f six"])}
SMALL = SynthesisConfig(rounds=2, candidates=3, variations=2, texts=8)

# -- votes and sensitivity -----------------------------------------------------------------------------------------


def test_a_vote_goes_to_the_nearest_candidate():
    embedder = PointEmbedder()
    candidates = embedder.embed(["a", "b", "c", "f"])
    request = VoteRequest("s1", 1, {"embeddings": candidates}, {"neighbours": 1})
    update = private_evolution.answer([request], [SITES["s1"]], NO_CONTEXT, embedder)[0]
    assert update.tensors["votes"].tolist() == [2.0, 1.0, 0.0, 0.0]
    assert update.tensors.keys() == {"votes"}, "nothing else leaves the site: no distances, no texts"
    assert not update.info


def test_a_prompt_is_part_of_what_is_embedded():
    embedder = PointEmbedder()
    owner = Site("s", SITES["s1"].plan, (Record("answer", prompt="question"),))
    private_evolution.answer([VoteRequest("s", 1, {"embeddings": embedder.embed(["a"])}, {"neighbours": 1})], [owner], NO_CONTEXT, embedder)
    assert embedder.asked[-1] == ["question\nanswer"]


@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_votes_sum_to_records_times_neighbours(neighbours):
    _, info = a_round(SMALL.model_copy(update={"neighbours": neighbours}), EvolutionState(0, tuple(Text(t, 0) for t in PUBLIC[:9])), SITES, bound=100.0)
    assert sum(info["histogram"]) == pytest.approx(6 * neighbours)
    assert len(info["histogram"]) == 9


texts = st.text(alphabet="abcdefgh", min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    clients=st.lists(st.lists(texts, min_size=1, max_size=9), min_size=2, max_size=5), removed=st.integers(0, 4),
    cap=st.integers(1, 9), neighbours=st.integers(1, 3))
def test_removing_any_client_moves_the_sum_by_at_most_the_bound(clients, removed, cap, neighbours):
    """Also when texts repeat, crowd on one candidate, or a client holds more records than it should."""
    embedder, bound = PointEmbedder(), private_evolution.vote_bound(cap)
    candidates = embedder.embed(["a", "b", "cc", "d", "e"])
    sites = {f"s{i}": site(f"s{i}", mine) for i, mine in enumerate(clients)}
    requests = [VoteRequest(n, 1, {"embeddings": candidates}, {"neighbours": neighbours}) for n in sites]
    updates = private_evolution.answer(requests, list(sites.values()), NO_CONTEXT, embedder)
    gone = f"s{removed % len(clients)}"

    def released(some):
        return aggregator().release(
            some, Release(stage="synthesis", round=1, role="proxy", bound=bound, noise_multiplier=0.0, planned=len(sites),
                          template={"votes": torch.zeros(5)})).total["votes"].double()

    change = released(updates) - released([r for r in updates if r.client != gone])
    assert float(change.norm()) <= bound * (1 + 1e-6)
    whole = sum(clipping.clip(r.tensors, bound)["votes"].double() for r in updates)
    assert_near(released(updates), whole, 1e-5)


def test_the_bound_is_the_root_of_the_cap_and_spread_votes_are_whole():
    assert private_evolution.vote_bound(25) == 5.0
    spread = {"votes": torch.ones(25)}
    assert clipping.clip(spread, private_evolution.vote_bound(25))["votes"].sum() == 25
    crowded = {"votes": torch.tensor([25.0, 0.0])}
    assert float(clipping.clip(crowded, 5.0)["votes"][0]) == pytest.approx(5.0)


def test_the_released_votes_have_the_noise_of_the_ledger():
    """600 candidates, nobody votes: the histogram is the noise itself."""
    state = EvolutionState(0, tuple(Text(f"{chr(97 + i % 26)}{i}", 0) for i in range(600)))
    ledger = Ledger(None)
    config = SynthesisConfig(rounds=1, candidates=100, variations=5)
    _, info = a_round(config, state, SITES, the_door=aggregator(ON, ledger), bound=2.0, ask=lambda requests: [], z=1.5)
    assert [(line.sensitivity, line.sigma) for line in ledger.lines] == [(2.0, 3.0)]
    assert info["noise_std"] == 3.0
    assert float(np.std(info["histogram"])) == pytest.approx(3.0, rel=6 / math.sqrt(1200))


def test_one_ledger_event_for_each_vote_and_bytes_of_the_formula():
    ledger, heard, embedder = Ledger(None), [], PointEmbedder()
    state, the_door = private_evolution.init(SMALL, evolution(PUBLIC)), aggregator(ON, ledger)
    for _ in range(2):
        pool = len(state.pool)
        state, info = a_round(SMALL, state, SITES, the_door=the_door, ask=ask_of(SITES, embedder, heard), z=1.0)
        assert info["up_bytes"] == 3 * 4 * pool
        assert info["down_bytes"] == 3 * 4 * pool * WIDTH
        if state.round == 1:
            up, down = private_evolution.travels(SMALL, evolution(PUBLIC), 1, "s1", tuple(SITES))
            assert (info["up_bytes"], info["down_bytes"]) == (3 * up, 3 * down)
    assert [(line.stage, line.round, line.role, line.planned) for line in ledger.lines] == [
        ("synthesis", 1, "proxy", 3), ("synthesis", 2, "proxy", 3)]
    assert {request.tensors.keys() == {"embeddings"} for request in heard} == {True}, "candidates travel as vectors only"


# -- a round ---------------------------------------------------------------------------------------------------


def test_the_first_candidates_are_distinct_public_texts():
    state = private_evolution.init(SMALL, evolution(PUBLIC))
    assert len(state.pool) == SMALL.pool == 9
    assert len({text.text for text in state.pool}) == 9
    assert {text.text for text in state.pool} <= set(PUBLIC)
    assert {(text.round, text.parent) for text in state.pool} == {(0, None)}
    assert private_evolution.init(SMALL, evolution(PUBLIC)) == state != private_evolution.init(SMALL, evolution(PUBLIC, seeds=Seeds(6)))
    assert len(private_evolution.init(SMALL, evolution(PUBLIC[:4])).pool) == 4


def test_winners_are_kept_with_their_votes_and_bred():
    state = EvolutionState(0, tuple(Text(f"{letter}0", 0) for letter in "abcdef"))
    after, info = a_round(SMALL, state, SITES)
    assert [(t.text, t.votes) for t in after.winners] == [("a0", 3.0), ("b0", 1.0), ("c0", 1.0)]
    assert after.round == 1
    children = [t for t in after.pool if t.parent]
    assert Counter(t.parent for t in children) == {"a0": 2, "b0": 2, "c0": 2}
    assert {t.round for t in children} == {1}
    assert {t.text for t in after.pool if not t.parent} == {"a0", "b0", "c0"}
    assert info["kept"] == 3
    again, _ = a_round(SMALL, state, SITES)
    assert again == after
    later, _ = a_round(SMALL, after, SITES)
    assert later.winners[:3] == after.winners, "winners of all rounds stay"
    assert len(later.winners) > 3


def test_the_order_of_clients_is_irrelevant():
    state = private_evolution.init(SMALL, evolution(PUBLIC))
    embedder = PointEmbedder()
    turned = lambda requests: ask_of(SITES, embedder)(requests)[::-1]  # noqa: E731
    assert a_round(SMALL, state, SITES)[0] == a_round(SMALL, state, SITES, ask=turned)[0]


@pytest.mark.parametrize("share", ["all", "some"])
def test_failed_children_are_dropped_never_replaced(share):
    fails = (lambda text, seed: True) if share == "all" else (lambda text, seed: text.startswith("a"))
    state = EvolutionState(0, tuple(Text(f"{letter}0", 0) for letter in "abcdef"))
    after, _ = a_round(SMALL, state, SITES, writer=Writer(fails))
    children = [t for t in after.pool if t.parent]
    assert Counter(t.parent for t in children) == ({} if share == "all" else {"b0": 2, "c0": 2})
    texts = [t.text for t in after.pool]
    assert len(texts) == len(set(texts)), "a parent in place of a child would stand twice"
    assert all(texts)


def test_a_round_after_every_child_failed_still_works():
    state = EvolutionState(0, tuple(Text(f"{letter}0", 0) for letter in "abcdef"))
    for _ in range(3):
        state, info = a_round(SMALL, state, SITES, writer=Writer(lambda text, seed: True))
    assert state.round == 3
    assert 0 < len(state.pool) <= 3
    assert len(info["histogram"]) == 3


def test_random_selection_asks_no_client_and_costs_nothing():
    ledger = Ledger(None)

    def ask(requests):
        raise AssertionError("the control arm asked a client")

    state = private_evolution.init(SMALL, evolution(PUBLIC))
    config = SMALL.model_copy(update={"selection": "random"})
    after, info = a_round(config, state, SITES, ask=ask, the_door=aggregator(ON, ledger), z=1.0)
    assert ledger.lines == ()
    assert len(after.winners) == 3
    assert not {"up_bytes", "down_bytes"} & {key for key, value in info.items() if value}
    assert set(info["histogram"]) == {0.0}


def test_lookahead_sends_the_mean_of_variations():
    """Of those that came out: "c" fails once, "b" always and is sent as it is."""
    heard, embedder, writer = [], PointEmbedder(), Writer()
    writer.fails = lambda text, seed: text[0] == "b" or (text[0] == "c" and len(writer.calls) == 1)
    state = EvolutionState(0, tuple(Text(f"{letter}0", 0) for letter in "abc"))
    config = SMALL.model_copy(update={"lookahead": 3})
    a_round(config, state, SITES, writer=writer, embedder=embedder, ask=ask_of(SITES, PointEmbedder(), heard))
    sent = heard[0].tensors["embeddings"]
    for j, (letter, count) in enumerate(zip("abc", (3, 0, 2), strict=True)):
        alive = [children[j] for children in writer.made[:3] if children[j]]
        assert len(alive) == count
        wanted = torch.stack([PointEmbedder.one(t) for t in alive]).mean(0) if alive else PointEmbedder.one(f"{letter}0")
        assert_near(sent[j], wanted, 1e-6, what=letter)


def test_state_survives_the_checkpoint():
    state = private_evolution.init(SMALL, evolution(PUBLIC))
    state, _ = a_round(SMALL, state, SITES)
    again = EvolutionState.restore(json.loads(json.dumps(state.dump())))
    assert again == state
    assert a_round(SMALL, again, SITES)[0] == a_round(SMALL, state, SITES)[0]


# -- selection -------------------------------------------------------------------------------------------------

votes_lists = st.lists(st.floats(-20, 50, width=32), min_size=1, max_size=12)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(votes=votes_lists, keep=st.integers(1, 12))
def test_rank_keeps_those_with_most_votes(votes, keep):
    kept = selection.rank_candidates(torch.tensor(votes), keep)
    assert len(kept) == len(set(kept)) == min(keep, len(votes))
    left = [votes[j] for j in range(len(votes)) if j not in kept]
    assert not left or min(votes[j] for j in kept) >= max(left)


def test_rank_breaks_ties_by_number():
    assert selection.rank_candidates(torch.tensor([1.0, 3.0, 3.0, 1.0]), 3) == [1, 2, 0]


@settings(max_examples=60, deadline=None)
@given(votes=votes_lists, keep=st.integers(1, 12), threshold=st.floats(0, 60), seed=st.integers(0, 99))
def test_sample_draws_only_above_the_threshold_and_never_breaks(votes, keep, threshold, seed):
    tensor = torch.tensor(votes)
    keep = min(keep, len(votes))
    kept = selection.sample_candidates(tensor, keep, threshold, generator(seed))
    above = {j for j in range(len(votes)) if float((tensor[j].double() - threshold).clamp(min=0)) > 0}
    assert len(kept) == keep
    if above:
        assert set(kept) <= above
    else:
        assert len(set(kept)) == keep, "the fallback is uniform without repeats"


def test_sample_follows_the_votes_above_the_threshold():
    drawn = Counter(selection.sample_candidates(torch.tensor([11.0, 31.0, 1.0]), 4000, 1.0, generator()))
    assert drawn[2] == 0
    assert drawn[0] / 4000 == pytest.approx(0.25, abs=6 * math.sqrt(0.25 * 0.75 / 4000))


def test_the_uniform_fallback_is_uniform():
    drawn = Counter(j for seed in range(600) for j in selection.sample_candidates(torch.full((4,), -3.0), 2, 1.0, generator(seed)))
    for j in range(4):
        assert drawn[j] / 600 == pytest.approx(0.5, abs=6 * math.sqrt(0.25 / 600))


@pytest.mark.parametrize("selected", ["rank", "sample", "geometry"])
def test_noise_that_drowns_all_votes_leaves_a_working_round(selected):
    config = SMALL.model_copy(update={"selection": selected, "threshold": 1e6})
    after, info = a_round(config, private_evolution.init(config, evolution(PUBLIC)), SITES, the_door=aggregator(ON), ask=lambda requests: [], z=5.0)
    assert 0 < len(after.winners) <= 3
    assert all(math.isfinite(t.votes) for t in after.winners)
    assert all(math.isfinite(v) for v in info["histogram"])


@pytest.mark.parametrize("votes", [[0.0] * 5, [-1.0, -2.0, -3.0, -1.0, -5.0]])
def test_geometry_without_votes_is_uniform(votes):
    chosen = selection.geometry(torch.tensor(votes), torch.eye(5), 2, 3.0, 1.0, generator())
    assert len(set(chosen)) == 2


def test_geometry_drops_a_threshold_that_leaves_nothing():
    chosen = selection.geometry(torch.tensor([0.0, 2.0, 0.0, 1.0]), torch.eye(4), 2, 100.0, 1.0, generator())
    assert sorted(chosen) == [1, 3]


def test_geometry_keeps_the_minority_that_rank_drops():
    """Ten alike candidates with 8 to 17 votes each, one candidate of another kind with 5."""
    majority = torch.nn.functional.normalize(torch.tensor([[1.0, 0.01 * i] for i in range(10)]), dim=1)
    points = torch.cat([majority, torch.tensor([[-1.0, 0.0]])])
    votes = torch.tensor([8.0 + i for i in range(10)] + [5.0])
    assert 10 not in selection.rank_candidates(votes, 4)
    assert 10 in selection.geometry(votes, points, 4, 0.0, 1.0, generator())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 7), keep=st.integers(1, 4), reach=st.floats(0.3, 2.0), threshold=st.floats(0, 4, width=32))
def test_geometry_against_trying_everything(seed, count, keep, reach, threshold):
    draw = torch.Generator().manual_seed(seed)
    points = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=1)
    votes = torch.randint(0, 9, (count,), generator=draw).float()
    weights = (votes - threshold).clamp(min=0)
    if not weights.any():
        weights = votes
    if not weights.any():
        return
    chosen = selection.geometry(votes, points, keep, threshold, reach, generator())
    w, p = weights.double().numpy(), points.double().numpy()
    assert 0 < len(chosen) == len(set(chosen)) <= keep
    found, ceiling = oracle.cost(w, p, chosen, reach), reach * w.sum()
    optimum = oracle.best(w, p, keep, reach)
    assert optimum - 1e-9 <= found <= oracle.cost(w, p, oracle.greedy(w, p, keep, reach), reach) + 1e-9
    assert ceiling - found >= (1 - 1 / math.e) * (ceiling - optimum) - 1e-9  # what greedy promises
    if keep == 1:
        assert found == pytest.approx(optimum, abs=1e-9)


def test_the_geometry_threshold_by_hand():
    assert selection.geometry_threshold(2.0, 5, 100) == pytest.approx(2 * math.sqrt(2 * math.log(6 * 5 * 100 / 0.05)))
    assert selection.geometry_threshold(0.0, 5, 100) == 0.0


# -- the final set ---------------------------------------------------------------------------------------------


def winners(*votes: float) -> EvolutionState:
    return EvolutionState(2, (), tuple(Text(f"w{i}", 1, "p", v) for i, v in enumerate(votes)))


@pytest.mark.parametrize("expansion", ["vary", "write", "keep"])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_final_set_has_the_size_that_was_asked(expansion, count):
    config = SMALL.model_copy(update={"texts": count, "expansion": expansion})
    made = private_evolution.result(config, evolution(writer=Writer()), winners(5.0, 1.0, -2.0))
    assert len(made) == count
    assert made == private_evolution.result(config, evolution(writer=Writer()), winners(5.0, 1.0, -2.0))


@pytest.mark.parametrize("expansion", ["vary", "keep"])
def test_the_final_set_is_proportional_to_votes(expansion):
    config = SMALL.model_copy(update={"texts": 4000, "expansion": expansion})
    made = private_evolution.result(config, evolution(writer=Writer()), winners(30.0, 10.0, -5.0, 0.0))
    drawn = Counter(t.parent if expansion == "vary" else t.text for t in made)
    assert drawn["w0"] / 4000 == pytest.approx(0.75, abs=6 * math.sqrt(0.75 * 0.25 / 4000))
    assert drawn["w2"] == drawn["w3"] == 0


def test_failed_texts_of_the_final_set_are_drawn_again_never_replaced():
    writer = Writer(lambda text, seed: (seed + len(text)) % 2 == 0)
    made = private_evolution.result(SMALL.model_copy(update={"texts": 30}), evolution(writer=writer), winners(5.0, 1.0))
    assert len(made) <= 30
    assert all(t.text and not re.fullmatch(r"w\d", t.text) for t in made)
    assert {t.round for t in made} == {3}
    assert private_evolution.result(SMALL, evolution(writer=Writer(lambda text, seed: True)), winners(5.0)) == []


def test_writing_shows_examples_from_the_most_voted_first():
    writer = Writer()
    config = SMALL.model_copy(update={"expansion": "write"})
    private_evolution.result(config, evolution(writer=writer), winners(1e9, 0.0, -1.0))
    assert writer.examples[0][0] == "w0"
    assert sorted(writer.examples[0]) == ["w0", "w1", "w2"]


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 40), count=st.integers(1, 12), seed=st.integers(0, 50))
def test_shards_partition_the_set(size, count, seed):
    texts = [Text(f"t{i}", 1) for i in range(size)]
    dealt = private_evolution.shards(texts, count, Seeds(seed))
    assert len(dealt) == min(size, count)
    assert sorted((t for shard in dealt for t in shard), key=lambda t: int(t.text[1:])) == texts
    sizes = [len(shard) for shard in dealt]
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert dealt == private_evolution.shards(texts, count, Seeds(seed))


def test_texts_are_plain_values():
    text = Text("x", 1, "y", 2.0)
    assert Text(**json.loads(json.dumps(asdict(text)))) == text
