"""One run seed gives every random choice its own generator, independent of the order in which they
are made.

Nothing in aulait draws from a global generator. Privacy noise does not come from here (see
``privacy/noise.py``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seeds:
    """The root of all seeded randomness of a run.

    Attributes:
        run: the seed written in the experiment file.
    """

    run: int

    def integer(self, purpose: str, round: int = 0, client: str = "") -> int:
        """A 63-bit integer that depends on all arguments and nothing else."""
        text = f"{self.run}|{purpose}|{round}|{client}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self, purpose: str, round: int = 0, client: str = "") -> torch.Generator:
        """A fresh CPU generator for one purpose, round and client."""
        return torch.Generator().manual_seed(self.integer(purpose, round, client))
