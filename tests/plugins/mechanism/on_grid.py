"""Gaussian noise whose noised sum is rounded to a public grid.

Sensitivity and event are those of the Gaussian mechanism: the grid follows from sigma alone, which
is public, so that rounding is post-processing and costs no privacy.
"""

from aulait.privacy.mechanisms import Gaussian


class OnGrid(Gaussian):
    """Gaussian noise, rounded to multiples of sigma / 64."""

    def add_noise(self, total, sigma, source, state):
        """The noised sum on the grid; nothing is remembered from release to release."""
        noised, state = super().add_noise(total, sigma, source, state)
        step = sigma / 64
        return {name: (value / step).round() * step for name, value in noised.items()}, state


MECHANISM = OnGrid()
