"""A public corpus as stage 1 retrieves from it: its texts, their vectors and their clusters.

Nothing private enters this file. Vectors are embedded once and kept as float16 in a file that is
read in blocks; the clusters are kept beside them. The clusters of the built-in mixed corpus come
with the package, and of its texts only those in the chosen clusters are ever embedded.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from aulait.core.errors import DataError, require
from aulait.core.files import replace_file
from aulait.core.parsing import reason
from aulait.core.tensor_file import read_arrays
from aulait.core.types import Record
from aulait.synthesis import clustering
from aulait.synthesis.clustering import VectorTable
from aulait.synthesis.embedding import Embedder

SMALL = 2_000  # texts that are embedded again in every process instead of being kept in a file
EMBEDDED_AT_ONCE = 1_024
PACKAGED = ("mixed.minilm.npz",)


@dataclass(frozen=True)
class CorpusIndex:
    """The clusters of a corpus.

    Attributes:
        labels: cell of every text: (N,) int64.
        centroids: (K, D) float32, of unit length.
        digest: of the texts in their order, so that clusters of another corpus are never taken.
        embedder: by whose vectors.
        asked: cells that were asked for; there may be fewer.
    """

    labels: Tensor
    centroids: Tensor
    digest: str
    embedder: str
    asked: int


@dataclass(frozen=True)
class PublicCorpus:
    """What stage 1 retrieves from.

    Attributes:
        texts: public texts or pairs.
        vectors: of the texts, by their numbers.
        index: clusters.
    """

    texts: Sequence[str | Record]
    vectors: VectorTable
    index: CorpusIndex


class EmbeddedOnDemand:
    """Vectors of texts that are embedded when they are asked for; the embedder remembers them."""

    def __init__(self, texts: Sequence[str | Record], embedder: Embedder) -> None:
        self._texts, self._embedder = texts, embedder
        self.count, self.width = len(texts), embedder.width

    def rows(self, numbers: Tensor) -> Tensor:
        """See ``VectorTable``."""
        return self._embedder.embed([shown(self._texts[i]) for i in numbers.tolist()])


class FileVectors:
    """Vectors in a file of float16 rows, read by their places, so that nothing of the file but the
    rows asked for is ever in this process's memory."""

    def __init__(self, path: Path, count: int, width: int) -> None:
        self._path, self.count, self.width = path, count, width

    def rows(self, numbers: Tensor) -> Tensor:
        """See ``VectorTable``."""
        wanted_B, found = numbers.numpy(), np.empty((len(numbers), self.width), np.float16)
        # rows that follow one another in the file are read at once
        starts = np.flatnonzero(np.diff(wanted_B, prepend=-2) != 1).tolist()
        with self._path.open("rb", buffering=0) as file:
            for first, end in itertools.pairwise([*starts, len(wanted_B)]):
                file.seek(int(wanted_B[first]) * 2 * self.width)
                file.readinto(found[first:end].data)
        return torch.nn.functional.normalize(torch.from_numpy(found).float(), dim=1)


def shown(source: str | Record) -> str:
    """A text, or a pair in full, as it is embedded."""
    return source if isinstance(source, str) else source.full


def corpus_digest(texts: Sequence[str | Record]) -> str:
    """SHA-256 over the texts in their order."""
    found = hashlib.sha256()
    for text in texts:
        found.update(hashlib.sha256(shown(text).encode()).digest())
    return found.hexdigest()


def open_corpus(texts: Sequence[str | Record], embedder: Embedder, max_tokens: int, cells: int,
                kept: Path) -> PublicCorpus:
    """The corpus with its vectors and clusters, made where they are not kept yet.

    Args:
        texts: public texts or pairs, in the order of ``public.read_public``.
        embedder: texts to vectors.
        max_tokens: of a text that it reads.
        cells: clusters wanted.
        kept: folder for vectors and clusters of large corpora; where it cannot be written, a
            temporary one is used.
    """
    digest = corpus_digest(texts)
    packaged = _packaged(digest, embedder.name, cells)
    if packaged is not None:
        return PublicCorpus(texts, EmbeddedOnDemand(texts, embedder), packaged)
    if len(texts) <= SMALL:
        vectors: VectorTable = clustering.TensorTable(
            EmbeddedOnDemand(texts, embedder).rows(torch.arange(len(texts))))
        return PublicCorpus(texts, vectors, _clustered(vectors, digest, embedder.name, cells))
    named = re.sub(r"[^A-Za-z0-9._-]+", "_", embedder.name)[-60:]
    folder = _folder(kept, f"{digest[:24]}-{named}-{max_tokens}")
    with FileLock(folder / "lock"):
        vectors = _kept_vectors(folder, texts, embedder)
        path = folder / f"clusters-{cells}.npz"
        if path.exists():
            return PublicCorpus(texts, vectors, load(path))
        index = _clustered(vectors, digest, embedder.name, cells)
        save(index, path)
    return PublicCorpus(texts, vectors, index)


