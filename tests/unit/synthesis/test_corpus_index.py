"""Vectors and clusters of public texts: kept, found again, gone on with, and never another
corpus's."""

from __future__ import annotations

import hashlib
from collections import Counter
from importlib.resources import files

import pytest
import torch

from aulait.core.types import Record
from aulait.data.builtin import mixed
from aulait.data.public import read_public
from aulait.data.source_row import Asked
from aulait.synthesis import clustering, corpus_index
from aulait.synthesis.clustering import assigned
from aulait.synthesis.corpus_index import FileVectors, load, open_corpus, save

TEXTS = tuple(f"text {i}" for i in range(50))


class HashEmbedder:
    """A direction that follows from the text; counts what it is asked for."""

    name, width = "hash/er", 16

    def __init__(self, most=None):
        self.asked, self.most = [], most

    def embed(self, texts):
        self.asked += texts
        if self.most is not None and len(self.asked) > self.most:
            raise KeyboardInterrupt
        rows = torch.stack([torch.tensor(list(hashlib.sha256(text.encode()).digest()[:16]),
                                         dtype=torch.float32) - 127.5 for text in texts])
        return rows / rows.norm(dim=1, keepdim=True)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(corpus_index, "SMALL", 10)
    monkeypatch.setattr(corpus_index, "EMBEDDED_AT_ONCE", 8)


def test_a_large_corpus_is_embedded_once_and_found_again(tmp_path):
    first, second = HashEmbedder(), HashEmbedder()
    made = open_corpus(TEXTS, first, 128, 5, tmp_path)
    again = open_corpus(TEXTS, second, 128, 5, tmp_path)
    assert first.asked == list(TEXTS)
    assert second.asked == []
    assert torch.equal(made.index.labels, again.index.labels)
    assert torch.allclose(made.index.centroids, again.index.centroids, atol=1e-3)
    numbers = torch.tensor([3, 49, 3])
    whole = HashEmbedder().embed([TEXTS[i] for i in numbers])
    assert torch.allclose(again.vectors.rows(numbers), whole, atol=1e-3)


@pytest.mark.parametrize("change", ["texts", "tokens", "embedder"])
def test_another_corpus_embedder_or_limit_is_kept_apart(tmp_path, change):
    open_corpus(TEXTS, HashEmbedder(), 128, 5, tmp_path)
    other = HashEmbedder()
    other.name = "other" if change == "embedder" else other.name
    texts = (*TEXTS[:-1], "another") if change == "texts" else TEXTS
    open_corpus(texts, other, 64 if change == "tokens" else 128, 5, tmp_path)
    assert other.asked == list(texts)


def test_embedding_goes_on_where_it_was_cut_off_in_the_middle_of_a_row(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        open_corpus(TEXTS, HashEmbedder(most=30), 128, 5, tmp_path)
    (part,) = tmp_path.glob("*/vectors.f16.part")
    with part.open("ab") as file:
        file.write(b"half a row")
    left = HashEmbedder()
    made = open_corpus(TEXTS, left, 128, 5, tmp_path)
    assert left.asked == list(TEXTS[24:]), "three blocks of eight were on disk"
    whole = HashEmbedder().embed(TEXTS)
    assert torch.allclose(made.vectors.rows(torch.arange(50)), whole, atol=1e-3)


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path):
    barred = tmp_path / "file"
    barred.write_text("no folder")
    made = open_corpus(TEXTS, HashEmbedder(), 128, 5, barred / "below")
    assert made.vectors.count == 50


def test_clusters_are_read_as_they_were_written(tmp_path):
    index = corpus_index.clustered(TEXTS, HashEmbedder(), 7)
    save(index, tmp_path / "index.npz")
    found = load(tmp_path / "index.npz")
    assert (found.digest, found.embedder, found.asked) == (index.digest, "hash/er", 7)
    assert torch.equal(found.labels, index.labels)
    assert torch.allclose(found.centroids.norm(dim=1), torch.ones(7), atol=1e-6)


def test_pairs_are_embedded_whole_and_in_blocks_of_a_mapped_file(tmp_path, monkeypatch):
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 9)
    pairs = tuple(Record(f"answer {i}", f"question {i}") for i in range(30))
    embedder = HashEmbedder()
    made = open_corpus(pairs, embedder, 128, 4, tmp_path)
    assert embedder.asked == [pair.full for pair in pairs]
    assert isinstance(made.vectors, FileVectors)
    assert torch.equal(assigned(made.vectors, made.index.centroids), made.index.labels)


def test_the_packaged_corpus_is_short_distinct_texts_of_five_kinds():
    texts, wrong = read_public("mixed", Asked(), None)
    assert not wrong
    assert 18_000 <= len(texts) <= 22_000
    assert all(20 <= len(text) <= 500 for text in texts)
    kinds = Counter(row["kind"] for row in mixed())
    assert len(kinds) == 5
    assert min(kinds.values()) > 2_000
    held = files("aulait").joinpath("data", "assets", "mixed.jsonl.gz").read_bytes()
    assert len(held) < 5_000_000


def test_the_clusters_in_the_package_are_those_of_the_packaged_corpus():
    """Nothing is embedded; another embedder, or another number of cells, is clustered anew."""
    texts, _ = read_public("mixed", Asked(), None)

    class Minilm(HashEmbedder):
        name, width = "minilm", 384

    made = open_corpus(texts, Minilm(most=0), 128, 256, None)
    assert made.index.labels.shape == (len(texts),)
    assert made.index.centroids.shape == (256, 384)
    sizes = torch.bincount(made.index.labels, minlength=256)
    assert int(sizes.min()) >= 1
    assert int(sizes.max()) <= 0.05 * len(texts), "no cell holds a large part of the corpus"
    assert corpus_index._packaged(corpus_index.corpus_digest(texts), "other", 256) is None
    assert corpus_index._packaged(corpus_index.corpus_digest(texts), "minilm", 64) is None
    assert corpus_index._packaged(corpus_index.corpus_digest(texts[1:]), "minilm", 256) is None
