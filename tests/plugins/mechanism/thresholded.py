"""Gaussian noise whose noised sum is set to zero where the noise alone explains it.

Sensitivity and event are those of the Gaussian mechanism: the threshold follows from sigma alone,
which is public, so that setting to zero is post-processing and costs no privacy. It helps where few
coordinates carry the signal.
"""

from aulait.privacy.mechanisms import Gaussian


class Thresholded(Gaussian):
    """Gaussian noise, and zero wherever the noised sum is within two sigma of zero."""

    def add_noise(self, total, sigma, source, state):
        """What stands out of the noise; nothing is remembered from release to release."""
        noised, state = super().add_noise(total, sigma, source, state)
        return {name: value * (value.abs() > 2 * sigma) for name, value in noised.items()}, state


MECHANISM = Thresholded()