def is_packaged(texts: Sequence[str | Record], embedder: str, cells: int) -> bool:
    """Whether the clusters of these texts come with the package, so that only the texts of chosen
    clusters are embedded."""
    return _packaged(corpus_digest(texts), embedder, cells) is not None


def clustered(texts: Sequence[str | Record], embedder: Embedder, cells: int) -> CorpusIndex:
    """The clusters of texts whose vectors fit in memory."""
    vectors = clustering.TensorTable(
        EmbeddedOnDemand(texts, embedder).rows(torch.arange(len(texts))))
    return _clustered(vectors, corpus_digest(texts), embedder.name, cells)


def save(index: CorpusIndex, path: Path) -> None:
    """Write the clusters to a file, whole or not at all."""
    packed = BytesIO()
    np.savez_compressed(
        packed, labels=index.labels.numpy().astype(np.uint32),
        centroids=index.centroids.numpy().astype(np.float16),
        names=np.array([index.digest, index.embedder]), asked=np.array(index.asked))
    replace_file(path, packed.getvalue())


def load(path: Path) -> CorpusIndex:
    """Read the clusters from a file.

    Raises:
        DataError: it is damaged.
    """
    try:
        found = read_arrays(path)
        digest, embedder = (str(name) for name in found["names"])
        labels_N, centroids_KD = found["labels"].astype(np.int64), found["centroids"]
        sound = (labels_N.ndim == 1 and centroids_KD.ndim == 2 and centroids_KD.dtype.kind == "f"
                 and len(centroids_KD) > 0 and bool(np.isfinite(centroids_KD).all())
                 and 0 <= labels_N.min(initial=0) <= labels_N.max(initial=0) < len(centroids_KD))
        require(sound, DataError, _damaged(path, "no clusters"))
        unit_KD = torch.nn.functional.normalize(
            torch.from_numpy(centroids_KD.astype(np.float32)), dim=1)
        return CorpusIndex(torch.from_numpy(labels_N), unit_KD, digest, embedder,
                           int(found["asked"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(_damaged(path, reason(error))) from error


def _damaged(path: Path, what: str) -> str:
    return (f"{path} holds no clusters of a corpus ({what}), expected what an earlier run kept; "
            "remove it, it is made again")


def _clustered(vectors: VectorTable, digest: str, embedder: str, cells: int) -> CorpusIndex:
    labels_N, centroids_KD = clustering.cluster(vectors, cells)
    return CorpusIndex(labels_N, centroids_KD, digest, embedder, cells)


def _packaged(digest: str, embedder: str, cells: int) -> CorpusIndex | None:
    """Clusters that come with the package, where they are of these texts."""
    for name in PACKAGED:
        path = files("aulait").joinpath("data", "assets", name)
        with np.load(path.open("rb"), allow_pickle=False) as found:
            same = [str(one) for one in found["names"]] == [digest, embedder]
            if not same or int(found["asked"]) != cells:
                continue
        return load(Path(str(path)))
    return None


def _folder(kept: Path, name: str) -> Path:
    """The folder of one corpus, or a temporary one where that cannot be written."""
    try:
        (kept / name).mkdir(parents=True, exist_ok=True)
        if os.access(kept / name, os.W_OK):
            return kept / name
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="aulait-corpus-"))


def _kept_vectors(folder: Path, texts: Sequence[str | Record], embedder: Embedder) -> FileVectors:
    """The vectors of a corpus in its folder; embedding goes on where it was cut off."""
    path, part = folder / "vectors.f16", folder / "vectors.f16.part"
    row_bytes = 2 * embedder.width
    if not path.exists():
        with part.open("ab") as file:
            done = file.tell() // row_bytes
            file.truncate(done * row_bytes)
            for first in range(done, len(texts), EMBEDDED_AT_ONCE):
                some = [shown(text) for text in texts[first : first + EMBEDDED_AT_ONCE]]
                file.write(embedder.embed(some).to(torch.float16).numpy().tobytes())
        part.replace(path)
    found, whole = path.stat().st_size, len(texts) * row_bytes
    require(found == whole, DataError,
            f"{path} has {found:,} bytes, expected {whole:,} of vectors; remove it, it is "
            "made again")
    return FileVectors(path, len(texts), embedder.width)
