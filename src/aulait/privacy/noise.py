"""Gaussian noise on a public grid: from the operating system's entropy for real runs, from a seed
for tests and reproductions.

**The grid.** A float32 or float64 number with noise has lowest bits that depend on the number
before the noise, and they tell which of two sums was noised. So sums and noise live on one grid
that is fixed by sigma alone: steps of g = 2^(floor(log2 sigma) - 20). What gets noise is rounded
toward zero onto the grid, summand by summand (``toward_zero``), which lengthens no vector and so
keeps the sensitivity; sums of multiples of g are exact in float64 (``noise_grid.check_exact``);
the noise is N(0, sigma²) rounded to a multiple of g. For a sum S on the grid, S + round(N) =
round(S + N): what is released is the Gaussian mechanism followed by a rounding that knows nothing
of the data. It is accounted as the Gaussian mechanism, and the set of values that can come out is
the same for every data set.

**The sampler.** ``SystemNoise`` draws round(N / g) exactly but for a total variation of less than
``TOTAL_VARIATION`` = 2^-200 a number. Box and Muller's formula is computed in float64 from 64
random bits for each of its two uniforms. Its error is below 2^-40 sigma; where a number lies so
near to the boundary between two multiples of g that this error could decide, or where a uniform is
so near to 0 or 1 that the error could be larger, 192 further random bits are drawn for both
uniforms and the formula is computed to 90 digits. No value up to 18.8 sigma is out of reach. Over
d numbers in T releases of (epsilon, delta), the exact delta is at most
delta + (1 + e^epsilon) · d · T · 2^-200: for epsilon below 50 and d · T below 2^40 that adds 1e-26,
which the accounts leave out. That the entropy of the operating system cannot be told from random
bits is assumed.

Source: Mironov, "On significance of the least significant bits for differential privacy", CCS
2012, for the attack; the doubtful cases are decided as in Ziv, "Fast evaluation of elementary
mathematical functions with correctly rounded last bit", ACM TOMS 1991. Why not a discrete
Gaussian: docs/decisions/0013-noise-on-a-grid.md.
"""

from __future__ import annotations

import hashlib
import math
import os
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.privacy.noise_grid import grid
from aulait.privacy.noise_source import RandomWords

TOTAL_VARIATION = 2.0**-200
_DOUBT = 2.0**-40  # of sigma; far above the error of the formula in float64
_EDGE = np.uint64(1 << 40)  # of 2^64: nearer to 0 or 1 than this, a uniform needs more bits
_MORE_BITS = 192
_PRECISE = Context(prec=90, rounding=ROUND_HALF_EVEN)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510"
              "58209749445923078164062862089986280348253421170679")


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
        """Independent N(0, std²) numbers rounded to the grid; the head of this file says how, and
        how exactly.

        Args:
            shape: shape of the result.
            std: standard deviation, at least 0.

        Returns:
            Tensor of ``shape``, float64, multiples of ``grid(std)``.

        Raises:
            PrivacyError: as ``grid``, or the entropy repeats itself.
        """
        return self.rounded(torch.zeros(shape, dtype=torch.float64), std)

    def rounded(self, less: Tensor, std: float) -> Tensor:
        """As ``gaussian``, with so many steps of the grid taken from each number before it is
        rounded.

        Args:
            less: float64, in [0, 1); what is drawn is as exact as of ``gaussian``.
            std: standard deviation, at least 0; with 0 nothing is taken.

        Raises:
            PrivacyError: as ``gaussian``.
        """
        step, count = grid(std), less.numel()
        if not step:
            return torch.zeros_like(less)
        shift = less.reshape(-1).numpy()
        radius_words, angle_words = _random_words(count), _random_words(count)
        ratio = std / step  # in [2^20, 2^21), exact
        uniform = np.maximum(radius_words, _EDGE) * 2.0**-64
        radius = np.sqrt(-2.0 * np.log(uniform))
        value = radius * np.cos(angle_words * (2.0 * math.pi * 2.0**-64)) * ratio - shift
        near = np.abs(value - np.floor(value) - 0.5) <= _DOUBT * ratio
        doubtful = near | (radius_words < _EDGE) | (radius_words > ~_EDGE)
        multiples = np.rint(value)
        for i in np.flatnonzero(doubtful):
            multiples[i] = _decided(int(radius_words[i]), int(angle_words[i]), ratio,
                                    Decimal(float(shift[i])))
        return torch.from_numpy(multiples * step).reshape(less.shape)

    def client_words(self, client: str) -> RandomWords:
        """The system's entropy, for every client."""
        return _random_words


