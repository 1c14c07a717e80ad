"""By what the adapters' dropout knows a row of a training pass: its record, not its company."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import Tensor

from aulait.core.types import Record


def row_keys(marks: Iterable[tuple[int, int, Record]]) -> Tensor:
    """Keys of rows, of each its site's seed, the step, and the record."""
    found = [blake2b(repr((seed, step, record.asked, record.text)).encode(), digest_size=4).digest()
             for seed, step, record in marks]
    return torch.tensor([int.from_bytes(digest, "big") for digest in found])
