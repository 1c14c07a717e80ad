"""Where a mechanism's noise comes from; ``aulait.privacy.noise`` has the real source and a seeded
one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the plan and the command line need no torch
    from torch import Tensor

RandomWords = Callable[[int], NDArray[np.uint64]]  # so many random 64-bit words


class NoiseSource(Protocol):
    """Where noise comes from.

    Attributes:
        private: whether nobody can predict the noise. False makes the ledger say that the run is
            not private.
    """

    @property
    def private(self) -> bool:
        """Whether nobody can predict the noise."""

    def at(self, release: int) -> NoiseSource:
        """The source for one release, so that a resumed run draws what the interrupted one would
        have drawn."""

    def step(self, std: float) -> float:
        """The step of the grid on which noise of this standard deviation lies."""

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Independent N(0, std²) numbers, each rounded to the nearest multiple of ``step(std)``;
        float64, on the CPU."""

    def rounded(self, less: Tensor, std: float) -> Tensor:
        """As ``gaussian``, with ``less`` steps of the grid taken from each number before it is
        rounded; each of them in [0, 1)."""

    def client_words(self, client: str) -> RandomWords:
        """The randomness of one client that adds noise of its own, under secure aggregation; of
        this release."""
