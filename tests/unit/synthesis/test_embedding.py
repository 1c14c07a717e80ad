"""Embedding, its memory, and exact nearest neighbours against a slow oracle."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.closeness import assert_near

from aulait.core.errors import ConfigError, DataError, ModelError
from aulait.synthesis import embedding
from aulait.synthesis.embedding import SentenceEmbedder, load_embedder, nearest_candidates, votes

TEXTS = [
    "The patient reports chest pain since Monday.",
    "Fix a typo in the documentation",
    "She sells sea shells by the sea shore, and she has done so for longer than anybody there can remember.",
    "",
    "Chest pain began on Monday, says the patient.",
    "αβγ 数据 🙂",
]


@pytest.fixture(scope="module")
def minilm() -> SentenceEmbedder:
    embedder = load_embedder("minilm")
    assert isinstance(embedder, SentenceEmbedder)
    return embedder


class FakeModel:
    """Counts what it is asked for; the vector of a text is made of its length."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def get_embedding_dimension(self) -> int:
        return 3

    def encode(self, texts: list[str], **_: object) -> torch.Tensor:
        self.seen += texts
        return torch.nn.functional.normalize(torch.tensor([[1.0, len(t), 0.0] for t in texts]), dim=1)


def test_vectors_have_unit_length_and_carry_meaning(minilm: SentenceEmbedder) -> None:
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == (6, 384)
    assert minilm.width == 384
    assert minilm.name == "minilm"
    assert vectors.dtype == torch.float32
    assert_near(vectors.norm(dim=1), torch.ones(6), 1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0, 4] > 0.8 > 0.3 > similarity[0, 1]


def test_order_and_company_do_not_change_a_vector(minilm: SentenceEmbedder) -> None:
    together = load_embedder("minilm", capacity=0).embed(TEXTS)
    backwards = load_embedder("minilm", capacity=0).embed(TEXTS[::-1]).flip(0)
    alone = torch.cat([minilm.embed([text]) for text in TEXTS])
    assert_near(together, backwards, 1e-4)
    assert_near(together, alone, 1e-4)


def test_long_texts_are_cut_at_max_tokens() -> None:
    short = load_embedder("minilm", max_tokens=8)
    same = short.embed(["one two three four five six seven eight", "one two three four five six and then something else"])
    assert_near(same[0], same[1], 1e-4)


def test_memory_embeds_a_text_once_and_is_bounded() -> None:
    model = FakeModel()
    embedder = SentenceEmbedder("fake", model, capacity=2)
    first = embedder.embed(["a", "bb", "a", "bb"])
    assert model.seen == ["a", "bb"]
    assert torch.equal(first[0], first[2])
    assert torch.equal(embedder.embed(["bb", "a"]), first[[1, 0]])
    assert model.seen == ["a", "bb"]
    embedder.embed(["ccc", "a"])  # forgets "bb", the one used longest ago
    assert model.seen == ["a", "bb", "ccc"]
    embedder.embed(["bb", "a"])
    assert model.seen == ["a", "bb", "ccc", "bb"]
    assert len(embedder._memory) == 2
    assert all(isinstance(key, bytes) and len(key) == 32 for key in embedder._memory)  # no text is kept


def test_a_text_embedded_by_itself_does_not_hang_on_what_was_embedded_before(minilm) -> None:
    """Rows of a batch are padded and move each other's last digits; alone there is nothing to be moved by."""
    text, long = "a short note", "a note that goes on and on about one thing and another, " * 4
    fresh = load_embedder("minilm")
    expected = fresh.embed([text])
    used = load_embedder("minilm")
    used.embed([long, text, "another"])
    assert torch.equal(used.embed([text]), expected)
    assert torch.equal(used.embed([text]), expected)


def test_more_texts_than_the_memory_holds_all_come_back() -> None:
    texts = ["x" * n for n in range(1, 8)]
    small, large = SentenceEmbedder("s", FakeModel(), capacity=1), SentenceEmbedder("l", FakeModel(), capacity=100)
    assert torch.equal(small.embed(texts), large.embed(texts))
    assert small.embed([]).shape == (0, 3)


def test_unknown_name_is_one_clear_line_offline() -> None:
    with pytest.raises(ModelError) as caught:
        load_embedder("nobody/has-made-this")
    message = str(caught.value)
    assert "nobody/has-made-this" in message
    assert "path" in message
    assert "\n" not in message
    with pytest.raises(ModelError, match="expected 'minilm'"):
        load_embedder("/no/such/folder")


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="max_tokens is 2"):
        load_embedder("minilm", max_tokens=2)
    with pytest.raises(ConfigError, match="capacity is -1"):
        load_embedder("minilm", capacity=-1)