class SeededNoise:
    """Reproducible noise. Whoever knows the seed can subtract it, so a run with it is not private.

    Args:
        seed: the seed of all releases.
        release: number of the release it is for; each one has its own stream.
    """

    private = False

    def __init__(self, seed: int, release: int = 0) -> None:
        self._seed, self._release = seed, release
        digest = hashlib.sha256(f"noise|{seed}|{release}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def at(self, release: int) -> SeededNoise:
        """The stream of one release from its start."""
        return SeededNoise(self._seed, release)

    def step(self, std: float) -> float:
        """That of the public grid."""
        return grid(std)

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """The next N(0, std²) numbers of this stream, float64, rounded to the grid.

        Raises:
            PrivacyError: as ``grid``.
        """
        return self.rounded(torch.zeros(shape, dtype=torch.float64), std)

    def rounded(self, less: Tensor, std: float) -> Tensor:
        """The next of them, with so many steps of the grid taken from each before it is
        rounded."""
        step = grid(std)
        drawn = torch.randn(less.shape, generator=self._generator, dtype=torch.float64) * std
        return (drawn / step - less).round() * step if step else drawn

    def client_words(self, client: str) -> RandomWords:
        """The stream of one client in this release."""
        digest = hashlib.sha256(f"noise|{self._seed}|{self._release}|{client}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))

        def words(count: int) -> NDArray[np.uint64]:
            return generator.integers(0, 1 << 64, count, dtype=np.uint64, endpoint=False)

        return words


def _random_words(count: int) -> NDArray[np.uint64]:
    """64 random bits for each of so many numbers.

    Raises:
        PrivacyError: they are all the same, which honest entropy does with probability 2^-64.
    """
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    require(count < 2 or bool((words != words[0]).any()), PrivacyError,
            "the source of randomness repeats itself, expected independent bits; no noise can be "
            "drawn on this machine")
    return words


def _decided(radius_word: int, angle_word: int, ratio: float,
             less: Decimal = Decimal(0)) -> float:
    """The multiple of the grid for one number: Box and Muller's formula from the 64 bits that are
    known of both uniforms and 192 further ones, to 90 digits.

    Args:
        radius_word: leading 64 bits of the uniform behind the radius.
        angle_word: leading 64 bits of the uniform behind the angle.
        ratio: sigma over the step of the grid.
        less: steps of the grid that are taken from it.
    """
    with localcontext(_PRECISE):
        radius = (-2 * _with_more_bits(radius_word).ln()).sqrt()
        value = radius * _cosine(2 * _PI * _with_more_bits(angle_word)) * Decimal(ratio) - less
        return float(value.to_integral_value(ROUND_HALF_EVEN))


def _with_more_bits(word: int) -> Decimal:
    """A number in (0, 1) of 256 random bits, whose first 64 are given; the middle of its
    interval."""
    more = int.from_bytes(os.urandom(_MORE_BITS // 8), "big")
    return Decimal(2 * ((word << _MORE_BITS) | more) + 1) / Decimal(1 << (64 + _MORE_BITS + 1))


def _cosine(angle: Decimal) -> Decimal:
    """Its series, for angles in [0, 2 pi], in the precision of the context."""
    term = total = Decimal(1)
    place = 0
    while abs(term) > Decimal("1e-95"):
        place += 2
        term = -term * angle * angle / (place * (place - 1))
        total += term
    return total
