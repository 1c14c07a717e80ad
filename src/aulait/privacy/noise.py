"""Gaussian noise on a public grid: from the operating system's entropy for real runs, from a seed
for tests and reproductions.

A float32 or float64 number with noise has lowest bits that depend on the number before the noise,
and they tell which of two sums was noised. So sums and noise live on one grid that is fixed by
sigma alone: steps of g = 2^(floor(log2 sigma) - 20). What gets the noise is rounded toward zero
onto the grid, summand by summand (``toward_zero``), which lengthens no vector and so keeps the
sensitivity; sums of multiples of g are exact in float64 below 2^53 g; the noise is a multiple of g
too. The set of values that can come out is then the same for every data set.

The noise is a discrete Gaussian: the multiple k g has probability proportional to
exp(-(k g)² / (2 sigma²)). It differs from N(0, sigma²) rounded to the grid, for which the
accounting holds exactly (rounding the sum of a grid value and the noise is post-processing of the
Gaussian mechanism), by a factor within 1 ± 2^-37 for every k up to 13 sigma, and the sampler by
one within 1 ± 2^-45. With d coordinates in T releases that adds at most d T 2^-36 to epsilon,
0.0004 at d T = 25 million; the accounting neglects it.

Source: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
algorithms 2 and 3; Mironov, "On significance of the least significant bits for differential
privacy", CCS 2012, for the attack.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aulait.core.errors import PrivacyError, require

GRID_BITS = 20
_MOST_TRIES = 1000  # of a decision; honest entropy needs more with probability below e^-300
_EXACT = 2.0**53  # multiples of a power of two below this many steps are exact in float64

_Words = np.ndarray[tuple[int], np.dtype[np.uint64]]
_Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]


def grid(std: float) -> float:
    """The step of the public grid for noise of this standard deviation; 0 where there is none.

    Raises:
        PrivacyError: std is negative, infinite, not a number, or so small that no step is left.
    """
    _check(std)
    if std == 0.0:
        return 0.0
    step = math.ldexp(1.0, math.frexp(std)[1] - 1 - GRID_BITS)
    require(step >= 2.0**-1000, PrivacyError,
            f"noise standard deviation is {std}, expected at least 1e-290; check the bound")
    return step


def toward_zero(values: Tensor, step: float) -> Tensor:
    """The values on the grid, each moved toward zero, so that no norm grows.

    Args:
        values: any floating tensor without NaN.
        step: of the grid, a power of two; 0 leaves the values as they are.

    Returns:
        float64, on the values' device.
    """
    exact = values.detach().to(torch.float64)
    return exact if step == 0.0 else torch.trunc(exact / step) * step


def check_exact(largest: float, step: float) -> None:
    """Raise unless sums of grid values are exact up to this size.

    Args:
        largest: public bound of the absolute value of a sum.
        step: of the grid; 0 is no grid.

    Raises:
        PrivacyError: the noise is too small beside what it must hide.
    """
    require(step == 0.0 or largest < _EXACT * step, PrivacyError,
            f"a sum of up to {largest:.3g} found with noise on a grid of step {step:.3g}, expected "
            "less than 2^53 steps; raise the noise multiplier")


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

    def step(self, std: float) -> float:
        """The step of the grid on which noise of this standard deviation lies."""

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Independent noise of standard deviation ``std``, multiples of ``step(std)``, float64, on
        the CPU."""


