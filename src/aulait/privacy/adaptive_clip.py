"""Adaptive clipping: the bound C of updates follows a quantile of their norms, privately.

Every client that trains tells, beside its update u, whether it was within the bound: b is 1 where
|u| <= C, else 0. By the noised sum of the b the server knows about which share b' of the clients
is, and moves the bound of the next round toward the quantile q of the norms:

    C  <-  C exp(-r (b' - q))

**One release.** The clipped update and the centred answer are one vector, of norm at most C':

    ( clip(u, C), ±h ),    C' = C / sqrt(1 - f),    h = C' sqrt(f),    so that C² + h² = C'²

with + where b is 1; f is the share of the release's budget (of mu²) that the answer costs. One
client more or less moves the sum of these vectors by at most C', another one in its place by at
most 2 C'. So a round is one release of the run's mechanism at the noise multiplier z, and is
charged as that: sampling, turns and secure aggregation hold for this vector as for any. Seen apart,
the updates get noise of z_delta = z / sqrt(1 - f) times C, and the sum of b - 1/2 gets noise of
standard deviation sigma_b = z / (2 sqrt(f)). So z_delta = (z^-2 - (2 sigma_b)^-2)^-1/2, the account
of the paper; with the relation "replace" both sensitivities and both noises are twice as large.

The bound of a round follows from what was released before it, and is public.

**What is ours.** f is chosen, and not sigma_b: then the count never costs more than there is,
however few the clients. b' is cut to [0, 1], which is post-processing: where the noise is many
times the number of clients a bound still moves by a factor of e^r a round at most.

Source: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive
Clipping", NeurIPS 2021, Algorithm 1 and Theorem 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from aulait.privacy.relations import Relation

BOUNDS: Final = (1e-12, 1e12)  # between which C stays


@dataclass(frozen=True)
class AdaptiveClip:
    """How the bound moves; the head of this file says what it costs.

    Attributes:
        start: C of the first round, > 0.
        quantile: q, in (0, 1).
        rate: r, > 0.
        fraction: f, in (0, 1).
    """

    start: float
    quantile: float
    rate: float
    fraction: float

    def joint_bound(self, bound: float) -> float:
        """C', the norm of an update clipped to C with its answer."""
        return bound / math.sqrt(1.0 - self.fraction)

    def part_bound(self, joint: float) -> float:
        """C, of which C' is the joint bound."""
        return joint * math.sqrt(1.0 - self.fraction)

    def answer(self, bound: float) -> float:
        """h, by how much one answer moves its sum."""
        return self.joint_bound(bound) * math.sqrt(self.fraction)

    def update_noise(self, multiplier: float) -> float:
        """z_delta: noise on the updates over their sensitivity, in a release of this multiplier."""
        return multiplier / math.sqrt(1.0 - self.fraction)

    def count_noise(self, multiplier: float, relation: Relation | None = None) -> float:
        """sigma_b: standard deviation of the noise on the number of clients within the bound."""
        one = multiplier / (2.0 * math.sqrt(self.fraction))
        return 2.0 * one if relation == "replace" else one

    def within(self, answers: float, bound: float, planned: float) -> float:
        """b', from the released sum of answers of so many planned clients."""
        return min(1.0, max(0.0, 0.5 + answers / (2.0 * self.answer(bound) * planned)))

    def next_bound(self, bound: float, within: float) -> float:
        """C of the next round; ``within`` is b'."""
        moved = bound * math.exp(-self.rate * (within - self.quantile))
        return min(max(moved, BOUNDS[0]), BOUNDS[1])

    def in_words(self, multiplier: float, relation: Relation | None, clients: float) -> str:
        """What it does and costs in a run, as the plan says it.

        Args:
            multiplier: z of a release.
            relation: that is promised.
            clients: that a round expects.
        """
        noise = self.count_noise(multiplier, relation)
        return (f"begins at {self.start:g} and follows the {self.quantile:g} quantile of the "
                f"updates' norms, by a factor of at most e^{self.rate:g} a round. The count of "
                f"clients within it costs {self.fraction:.1%} of each release of training: its "
                f"noise has standard deviation {noise:.3g}, of {clients:.4g} clients, and that of "
                f"the updates is {self.update_noise(multiplier):.4g} times their sensitivity "
                f"instead of {multiplier:.4g}")
