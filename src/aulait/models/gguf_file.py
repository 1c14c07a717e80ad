"""A GGUF file as a folder that transformers loads like any other: its quantised blocks unpacked to
float32 once, kept in the user's cache under the hash of the file.

A folder in the cache is whole or not there: it is made beside its place under a lock and renamed.
Its manifest holds the hash of every file, compared before every use, so that a file cut short or
changed is made again instead of being trained on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock

from aulait.core.errors import ModelError, install, require
from aulait.core.parsing import parsed_json
from aulait.core.places import CACHE_VARIABLE, user_cache
from aulait.models.quiet import quiet

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT: Final = 1  # of a folder; another one is another folder
_MANIFEST: Final = "aulait.json"
_MAGIC: Final = b"GGUF"
_LOG: Final = logging.getLogger(__name__)
_READERS_FAULTS: Final = Exception  # a damaged file makes a reader fail as its bytes happen to be


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits; read again by this process when its size or time
    has changed."""
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns)


@cache
def _digest(path: Path, size: int, time_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reader_problems(what: str) -> list[str]:
    """One line where the package that reads GGUF files is missing."""
    if importlib.util.find_spec("gguf") is not None:
        return []
    return [f"{what} is a GGUF file, which needs the package gguf, and it is missing; "
            f"{install('gguf')}"]


def converted(path: Path, sha256: str | None = None) -> Path:
    """The folder of a GGUF file's model and tokenizer, made on first use.

    Args:
        path: the file.
        sha256: of it, where it is known already.

    Raises:
        ModelError: the file is damaged or of a kind that transformers does not read, its reader is
            missing, or the cache cannot be written.
    """
    problems = reader_problems(f"'{path}'")
    require(not problems, ModelError, " ".join(problems))
    _check_head(path)
    key = (sha256 or digest(path))[:24]
    place = user_cache() / "models" / f"{path.stem}-{key}-{FORMAT}"
    with _locked(place):
        if not _is_whole(place):
            _make(path, place)
    return place


def _check_head(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    require(head == _MAGIC, ModelError,
            f"'{path}' is no GGUF file: it begins with {head!r}, expected {_MAGIC!r}; download it "
            "again")


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One process at a time; the others wait for what it makes."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            yield
    except OSError as error:
        raise ModelError(
            f"the converted model cannot be kept in {place.parent} ({error.strerror or error}); "
            "name a folder that can be written, with room, in the environment variable "
            f"{CACHE_VARIABLE}"
        ) from error


def _is_whole(place: Path) -> bool:
    """Whether every file of the folder is there and has the bytes it was written with."""
    try:
        hashes: dict[str, str] = parsed_json((place / _MANIFEST).read_bytes())["sha256"]
        return bool(hashes) and all(digest(place / name) == told for name, told in hashes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make(path: Path, place: Path) -> None:
    """Write the folder beside its place and rename it."""
    need, free = _unpacked_bytes(path), shutil.disk_usage(place.parent).free
    require(need < free, ModelError,
            f"'{path}' takes {need / 1e9:.2f} GB when unpacked and {place.parent} has "
            f"{free / 1e9:.2f} GB; make room, or name another folder in {CACHE_VARIABLE}")
    _LOG.info("unpacking %s once into %s", path.name, place)
    model, tokenizer = _read(path)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{place.name}.") as beside:
        folder = Path(beside) / "new"
        folder.mkdir()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        manifest = {"format": FORMAT, "source": path.name,
                    "sha256": {file.name: digest(file) for file in sorted(folder.iterdir())}}
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
        for file in folder.iterdir():
            _to_disk(file)
        if place.exists():  # damaged; whoever reads it still has its files open
            place.rename(Path(beside) / "old")
        folder.rename(place)


def _to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, as a plain transformers model, and its tokenizer."""
    # takes seconds to import
    import torch
    import transformers

    found = {"gguf_file": path.name}
    options: dict[str, object] = {}
    if hasattr(transformers, "GgufConfig"):  # in newer versions blocks may stay packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(path.parent, **found)
            auto = (transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder
                    else transformers.AutoModelForCausalLM)
            model = auto.from_pretrained(path.parent, dtype=torch.float32, **found, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **found)
    except _READERS_FAULTS as error:
        raise _unreadable(path, error) from error
    return model, tokenizer


def _unpacked_bytes(path: Path) -> int:
    """Size of all weights in float32."""
    from gguf import GGUFReader  # optional

    try:
        return 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)
    except _READERS_FAULTS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return ModelError(
        f"'{path}' cannot be read ({cause}); expected a whole GGUF file of an architecture that "
        "transformers reads (its page on GGUF lists them)")
