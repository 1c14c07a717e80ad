"""The public grid on which sums and their noise lie, and what it leaves room for; without torch, so
that a plan can be held against it before anything is loaded.

``aulait.privacy.noise`` says why there is a grid, and draws noise on it.
"""

from __future__ import annotations

import math

from aulait.core.errors import PrivacyError, require

GRID_BITS = 20
MOST_SUMMANDS = 2**20  # clients, or units, in one sum that gets noise; public
_EXACT = 2.0**52  # steps; float64 holds twice as many, which leaves room for the noise
_SMALLEST, _LARGEST = 2.0**-900, 2.0**900


def grid(std: float) -> float:
    """The step g of the public grid for noise of this standard deviation.

    Returns:
        A power of two, std / 2^21 < g <= std / 2^20; 0, no grid, where there is no noise.

    Raises:
        PrivacyError: std is negative, infinite, not a number, or so small or large that float64 has
            no room for the grid.
    """
    require(std == 0.0 or _SMALLEST <= std <= _LARGEST, PrivacyError,
            f"noise standard deviation is {std}, expected 0 or a number between 1e-270 and 1e270; "
            "check the noise multiplier and the bound")
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - GRID_BITS) if std else 0.0


def sums_are_exact(largest: float, step: float) -> bool:
    """Whether sums of grid values are exact up to this size, and with the noise."""
    return step == 0.0 or largest < _EXACT * step


def check_exact(largest: float, step: float) -> None:
    """Raise unless sums of grid values are exact up to this size, and with the noise.

    Args:
        largest: public bound of the absolute value of a sum.
        step: of the grid; 0 is no grid.

    Raises:
        PrivacyError: the noise is too small beside what it must hide.
    """
    require(sums_are_exact(largest, step), PrivacyError,
            f"a sum of up to {largest:.3g} found with noise on a grid of step {step:.3g}, expected "
            "less than 2^52 steps; raise the noise multiplier")


def least_multiplier(sensitivity: float, summands: int = MOST_SUMMANDS) -> float:
    """A noise multiplier with which sums are exact, whatever the bound.

    Args:
        sensitivity: of a mechanism whose bound is 1.
        summands: the most of them, each at most as long as the bound.
    """
    return summands * 2.0 ** (GRID_BITS + 1) / _EXACT / sensitivity
