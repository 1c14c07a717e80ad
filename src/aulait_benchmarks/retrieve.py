"""``aulait bench retrieve``: what a level of votes over a large public corpus takes here.

Vectors are made up: directions of subjects with noise, so that there is something to find; they lie
in a file, as those of a real corpus do. Embedding a corpus is not part of it: that is done once and
kept, and its seconds follow from the embedder. Everything runs in a fresh process, whose peak
memory is told.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from aulait.core.cohort import Cohort
from aulait.core.files import JsonObject
from aulait.core.seeds import Seeds
from aulait.core.types import ClientRequest, ClientUpdate
from aulait.methods.contract import Server
from aulait.privacy.accounting import Accountant, calibrate
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.resources.meters import peak_of_process
from aulait.synthesis import clustering, retrieval
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.corpus_index import CorpusIndex, FileVectors, PublicCorpus
from aulait.synthesis.embedding import votes
from aulait.synthesis.population import EvolutionState
from aulait.synthesis.private_evolution import vote_bound
from aulait.synthesis.retrieval import RetrievalContext
from aulait.synthesis.voting import VoteRule

Found = TypeVar("Found")
WIDTH, SUBJECTS, SPREAD = 384, 1_000, 0.9
PRIVACY = PrivacyConfig(epsilon=8.0, delta=1e-5, relation="add-remove")
LEVELS = 2


@dataclass(frozen=True)
class Sizes:
    """How large the corpus and the federation are."""

    texts: int
    clients: int = 100
    records: int = 30
    cells: int = 256


FULL, QUICK = Sizes(1_000_000), Sizes(20_000)


def measure(sizes: Sizes) -> JsonObject:
    """Seconds of the clustering, of every level and of the draw, and the peak of memory, in a
    process of its own."""
    place = str(Path(__file__).resolve().parents[1])
    script = (f"import sys; sys.path.insert(0, {place!r}); "
              "from aulait_benchmarks.retrieve import here; import json; "
              f"print(json.dumps(here({sizes.texts}, {sizes.clients}, {sizes.records}, "
              f"{sizes.cells})))")
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                          check=True)
    found: JsonObject = json.loads(done.stdout)
    return found


def here(texts: int, clients: int, records: int, cells: int) -> JsonObject:
    """``measure`` in this process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors.f16")
        with path.open("wb") as file:
            for rows_BD in _made_up(texts):
                file.write(rows_BD.to(torch.float16).numpy().tobytes())
        vectors = FileVectors(path, texts, WIDTH)
        (labels_N, centroids_KD), cluster_s = _timed(lambda: clustering.cluster(vectors, cells))
        shown = [f"text {i} of a corpus of short texts, about as long as a sentence, which this "
                 "is" for i in range(texts)]
        corpus = PublicCorpus(shown, vectors, CorpusIndex(labels_N, centroids_KD, "", "", cells))
        levels, draw_s = _levels(corpus, _records(clients, records), vote_bound(records), cells)
    return {"texts": texts, "clients": clients, "records": records, "cells": cells,
            "threads": torch.get_num_threads(), "vector_bytes": 2 * texts * WIDTH,
            "cluster_s": cluster_s, "levels": levels, "draw_s": draw_s,
            "peak_bytes": peak_of_process()}


def _levels(corpus: PublicCorpus, own: dict[str, Tensor], bound: float,
            cells: int) -> tuple[list[dict[str, float]], float]:
    """Seconds and candidates of every level, and seconds of drawing 1,000 texts."""
    config = SynthesisConfig.model_validate(
        {"source": "retrieve", "retrieve": {"cells": cells, "levels": LEVELS}})
    context = RetrievalContext(Seeds(0), corpus, VoteRule(1, bound))
    accountant = Accountant(1e-5, {"proxy": 8.0})
    noise_multiplier = calibrate(8.0, 1e-5, LEVELS)
    aggregator = PrivateAggregator(PRIVACY, Ledger(None), accountant, SystemNoise(),
                                   KnownSites(frozenset()))

    def ask(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
        for request in requests:
            counts_J = votes(own[request.client], request.tensors["embeddings"])
            yield ClientUpdate(request.client, {"votes": counts_J})

    state, found = EvolutionState(0, ()), []
    for level in range(1, config.levels + 1):
        cohort = Cohort(round=level, local=tuple(own), proxies={}, planned=len(own),
                        noise_multiplier=noise_multiplier, role="proxy")
        step = partial(retrieval.step, config, context, state, cohort, Server(ask, aggregator))
        processor_s = time.process_time()
        (state, info), spent_s = _timed(step)
        found.append({"seconds": spent_s, "processor_s": time.process_time() - processor_s,
                      "candidates": info["candidates"], "kept": info["kept"],
                      "down_bytes": info["down_bytes"], "up_bytes": info["up_bytes"]})
    _, draw_s = _timed(lambda: retrieval.drawn(context, state, 1_000, "retrieved"))
    return found, draw_s


def _subjects() -> Tensor:
    """Directions of subjects: (SUBJECTS, D)."""
    return torch.nn.functional.normalize(
        torch.randn(SUBJECTS, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)


def _near(subjects_B: Tensor, generator: torch.Generator) -> Tensor:
    """Vectors near the directions of some subjects."""
    noise_BD = torch.randn(len(subjects_B), WIDTH, generator=generator) / WIDTH**0.5
    return torch.nn.functional.normalize(_subjects()[subjects_B] + SPREAD * noise_BD, dim=1)


def _made_up(texts: int) -> Iterator[Tensor]:
    """Vectors of the corpus, in blocks."""
    generator = torch.Generator().manual_seed(2)
    for first in range(0, texts, clustering.BLOCK_ROWS):
        count = min(clustering.BLOCK_ROWS, texts - first)
        yield _near(torch.randint(SUBJECTS, (count,), generator=generator), generator)


def _records(clients: int, records: int) -> dict[str, Tensor]:
    """Vectors of every client's records, of some fifty subjects."""
    generator = torch.Generator().manual_seed(3)
    return {f"client-{k:03d}": _near(torch.randint(50, (records,), generator=generator), generator)
            for k in range(clients)}


def _timed(work: Callable[[], Found]) -> tuple[Found, float]:
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started
