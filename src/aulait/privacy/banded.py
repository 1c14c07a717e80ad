"""Noise that remembers: banded square-root factorisation, for cohorts that take turns.

The noise of a round takes away part of the noise of earlier rounds, so that in the sum over all
rounds, which is what a model learns, little is left. With b fixed cohorts each client takes part in
every b-th round, and no secret sampling is needed.

**The mechanism.** Let S_t be the sum of round t, on the grid of the noise, and z_t fresh noise
N(0, sigma²). With coefficients c_0 = 1, c_1, ..., c_(b-1) the noise of round t is

    x_t = z_t - (c_1 x_(t-1) + ... + c_(b-1) x_(t-b+1)),    released: S_t + x_t

rounded to the grid. With C the lower triangular Toeplitz matrix of the c_j this is x = C⁻¹ z. The
c_j are those of the square root of the matrix of prefix sums, binom(2j, j) / 4^j, cut off at b
(Fichtenberger, Henzinger and Upadhyay, ICML 2023; Kalinin and Lampert, NeurIPS 2024; bands and
separated participations: Choquette-Choo et al., NeurIPS 2023).

**What it costs.** Whoever sees what was released knows y_j = S_j + x_j, so the release of round t
is the fresh Gaussian noise of one round on the query q_t = S_t - sum of c_j (y_(t-j) - S_(t-j)),
chosen after seeing the earlier ones. A client that takes part in rounds at least b apart is in one
summand of a query only: in the b queries from its round on with c_0 u, ..., c_(b-1) u, u being its
update, of norm at most D. So each of its participations costs what one Gaussian release does whose
sensitivity is D times the root of the sum of c_j²; those of one client add up like Gaussians of
rounds that have nothing to do with one another. Full bands are charged also where the run ends
before the band does.

**Exactly.** The c_j are rounded to multiples of 2^-20: the rounded ones *are* the mechanism, and
their length is what is accounted. x lies on the grid, so the remembered sum is known exactly, in
integers; what is drawn is the Gaussian minus the remembered sum, rounded to the grid, which is
post-processing of S_t + z_t - (...): no rounding moves with the data
(``noise_source.NoiseSource.rounded``).

**What must not happen**: two noises of one step that share their past. Their difference would be
fresh noise alone, and both releases together would tell more than is accounted. So a state is used
once. Where a round is made again after an interruption, the aggregator hands over no state, and
the noise begins anew, independent of all that was: the earlier participations stay charged in full,
which is more than they cost where their band was cut.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from aulait.core.errors import PrivacyError, require
from aulait.privacy.accounting import Event

if TYPE_CHECKING:  # the plan and the command line need no torch
    from torch import Tensor

    from aulait.core.types import Tensors
    from aulait.privacy.noise_source import NoiseSource
    from aulait.privacy.relations import Relation, Unit

MOST_BANDS: Final = 4096
_BITS: Final = 20  # of a coefficient, behind the point
_SIGMA, _STEPS, _PAST = "sigma", "steps", "past/"  # names in the state


class Banded:
    """Correlated noise for clients that take part in every b-th round at most.

    Args:
        band: b, at least 1; with 1 it is independent noise.
    """

    unit: Unit = "client"
    # who is in which cohort is public: in a client's place stands one that adds nothing
    relations: tuple[Relation, ...] = ("zero-out", "replace")
    amplified = False

    def __init__(self, band: int = 1) -> None:
        self.band = band
        require(1 <= band <= MOST_BANDS, PrivacyError,
                f"{band} cohorts of mechanism 'banded' found, expected 1 to {MOST_BANDS}; "
                "change federation.cohorts")

    def of(self, parameter: str) -> Banded:
        """The mechanism named "banded:PARAMETER", of so many bands.

        Raises:
            PrivacyError: the parameter is no number of bands.
        """
        require(parameter.isdecimal() and parameter.isascii() and len(parameter) < 6, PrivacyError,
                f"mechanism 'banded:{parameter}' found, expected a number of cohorts behind the "
                "colon, as 'banded:10'; correct it")
        return Banded(int(parameter))

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """c_0, ..., c_(b-1) in steps of 2^-20."""
        exact, found = Fraction(1), []
        for place in range(1, self.band + 1):
            found.append(round(exact * 2**_BITS))
            exact *= Fraction(2 * place - 1, 2 * place)
        return tuple(found)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """c_0, ..., c_(b-1), exactly."""
        return tuple(step * 2.0**-_BITS for step in self.steps)

    @cached_property
    def length(self) -> float:
        """The root of the sum of c_j², no less than it is."""
        return math.sqrt(sum(step * step for step in self.steps)) * 2.0**-_BITS * (1.0 + 1e-12)

    def sensitivity(self, bound: float, relation: Relation) -> float:
        """By how much one participation moves all queries together: D times the length of the
        coefficients, D being the bound C, or 2 C with the relation "replace"."""
        return (2.0 if relation == "replace" else 1.0) * bound * self.length

    def event(self, noise_multiplier: float, sampling_rate: float, steps: int) -> Event:
        """Exactly a Gaussian, for each participation."""
        return Event(noise_multiplier, sampling_rate, steps)

    def add_noise(
        self, total: Tensors, sigma: float, source: NoiseSource, state: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The sum with x_t, and what the next rounds need: the last b - 1 of the x.

        Raises:
            PrivacyError: sigma is another than that of the rounds before.
        """
        before = float(state[_SIGMA]) if state else sigma
        require(sigma == before, PrivacyError,
                f"noise of standard deviation {sigma!r} found after {before!r}, expected the same "
                "in all rounds of mechanism 'banded'; set privacy.clip to a number")
        noised: Tensors = {}
        after: Tensors = {}
        for name, value in total.items():
            past = state.get(_PAST + name, value.new_zeros((0, *value.shape)).long())
            noise = self._drawn(past, sigma, source)
            noised[name] = value + noise
            newest = noise / (source.step(sigma) or 1.0)
            after[_PAST + name] = _pushed(newest.to(past.dtype), past, self.band - 1)
            after[_SIGMA] = value.new_tensor(sigma)
            after[_STEPS] = past.new_tensor(self._step(state) + 1)
        return noised, after

    def _drawn(self, past: Tensor, sigma: float, source: NoiseSource) -> Tensor:
        """x_t.

        Args:
            past: the x before it, the newest first, in steps of the grid.
            sigma: of the fresh noise.
            source: of the fresh noise.
        """
        weights = past.new_tensor(self.steps[1 : 1 + len(past)])
        # at most 2^30 steps of the grid times 2^20 of a coefficient, of 2^12 rounds: exact
        whole = (past * weights.view(-1, *[1] * (past.dim() - 1))).sum(0)
        rest = (whole & (2**_BITS - 1)).double() * 2.0**-_BITS
        return source.rounded(rest, sigma) - (whole >> _BITS).double() * source.step(sigma)

    def _step(self, state: Tensors) -> int:
        """Steps that the noise has gone since it began."""
        return int(state[_STEPS]) if state else 0

    def deviation(self, sigma: float, state: Tensors) -> float:
        """The standard deviation of the noise that was added last, by the state after it."""
        return sigma * float(np.linalg.norm(self._inverse(self._step(state))))

    def whole_run(self, rounds: int) -> float:
        """The standard deviation of the noise in the sum over all rounds, where one participation
        moves all queries by 1 and sigma is 1 too: with independent noise it is the root of the
        number of rounds."""
        return self.length * float(np.linalg.norm(np.cumsum(self._inverse(rounds))))

    def _inverse(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The first column of C⁻¹."""
        c = np.array(self.coefficients)
        found = np.zeros(count)
        for place in range(count):
            recent = found[max(0, place - self.band + 1) : place][::-1]
            found[place] = float(place == 0) - float(recent @ c[1 : 1 + len(recent)])
        return found


def _pushed(newest: Tensor, past: Tensor, most: int) -> Tensor:
    """What is remembered, with the newest in front."""
    kept = past.new_zeros((min(most, len(past) + 1), *newest.shape))
    if most:
        kept[0], kept[1:] = newest, past[: most - 1]
    return kept


BANDED = Banded()
