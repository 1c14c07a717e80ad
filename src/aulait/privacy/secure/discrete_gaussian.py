"""The discrete Gaussian: how a client draws its part of the noise, and what a sum of parts is
worth.

**Sampler.** N_Z(0, s²) has probabilities proportional to exp(-x²/(2 s²)) on the whole numbers. It
is drawn by rejection from the discrete Laplace distribution of scale t = floor(s) + 1, which is
itself drawn by rejections. Every rejection is a comparison of a uniform number with exp(-g), g >= 0
rational in whole numbers and s. It is decided in float64 from 64 random bits; where the two are so
near that the rounding of float64 could decide, 192 further bits are drawn and the comparison is
made to 90 digits. So every number is right but for a total variation of less than 2^-200, as that
of ``aulait.privacy.noise``.

**Sum.** A sum of m discrete Gaussians is no discrete Gaussian, but the probabilities of the two
differ by a factor within exp(±tau), tau = 10 sum_{k=1}^{m-1} exp(-2 pi² s² k/(k+1)), for s >= 1/2.
A coordinatewise sum over d coordinates with L2 sensitivity D is therefore epsilon²/2-concentrated
differentially private with

    epsilon = D / (sqrt(m) s) + tau sqrt(d)

``concentrated_multiplier`` is 1 / epsilon: with respect to Rényi divergences the sum is at least as
private as a Gaussian of that noise multiplier. Further independent summands are post-processing.

Sources: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020;
Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation", ICML 2021, Proposition 14.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aulait.core.errors import PrivacyError, require
from aulait.privacy.noise_source import RandomWords

_DOUBT: Final = 2.0**-44  # far above the error of exp in float64
_MORE_WORDS: Final = 3
_PRECISE: Final = Context(prec=90, rounding=ROUND_HALF_EVEN)
_LEAST, _MOST = 8.0, 2.0**24  # of s; below 8 tau is no longer negligible

Whole = NDArray[np.int64]
Numbers = NDArray[np.float64]


def discrete_gaussian(count: int, s: float, words: RandomWords) -> Whole:
    """Independent numbers of N_Z(0, s²).

    Args:
        count: how many.
        s: in [8, 2^24].
        words: gives so many random 64-bit words.

    Raises:
        PrivacyError: s is outside its range.
    """
    require(_LEAST <= s <= _MOST, PrivacyError,
            f"a client's noise of {s:.3g} steps of the grid found, expected {_LEAST:g} to "
            f"{_MOST:.3g}; fewer clients or another noise multiplier are needed")
    scale = math.floor(s) + 1
    found = np.zeros(0, dtype=np.int64)
    while len(found) < count:
        # 3 of 4 are kept, so one or two passes are enough as a rule
        tried = _discrete_laplace(math.ceil(1.4 * (count - len(found))) + 16, scale, words)
        kept = _accepted((np.abs(tried) - s * s / scale) ** 2 / (2.0 * s * s), words,
                         partial(_exact_rate, tried, s, scale))
        found = np.concatenate([found, tried[kept]])
    return found[:count]


def concentrated_multiplier(multiplier: float, summands: int, s: float, numbers: int) -> float:
    """The noise multiplier of the Gaussian whose Rényi divergences bound those of the sum.

    Args:
        multiplier: sqrt(summands) · s over the sensitivity, in steps both.
        summands: m, whose noise counts.
        s: of one summand, at least 1/2.
        numbers: d, coordinates.
    """
    tau = 10.0 * math.fsum(math.exp(-2.0 * math.pi**2 * s * s * k / (k + 1))
                           for k in range(1, summands))
    return 1.0 / (1.0 / multiplier + tau * math.sqrt(numbers))


def _discrete_laplace(count: int, scale: int, words: RandomWords) -> Whole:
    """Numbers with probabilities proportional to exp(-|x|/scale)."""
    found = np.zeros(0, dtype=np.int64)
    while len(found) < count:
        more = math.ceil(1.8 * (count - len(found))) + 16
        low = _uniform(more, scale, words)
        low = low[_accepted(low / scale, words, partial(_share, low, scale))]
        high = _geometric(len(low), words)
        value = low + scale * high
        negative = (words(len(value)) & np.uint64(1)).astype(bool)
        once = ~(negative & (value == 0))  # zero has one sign
        found = np.concatenate([found, np.where(negative, -value, value)[once]])
    return found[:count]


def _uniform(count: int, below: int, words: RandomWords) -> Whole:
    """Uniform numbers in [0, below), exactly: words beyond the last whole multiple are left."""
    limit = np.uint64((1 << 64) // below * below - 1)
    found = np.zeros(0, dtype=np.uint64)
    while len(found) < count:
        some = words(count - len(found))
        found = np.concatenate([found, some[some <= limit]])
    return (found % np.uint64(below)).astype(np.int64)


def _geometric(count: int, words: RandomWords) -> Whole:
    """How often exp(-1) is accepted in a row."""
    value = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while len(going):
        going = going[_accepted(np.ones(len(going)), words, lambda i: Decimal(1))]
        value[going] += 1
    return value


def _accepted(rates: Numbers, words: RandomWords,
              exact: Callable[[int], Decimal]) -> NDArray[np.bool_]:
    """Each with probability exp(-rate).

    Args:
        rates: g, at least 0, in float64.
        words: gives random words.
        exact: index -> g to 90 digits, in the precision of the context.
    """
    drawn = words(len(rates))
    uniform, chance = drawn * 2.0**-64, np.exp(-rates)
    accepted: NDArray[np.bool_] = uniform < chance
    for i in np.flatnonzero(np.abs(uniform - chance) <= _DOUBT):
        with localcontext(_PRECISE):
            accepted[i] = _with_more_bits(int(drawn[i]), words) < (-exact(int(i))).exp()
    return accepted


def _exact_rate(values: Whole, s: float, scale: int, place: int) -> Decimal:
    """(|x| - s²/t)² / (2 s²) of one value to the precision of the context."""
    square = Decimal(s) * Decimal(s)  # a float64 is exact as a decimal number
    return (abs(int(values[place])) - square / scale) ** 2 / (2 * square)


def _share(values: Whole, scale: int, place: int) -> Decimal:
    """One value over the scale to the precision of the context."""
    return Decimal(int(values[place])) / scale


def _with_more_bits(word: int, words: RandomWords) -> Decimal:
    """A number in (0, 1) of 256 random bits whose first 64 are given."""
    for more in words(_MORE_WORDS):
        word = (word << 64) | int(more)
    return Decimal(2 * word + 1) / Decimal(1 << (64 * (1 + _MORE_WORDS) + 1))
