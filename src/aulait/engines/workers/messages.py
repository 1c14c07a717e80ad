"""What goes between a run and its workers, as bytes.

Both ends are processes that the run itself has started, from the same code and on behalf of the
same user, and nobody else can write into the pipes between them. So values are pickled, which
would be wrong between institutions (``deployment/protocol/envelope.py`` has no pickle).

A tensor is written by its values alone. PyTorch's own way would move it into shared memory, of
which containers have little, or write the whole storage of which a tensor is a view. Equal objects
are written once: sites that share a start, a basis or a folded update share it at the worker too,
and so the same passes.
"""

from __future__ import annotations

import copyreg
import io
import pickle  # nosec B403  # between processes of one run: see above
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from aulait.core.errors import AulaitError, DeviceError
from aulait.engines.workers.contract import ShareResult

LENGTH = 8  # bytes that say how long a message is
Reduced = tuple[Callable[..., Tensor], tuple[bytes, torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class WorkerReply:
    """What a worker answers.

    Attributes:
        result: of the share; empty where it was only to get ready, or failed.
        error: why it failed; None where it did not.
    """

    result: ShareResult = field(default_factory=ShareResult)
    error: AulaitError | None = None

    @classmethod
    def failed(cls, error: Exception) -> WorkerReply:
        """The reply of a worker that met an error, as one line. What a library said is left out: it
        may be words of the records, and the line goes into logs."""
        if isinstance(error, AulaitError):
            return cls(error=error)
        where = traceback.extract_tb(error.__traceback__)[-1:]
        at = "".join(f" in {Path(own.filename).name}, line {own.lineno}" for own in where)
        return cls(error=DeviceError(
            f"a worker could not train: {type(error).__name__}{at}; go on with --resume and "
            "engine.name = 'inline', engine.workers = 1, where all that it says is seen"))


def _reduced(value: Tensor) -> Reduced:
    """How a tensor is made again."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return _tensor, (flat.view(torch.uint8).numpy().tobytes(), value.dtype, tuple(value.shape))


def _tensor(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor in memory of its own."""
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).clone().reshape(shape)


def packed(value: object) -> bytes:
    """A value as bytes."""
    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {**copyreg.dispatch_table, Tensor: _reduced}
    pickler.dump(value)
    return out.getvalue()


def unpacked(content: bytes) -> object:
    """The value again."""
    return pickle.loads(content)  # nosec B301  # between processes of one run: see above


def send(stream: BinaryIO, content: bytes) -> None:
    """One message into a pipe."""
    stream.write(len(content).to_bytes(LENGTH, "big"))
    stream.write(content)
    stream.flush()


def receive(stream: BinaryIO) -> bytes | None:
    """The next message of a pipe; None where the other end is gone."""
    head = stream.read(LENGTH)
    if len(head) < LENGTH:
        return None
    length = int.from_bytes(head, "big")
    content = stream.read(length)
    return content if len(content) == length else None
