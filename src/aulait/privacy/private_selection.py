"""Releasing only the best of a random number of runs: what it costs.

A run of a randomly drawn arm is repeated K times, K from a truncated negative binomial law that
does not hang on the data, and only the run with the best score is released. If one run is
(lambda, e) and (order, e1) Renyi private, the whole is (lambda, e + (1 + eta) (1 - 1/order) e1 +
(1 + eta) log(1/gamma)/order + log(E K)/(lambda - 1)) Renyi private: a small multiple of one run,
however many arms there are.

The score must be a function of what a run releases, and of public data (or be private itself and
among the run's events): a loss on private held-out text is neither. K, and everything about the
runs that were not chosen, must stay secret from whoever gets the result.

Sources: Papernot and Steinke, "Hyperparameter Tuning with Renyi Differential Privacy", ICLR 2022,
theorem 2; Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism",
2019; Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020, for
the conversion.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from scipy import special

from aulait.core.errors import PrivacyError, require
from aulait.privacy.accounting import Event

Orders = NDArray[np.float64]
_WHOLE = np.concatenate([np.arange(2.0, 65.0), 2.0 ** np.arange(6.5, 13.0, 0.5).round(1)]).round()
_BETWEEN = np.array([1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.5, 3.5])


@dataclass(frozen=True)
class RunCount:
    """The law of the number of runs: P(k) proportional to (1 - gamma)^k (eta)_k / k!, k >= 1.

    Attributes:
        gamma: in (0, 1); less is more runs.
        eta: > -1: 1 is the geometric law, 0 the logarithmic one.

    Raises:
        PrivacyError: a number is outside its range.
    """

    gamma: float
    eta: float = 1.0

    def __post_init__(self) -> None:
        require(0.0 < self.gamma < 1.0 and -1.0 < self.eta < math.inf, PrivacyError,
                f"number of runs with gamma {self.gamma} and eta {self.eta} found, expected gamma "
                "in (0, 1) and eta > -1; correct them")

    @classmethod
    def geometric(cls, mean: float) -> RunCount:
        """The geometric law with that mean, > 1."""
        require(1.0 < mean < math.inf, PrivacyError,
                f"{mean} runs on average found, expected a finite number > 1; correct it")
        return cls(1.0 / mean)

    @property
    def mean(self) -> float:
        """E K."""
        if self.eta == 0.0:
            return (1.0 / self.gamma - 1.0) / math.log(1.0 / self.gamma)
        return self.eta * (1.0 - self.gamma) / (
            self.gamma * (1.0 - math.pow(self.gamma, self.eta)))

    def probability(self, k: int) -> float:
        """P(K = k) for k >= 1."""
        if self.eta == 0.0:
            return math.pow(1.0 - self.gamma, k) / (k * math.log(1.0 / self.gamma))
        rising = math.prod((i + self.eta) / (i + 1) for i in range(k))
        return math.pow(1.0 - self.gamma, k) * rising / (math.pow(self.gamma, -self.eta) - 1.0)

    def draw(self, source: Random) -> int:
        """A number of runs; with ``random.SystemRandom`` a secret one."""
        left, k = source.random(), 1
        while (left := left - self.probability(k)) > 0.0 and k < 100_000:
            k += 1
        return k

    def renyi(self, one: Orders, orders: Orders) -> Orders:
        """Renyi divergences of the selection, from those of one run at the same orders."""
        others = (1.0 - 1.0 / orders) * one + math.log(1.0 / self.gamma) / orders
        found: Orders = one + (1.0 + self.eta) * others.min() + math.log(self.mean) / (orders - 1.0)
        return found


def selection_epsilon(arms: Sequence[Counter[Event]], delta: float, count: RunCount) -> float:
    """Epsilon of the best of a random number of runs, each of an arm drawn anew.

    Args:
        arms: what a run of each of them pays for; the dearest at every order counts.
        delta: in (0, 1).
        count: law of the number of runs.
    """
    sampled = any(event.sampling_rate < 1.0 for events in arms for event in events)
    orders = _WHOLE if sampled else np.sort(np.concatenate([_WHOLE, _BETWEEN]))
    one = np.max([_renyi_of(events, orders) for events in arms], axis=0)
    all_runs = count.renyi(one, orders)
    # An order at which a divergence is infinite says nothing.
    bounds = all_runs + np.log1p(-1.0 / orders) - (math.log(delta) + np.log(orders)) / (
        orders - 1.0)
    return max(0.0, float(np.min(np.where(np.isfinite(bounds), bounds, math.inf))))


def _renyi_of(events: Counter[Event], orders: Orders) -> Orders:
    """Renyi divergences of all events of one run, the larger of both directions."""
    total = np.zeros(len(orders))
    for event, times in events.items():
        z, q = event.noise_multiplier, event.sampling_rate
        if z == 0.0:
            return np.full(len(orders), math.inf)
        one = orders / (2.0 * z * z) if q == 1.0 else np.array(
            [_sampled(z, q, int(order)) for order in orders])
        total += times * event.steps * one
    return total


def _sampled(z: float, q: float, order: int) -> float:
    """Of the Poisson sampled Gaussian at a whole order, by the binomial theorem."""
    k = np.arange(order + 1.0)
    ways = special.gammaln(order + 1.0) - special.gammaln(k + 1.0) - special.gammaln(order - k + 1)
    terms = ways + k * math.log(q) + (order - k) * math.log1p(-q) + k * (k - 1.0) / (2.0 * z * z)
    return float(special.logsumexp(terms)) / (order - 1)
