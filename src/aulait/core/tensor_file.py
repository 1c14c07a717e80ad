"""How files of tensors that may be damaged are read: what is wrong with one is one kind of
error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open

from aulait.core.parsing import reason
from aulait.core.types import Tensors


def read_tensor_file(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a safetensors file, and the texts in its head.

    Raises:
        ValueError: it cannot be read as such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            return tensors, file.metadata() or {}
    # safetensors' own error, or what the system, a strange kind of number or a strange shape raises
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {reason(error)}") from error


def read_tensor_head(path: Path) -> dict[str, str]:
    """The texts in the head of a safetensors file; no tensor is read.

    Raises:
        ValueError: it cannot be read as such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception as error:  # as above
        raise ValueError(f"{type(error).__name__}: {reason(error)}") from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; nothing in it is unpickled.

    Raises:
        ValueError: it cannot be read as such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except Exception as error:  # zip, zlib, the heads of arrays: each has kinds of its own
        raise ValueError(f"{type(error).__name__}: {reason(error)}") from error
