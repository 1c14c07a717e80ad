"""What an epsilon means for one client (or one record), as the best that an attacker could do.
Exact bounds, no sampling, no model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from aulait.reporting.folder import RunFiles

FALSE_ALARM: Final = 0.01
"""The share of innocent cases the attacker of the report is willing to accuse."""

NEARLY_ALWAYS: Final = 0.995
_NORMAL: Final = NormalDist()
_GAUSSIAN: Final = {("client", "gaussian"), ("client", "banded"), ("record", "dp-sgd"),
                    ("record", "gaussian-batch"), ("record", "gaussian-votes")}


def detection(epsilon: float, delta: float, false_alarm: float = FALSE_ALARM) -> float:
    """The largest share of true cases any attacker can detect under (epsilon, delta).

    It is one minus the trade-off function of (epsilon, delta)-differential privacy (Wasserman and
    Zhou, 2010; Dong, Roth and Su, 2022): min(1, e^epsilon α + delta, 1 − e^−epsilon (1 − delta −
    α)) at false-alarm rate α.

    Args:
        epsilon: at least 0; infinity allowed.
        delta: from 0 to 1.
        false_alarm: the attacker's rate of false alarms α, from 0 to 1.
    """
    if epsilon > 700:
        return 1.0
    straight = math.exp(epsilon) * false_alarm + delta
    mirrored = 1 - math.exp(-epsilon) * (1 - delta - false_alarm)
    return max(0.0, min(1.0, straight, mirrored))


def gaussian_detection(mu: float, false_alarm: float = FALSE_ALARM) -> float:
    """The same for Gaussian releases, exactly: Φ(Φ⁻¹(α) + mu), with mu² the sum of 1/z² over noise
    multipliers z."""
    return _NORMAL.cdf(_NORMAL.inv_cdf(false_alarm) + mu)


def success(epsilon: float, delta: float) -> float:
    """The largest share of right guesses under (epsilon, delta), where presence and absence are
    equally likely beforehand: (e^epsilon + delta) / (1 + e^epsilon).

    It is half of 1 plus the largest total variation distance that (epsilon, delta) allows, which
    randomised response attains (Kairouz, Oh and Viswanath, 2015).
    """
    if epsilon > 700:
        return 1.0
    odds = math.exp(epsilon)
    return min(1.0, (odds + delta) / (1.0 + odds))


def gaussian_success(mu: float) -> float:
    """The same for Gaussian releases, exactly: Φ(mu / 2)."""
    return _NORMAL.cdf(mu / 2)


@dataclass(frozen=True)
class Bounds:
    """What is known of a unit's releases: each of these holds.

    Attributes:
        pairs: (epsilon, delta); the promised one, and others of the same releases.
        mu: of the releases, where all are Gaussian; without credit for sampling. None otherwise.
    """

    pairs: Sequence[tuple[float, float]] = ()
    mu: float | None = None

    def success(self) -> float:
        """The largest share of right guesses about one unit; 1 where nothing is known."""
        return min([1.0, *(success(*pair) for pair in self.pairs), *self._gaussian(1.0)])

    def detection(self) -> float:
        """The largest share of true cases that can be detected at ``FALSE_ALARM``."""
        sharp: tuple[float, ...] = () if self.mu is None else (gaussian_detection(self.mu),)
        return min([1.0, *(detection(*pair) for pair in self.pairs), *sharp])

    def group_success(self, size: int) -> float:
        """The largest share of right guesses about ``size`` units of one site together.

        Against (epsilon, delta) the group has (k epsilon, delta (e^(k epsilon) − 1) / (e^epsilon −
        1)) (Vadhan, 2017), against Gaussian releases k mu (Dong, Roth and Su, 2022).
        """
        general = (success(size * epsilon, min(1.0, delta * _repeated(epsilon, size)))
                   for epsilon, delta in self.pairs)
        return min([1.0, *general, *self._gaussian(size)])

    def spread_success(self, sites: int) -> float:
        """The largest share of right guesses about somebody with one unit at each of ``sites``
        sites, whose releases compose: (s epsilon, s delta), or sqrt(s) mu."""
        general = (success(sites * epsilon, min(1.0, sites * delta))
                   for epsilon, delta in self.pairs)
        return min([1.0, *general, *self._gaussian(math.sqrt(sites))])

    def _gaussian(self, factor: float) -> tuple[float, ...]:
        return () if self.mu is None else (gaussian_success(factor * self.mu),)


def _repeated(epsilon: float, size: int) -> float:
    """1 + e^epsilon + ... + e^((size - 1) epsilon)."""
    if (size - 1) * epsilon > 600:
        return math.inf
    return math.fsum(math.exp(k * epsilon) for k in range(size))


def gaussian_mu(run: RunFiles) -> float | None:
    """The largest mu of any role, from the ledger, without credit for sampling; None when the
    ledger cannot tell.

    It can tell when every line is a Gaussian release, or several steps of one, with a noise
    multiplier (sigma over the sensitivity, which holds the factor 2 of the relation "replace"), the
    ledger was read in full, and the mu it gives is large enough to explain the epsilon that the run
    reports.
    """
    found = _mus(run)
    mu = max(found.values(), default=None)
    explained = mu is not None and _explains(mu, run.result.privacy.epsilon.max, run)
    return mu if explained else None


def role_mu(run: RunFiles, role: str) -> float | None:
    """The mu of one role under the same conditions; None when the ledger cannot tell."""
    mu = _mus(run).get(role)
    explained = mu is not None and _explains(mu, run.result.privacy.epsilon.value(role), run)
    return mu if explained else None


def _mus(run: RunFiles) -> dict[str, float]:
    """Role -> mu; empty when the ledger cannot tell, as for a run that was kept of several."""
    unreadable = any(remark.startswith("ledger.jsonl") for remark in run.remarks)
    if unreadable or run.selection is not None:
        return {}
    squares: dict[str, dict[float | None, float]] = defaultdict(lambda: defaultdict(float))
    taken: Counter[tuple[str, float, float]] = Counter()  # of releases with a bound on them
    for line in run.ledger:
        multiplier = line.noise_multiplier or 0.0
        steps = line.steps_taken or 0.0
        family = (line.mechanism or "").partition(":")[0]
        plain = (line.unit, family) in _GAUSSIAN
        if not plain or steps < 1 or not 1e-3 < multiplier < 1e6:
            return {}
        for role in (line.role or "").split("+"):
            if line.sampling.most is not None:
                key = role, multiplier, line.sampling.most
                taken[key] += 1
                if taken[key] > line.sampling.most:
                    continue
            squares[role][line.sampling.turn] += steps * multiplier**-2
    # of cohorts that take turns a client is in one
    return {role: math.sqrt(found.pop(None, 0.0) + max(found.values(), default=0.0))
            for role, found in squares.items()}


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The delta of a Gaussian release with parameter mu at this epsilon (Balle and Wang, 2018), in
    closed form."""
    near = _NORMAL.cdf(-epsilon / mu + mu / 2)
    far = _NORMAL.cdf(-epsilon / mu - mu / 2)
    return near if far == 0 else near - math.exp(epsilon + math.log(far))


def _explains(mu: float, epsilon: float | None, run: RunFiles) -> bool:
    """A mu that is too small for the reported epsilon means that lines are missing: better say
    nothing then."""
    delta = run.result.privacy.delta
    return (
        epsilon is not None and bool(delta) and gaussian_delta(epsilon, mu) >= 0.5 * (delta or 0.0)
    )