def slow_nearest(vectors: np.ndarray, candidates: np.ndarray, neighbours: int) -> list[list[int]]:
    """Sort (distance, index) pairs, one vector at a time, in integers."""
    found = []
    for vector in vectors:
        pairs = [(int(((vector - candidate) ** 2).sum()), j) for j, candidate in enumerate(candidates)]
        found.append([j for _, j in sorted(pairs)[:neighbours]])
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31), st.integers(1, 9)
)
def test_nearest_and_votes_equal_the_oracle_with_ties(rows: int, count: int, width: int, seed: int, neighbours: int) -> None:
    neighbours = min(neighbours, count)
    draw = np.random.default_rng(seed)
    # Few integer values: ties and duplicates are the rule, and every distance is exact.
    vectors, candidates = draw.integers(-1, 2, (rows, width)), draw.integers(-1, 2, (count, width))
    vectors_t, candidates_t = torch.tensor(vectors).float().reshape(rows, width), torch.tensor(candidates).float()
    expected = slow_nearest(vectors, candidates, neighbours)
    assert nearest_candidates(vectors_t, candidates_t, neighbours).tolist() == expected
    counts = votes(vectors_t, candidates_t, neighbours)
    assert counts.dtype == torch.float32
    assert counts.tolist() == [sum(row.count(j) for row in expected) for j in range(count)]
    assert counts.sum() == rows * neighbours


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 7), st.integers(1, 5))
def test_blocks_change_nothing_ties_included(count: int, seed: int, neighbours: int, block: int, rows: int) -> None:
    neighbours = min(neighbours, count)
    draw = np.random.default_rng(seed)
    vectors, candidates = draw.integers(-1, 2, (9, 2)), draw.integers(-1, 2, (count, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "BLOCK", block)
        patch.setattr(embedding, "ROWS", rows)
        found = nearest_candidates(torch.tensor(vectors).float(), torch.tensor(candidates).float(), neighbours)
    assert found.tolist() == slow_nearest(vectors, candidates, neighbours)


VOTE = """
import resource, sys, torch
torch.set_num_threads(1)
from aulait.synthesis.embedding import votes
candidates, vectors, neighbours = torch.randn(int(sys.argv[1]), 384), torch.randn(int(sys.argv[2]), 384), int(sys.argv[3])
votes(vectors[:2], candidates[:2], 1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
before = peak()
votes(vectors, candidates, neighbours)
print(peak() - before)
"""


@pytest.mark.parametrize(("candidates", "records", "neighbours"), [(60_000, 300, 1), (60_000, 300, 100)])
def test_memory_of_a_vote_does_not_grow_with_the_candidates(candidates: int, records: int, neighbours: int) -> None:
    """Before, 60,000 candidates took a gigabyte: a signed request could end a site."""
    done = subprocess.run([sys.executable, "-c", VOTE, str(candidates), str(records), str(neighbours)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64, "MiB beside the message and the vectors"


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-22, 1e12, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_product_rules_out_is_never_the_nearest(neighbours: int, scale: float, dtype: torch.dtype) -> None:
    """Candidates that differ in the last digits only, and sizes at which float32 under- or overflows."""
    generator = torch.Generator().manual_seed(4)
    vectors = torch.nn.functional.normalize(torch.randn(60, 96, generator=generator, dtype=torch.float64), dim=1)
    near = vectors[:12] * (1 + 1e-7 * torch.randn(12, 96, generator=generator, dtype=torch.float64))
    far = torch.randn(40, 96, generator=generator, dtype=torch.float64)
    vectors, candidates = ((scale * x).to(dtype) for x in (vectors, torch.cat([far, near, vectors[:12], near])))
    exact = torch.cdist(vectors.double(), candidates.double(), compute_mode="donot_use_mm_for_euclid_dist")
    wanted = exact.argsort(dim=1, stable=True)[:, :neighbours]
    assert torch.equal(nearest_candidates(vectors, candidates, neighbours), wanted)


def test_equal_candidates_tie_exactly_in_many_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(37, 384, generator=generator)
    vectors = torch.randn(1500, 384, generator=generator)  # more than one block of rows
    assert int(nearest_candidates(vectors, torch.cat([one, one, one])).max()) < 37
    assert torch.equal(nearest_candidates(vectors, torch.cat([one, one]), 2), torch.cat([nearest_candidates(vectors, one), nearest_candidates(vectors, one) + 37], 1))


def test_nearest_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="3 neighbours"):
        nearest_candidates(torch.zeros(1, 2), torch.zeros(2, 2), 3)
    with pytest.raises(DataError, match="width 3"):
        nearest_candidates(torch.zeros(1, 3), torch.zeros(2, 2))
    with pytest.raises(DataError, match="finite"):
        votes(torch.tensor([[float("nan"), 0.0]]), torch.zeros(2, 2))
