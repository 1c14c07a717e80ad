"""``aulait bench embed``: texts a second of the embedder that finds the nearest synthetic texts,
beside the same model called through sentence-transformers alone.

Both read the same texts, each once. aulait remembers what it has read, under hashes of the texts;
the library itself reads texts of similar length together.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from aulait.core.files import JsonObject
from aulait.data import builtin
from aulait.resources.meters import peak_of_process
from aulait.synthesis.embedding import SentenceEmbedder, load_embedder
from aulait_benchmarks.clock import own_clock


@dataclass(frozen=True)
class Sizes:
    """How many texts are read in a turn, and how long they may be."""

    texts: int
    max_tokens: int = 128


FULL, QUICK = Sizes(256), Sizes(24, 32)


def measure(sizes: Sizes, repetitions: int) -> JsonObject:
    """Both in turns, after one small turn of each.

    Returns:
        texts, words: of a turn; aulait_texts_per_s, peer_texts_per_s; ratio_to_peer: how many times
        as fast aulait is; error: the largest difference of two numbers of the vectors, which have
        length 1; clock: as ``own_clock``; repetitions, peak_rss_bytes, threads.
    """
    clock = own_clock()
    embedder = load_embedder("minilm", max_tokens=sizes.max_tokens)
    assert isinstance(embedder, SentenceEmbedder)
    texts = [row["text"] for row in builtin.standard_library()[: sizes.texts]]
    plain(embedder, texts[:8])
    embedder.embed(texts[:8])
    spent_s: dict[str, list[float]] = {"aulait": [], "peer": []}
    vectors = {}
    for turn in range(repetitions):
        for name in ("aulait", "peer") if turn % 2 == 0 else ("peer", "aulait"):
            embedder.forget()
            started = clock.now()
            vectors[name] = embedder.embed(texts) if name == "aulait" else plain(embedder, texts)
            spent_s[name].append(clock.now() - started)
    own_s, peer_s = (statistics.median(spent_s[name]) for name in ("aulait", "peer"))
    return {"texts": len(texts), "words": sum(len(text.split()) for text in texts),
            "aulait_texts_per_s": len(texts) / own_s, "peer_texts_per_s": len(texts) / peer_s,
            "ratio_to_peer": peer_s / own_s,
            "error": float((vectors["aulait"] - vectors["peer"]).abs().max()),
            "clock": clock.name, "repetitions": repetitions, "peak_rss_bytes": peak_of_process(),
            "threads": torch.get_num_threads()}


def plain(embedder: SentenceEmbedder, texts: list[str]) -> torch.Tensor:
    """The vectors by the library alone, with its own batches."""
    found: torch.Tensor = embedder.model.encode(
        texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
    return found