class SystemNoise:
    """Noise from ``os.urandom``: a cryptographic source without a seed and without a state that
    could be saved."""

    private = True

    def at(self, release: int) -> SystemNoise:
        """Itself: every draw is fresh, whatever the release."""
        return self

    def step(self, std: float) -> float:
        """That of the public grid."""
        return grid(std)

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Independent discrete Gaussian numbers.

        Args:
            shape: shape of the result.
            std: standard deviation, finite and at least 0.

        Returns:
            Tensor of ``shape``, float64, multiples of ``grid(std)``.

        Raises:
            PrivacyError: std is negative, infinite or not a number.
        """
        return _on_grid(_system_words, shape, std)


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

    def step(self, std: float) -> float:
        """That of the public grid."""
        return grid(std)

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """The next numbers of this stream: N(0, std²) rounded to ``grid(std)``, float64.

        Raises:
            PrivacyError: std is negative, infinite or not a number.
        """
        step = grid(std)
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64) * std
        return values if step == 0.0 else torch.round(values / step) * step


def _on_grid(words: Callable[[int], _Words], shape: tuple[int, ...], std: float) -> Tensor:
    """Discrete Gaussian numbers from a source of random 64-bit words."""
    step = grid(std)
    if step == 0.0:
        return torch.zeros(shape, dtype=torch.float64)
    drawn = discrete_gaussian(math.prod(shape), std / step, words)
    return torch.from_numpy(drawn * step).reshape(shape)


def discrete_gaussian(count: int, sigma: float, words: Callable[[int], _Words]) -> _Numbers:
    """Whole numbers k with probability proportional to exp(-k² / (2 sigma²)).

    Rejection from a discrete Laplace distribution. Every decision compares a uniform number of 53
    significant bits, also near zero, with a probability that is right to 2^-46 of itself.

    Args:
        count: how many.
        sigma: at least 1 and at most 2^40.
        words: n -> n independent uniform 64-bit words.

    Raises:
        PrivacyError: the words are not random.
    """
    scale = math.floor(sigma) + 1
    found: list[_Numbers] = [np.zeros(0)]
    missing = count
    for _ in range(_MOST_TRIES):
        if missing == 0:
            return np.concatenate(found)
        laplace = _discrete_laplace(int(missing * 1.6) + 16, scale, words)
        distance = np.abs(laplace) - sigma * sigma / scale
        accepted = _uniforms(len(laplace), words) <= np.exp(-((distance / sigma) ** 2) / 2)
        found.append(laplace[accepted][:missing])
        missing -= len(found[-1])
    raise PrivacyError("the source of randomness repeats itself, expected independent bits; no "
                       "noise can be drawn on this machine")


def _discrete_laplace(tries: int, scale: int, words: Callable[[int], _Words]) -> _Numbers:
    """Some whole numbers k with probability proportional to exp(-|k| / scale); fewer than
    ``tries``."""
    low = _below(tries, scale, words)
    low = low[_uniforms(len(low), words) <= np.exp(-low / scale)]
    # whole multiples of the scale: a geometric number of successes of probability 1/e
    high = np.zeros(len(low))
    going = np.arange(len(low))
    for _ in range(_MOST_TRIES):
        if not len(going):
            break
        going = going[_uniforms(len(going), words) <= math.exp(-1.0)]
        high[going] += 1.0
    size = low + scale * high
    negative = (words(len(size)) & np.uint64(1)).astype(bool)
    kept = ~(negative & (size == 0.0))  # zero would be counted twice
    size[negative] *= -1.0
    signed: _Numbers = size[kept]
    return signed


def _below(count: int, bound: int, words: Callable[[int], _Words]) -> _Numbers:
    """Whole numbers uniform on 0 ... bound - 1, without a bias; fewer than ``count`` at times."""
    limit = (2**64 // bound) * bound
    drawn = words(count)
    drawn = drawn[drawn <= np.uint64(limit - 1)]
    low: _Numbers = (drawn % np.uint64(bound)).astype(np.float64)
    return low


def _uniforms(count: int, words: Callable[[int], _Words]) -> _Numbers:
    """Numbers uniform on (0, 1], with 53 significant bits down to 2^-75."""
    high, low = words(count).astype(np.float64), words(count).astype(np.float64)
    drawn: _Numbers = (high + (low + 1.0) * 2.0**-64) * 2.0**-64
    return drawn


def _system_words(count: int) -> _Words:
    return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)


def _check(std: float) -> None:
    require(
        math.isfinite(std) and std >= 0,
        PrivacyError,
        f"noise standard deviation is {std}, expected a finite number >= 0; check the noise "
        "multiplier and the bound",
    )
