"""Gaussian noise: from the operating system's entropy for real runs, from a seed for tests and
reproductions.

Samples are floating-point numbers with 53 random bits behind each uniform. Attacks on the lowest
bits of floating-point noise are out of scope and said so in the documentation; the aggregator
rounds what it releases to float32.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aulait.core.errors import PrivacyError, require


class NoiseSource(Protocol):
    """Where the aggregator takes its noise from.

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

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Independent N(0, std^2) numbers, float64, on the CPU."""


class SystemNoise:
    """Noise from ``os.urandom``: a cryptographic source without a seed and without a state that
    could be saved."""

    private = True

    def at(self, release: int) -> SystemNoise:
        """Itself: every draw is fresh, whatever the release."""
        return self

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Independent N(0, std^2) numbers by the Box-Muller transform.

        Two uniforms with 53 random bits make one number, so no number depends on another. The
        largest possible absolute value is 8.57 std; the mass beyond it is 1e-17.

        Args:
            shape: shape of the result.
            std: standard deviation, finite and at least 0.

        Returns:
            Tensor of ``shape``, float64.

        Raises:
            PrivacyError: std is negative, infinite or not a number.
        """
        _check(std)
        count = math.prod(shape)
        radius = np.sqrt(-2.0 * np.log(_uniforms(count)))
        values = radius * np.cos(2.0 * math.pi * _uniforms(count))
        return torch.from_numpy(values * std).reshape(shape)


class SeededNoise:
    """Reproducible noise. Whoever knows the seed can subtract it, so a run with it is not private.

    Args:
        seed: the seed of all releases.
        release: number of the release it is for; each one has its own stream.
    """

    private = False

    def __init__(self, seed: int, release: int = 0) -> None:
        self._seed = seed
        digest = hashlib.sha256(f"noise|{seed}|{release}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def at(self, release: int) -> SeededNoise:
        """The stream of one release from its start."""
        return SeededNoise(self._seed, release)

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """The next N(0, std^2) numbers of this stream, float64.

        Raises:
            PrivacyError: std is negative, infinite or not a number.
        """
        _check(std)
        return torch.randn(shape, generator=self._generator, dtype=torch.float64) * std


def _uniforms(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Numbers uniform on (0, 1], multiples of 2^-53; never 0, so that their logarithm is finite."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53


def _check(std: float) -> None:
    require(
        math.isfinite(std) and std >= 0,
        PrivacyError,
        f"noise standard deviation is {std}, expected a finite number >= 0; check the noise "
        "multiplier and the bound",
    )
