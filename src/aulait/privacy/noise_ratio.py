"""The law of size: how loud the noise of a whole run is beside what it can learn, known before the
run.

An update of d numbers is clipped to norm C and its sum over n clients gets noise of standard
deviation z C in every number. Beside the mean of n updates that agree, of norm C, the noise on the
mean has norm z C sqrt(d) / n. Over T rounds the signal adds up like T and the noise like sqrt(T):

    noise / signal = z sqrt(d) / (n sqrt(T)) = sqrt(d) / (mu n),    mu = sqrt(T) / z

whatever T is, where mu is that of Gaussian differential privacy for the whole run. So d, the
numbers under noise, is what a few clients can choose. Clients never agree wholly, so this is the
least that the ratio can be. Far below 1 nearly all is kept of what is learnt without noise; above 1
hardly anything is learnt, and steps of a usual length end far above the base (docs/privacy.md has
the figure).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

WARNED: Final = 1.0  # the ratio from which a run hardly learns and may do harm
REFUSED: Final = 5.0  # the ratio from which a run is not begun unless that is said aloud
NUMBERS_AT_LEAST: Final = 1


@dataclass(frozen=True)
class NoiseRatio:
    """What decides how loud the noise is.

    Attributes:
        numbers: d, trained numbers under noise.
        clients: n, by which the noise on a sum is divided; not a whole number where proxies
            dilute it or sites add noise of their own.
        multiplier: z, noise over sensitivity of one noised mechanism.
        mechanisms: T, how many there are in the run.
    """

    numbers: int
    clients: float
    multiplier: float
    mechanisms: int

    @property
    def mu(self) -> float:
        """Of all mechanisms together, as if nothing were sampled."""
        return math.sqrt(self.mechanisms) / self.multiplier

    @property
    def ratio(self) -> float:
        """The noise of the whole run over a signal that all agree on."""
        return math.sqrt(self.numbers) / (self.mu * self.clients)

    def affordable(self, target: float) -> int:
        """The most trained numbers at which the ratio is at most ``target``; 1 at least."""
        return max(NUMBERS_AT_LEAST, int((target * self.mu * self.clients) ** 2))

    @property
    def outlook(self) -> str:
        """What to expect of the run, in one clause."""
        if self.ratio > REFUSED:
            return "it will not learn"
        if self.ratio > WARNED:
            return "it will hardly learn and may do harm"
        return "it can learn" if self.ratio <= 0.6 else "it will learn part of what it could"


def ratio_in_words(found: NoiseRatio, target: float, who: str, promise: str) -> str:
    """The law of one run as a sentence.

    Args:
        found: what decides.
        target: the ratio that is wanted.
        who: the clients, as "9 clients".
        promise: as "epsilon 8".
    """
    return (f"{who}: at {promise} about {found.affordable(target):,} numbers can be trained; this "
            f"run trains {found.numbers:,}, so that the noise is {times(found.ratio)} the signal: "
            f"{found.outlook}")


def times(ratio: float) -> str:
    """A ratio as a word or two: "7 times", "0.4 times"."""
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"
