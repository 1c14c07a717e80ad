"""Epsilon of many Gaussian releases, some with Poisson sampling: an upper bound, in any order.

The privacy loss of a release is put on a grid, the grids are convolved by FFT, and epsilon is read
off the sum. What differs from the usual accountants:

- **Atoms by connecting the dots.** The outcomes between two grid points are replaced by the two
  points, so that both their probabilities, under the data set and under its neighbour, are kept. An
  outcome whose likelihood ratio lies between those of the points is a mixture of them, so the
  release is a post-processing of its replacement: the bound holds, and its error falls with the
  square of the grid. Integrals of positive functions give every atom to 12 digits, however small.
- **A tilt.** Each loss distribution p(l) is multiplied by exp(theta l) before the FFT and divided
  after it. With theta from the Renyi bound the sum's bulk lies at epsilon, so a delta of 1e-20 is
  as exact as one of 1e-3.
- **A grid from the problem.** Its step follows from an estimate of what the rounding adds to
  epsilon; atoms far from the bulk stand further apart. It begins at log(1 - q), below which no loss
  lies, where releases in which the unit seldom takes part have nearly all their mass.

Neighbours are "unit in" against "unit out" (or a null unit in its place); both directions are
composed, and the larger epsilon counts. Written Q for the noise N(0, z²), P = (1-q) Q + q N(1, z²)
for the sampled release, l = log(dP/dQ); q = 1 is the Gaussian mechanism.

Sources: Doroshenko et al., "Connect the Dots: Tighter Discrete Approximations of Privacy Loss
Distributions", PoPETs 2022; Alghamdi et al., "The Saddle-Point Method in Differential Privacy",
ICML 2023 (the tilt); Koskela et al., "Computing Tight Differential Privacy Guarantees Using FFT",
AISTATS 2020. Balle and Wang, ICML 2018, for the closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

Array = NDArray[np.float64]
Spectrum = NDArray[np.complex128]

_ERROR = 5e-4  # the grid may add this share to epsilon
_SPREAD = 0.03  # distance of atoms / distance from the bulk
_POINTS = 1 << 18  # points of a grid: 2 MB, and some hundredths of a second
_MORE_POINTS = 1 << 19  # where fewer would add too much to epsilon
_FEW_POINTS = 1 << 13  # for a first guess
_TAIL = 1e-4  # share of delta that goes to what lies above the window
_CUT = 1e-3  # share of delta that goes to the rarest outcomes of single releases
_ROUNDING = 1e-4  # share of delta that goes to rounding in quadratures and sums
_LEAST_NOISE = 0.05  # sampling with less noise is accounted as none
_LEAST_RATE = 1e-12  # of a smaller one the logarithms leave what floats can hold
_MOST_NOISE = 1e100  # the squares of more leave what floats can hold
_GROUPS = 64  # most different mechanisms; nearest ones are accounted as the worse of them
_DEVIATIONS = 30.0  # of rounding errors that are allowed for
_PASSES = 5  # most choices of tilt and grid
_NEGLIGIBLE = 1e-12  # probability under the tilted law
_ATOMS = 100_000  # most atoms of a law on one side of its bulk
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


@dataclass(frozen=True, order=True)
class SampledGaussian:
    """One mechanism, used several times.

    Attributes:
        noise_multiplier: z, sigma over sensitivity, > 0.
        sampling_rate: q in (0, 1].
        count: how often, at least 1.
    """

    noise_multiplier: float
    sampling_rate: float
    count: int


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon of the Gaussian mechanism with sensitivity / sigma = mu, in closed form.

    Args:
        mu: >= 0; inf is no noise.
        delta: in (0, 1).
    """
    if mu == 0.0 or special.erf(mu / math.sqrt(8.0)) <= delta:
        return 0.0
    if not mu < 1e150:
        return math.inf
    # delta falls in t = mu/2 - epsilon/mu; epsilon = mu (mu/2 - t) is exact for every mu.
    low, high = -1.0, mu / 2.0
    while _log_delta(low, mu) > math.log(delta):
        low *= 2.0
    for _ in range(200):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (middle, high) if _log_delta(middle, mu) <= math.log(delta) else (low, middle)
    return max(0.0, mu * (mu / 2.0 - low))


def _log_delta(t: float, mu: float) -> float:
    """log of Phi(t) - e^epsilon Phi(t - mu), where epsilon = mu (mu/2 - t), without cancellation:
    e^epsilon phi(t - mu) is phi(t), so both terms are phi(t) times a ratio Phi/phi."""
    density = -0.5 * t * t - 0.5 * math.log(2.0 * math.pi)
    if t > 0:
        second = density + math.log(_mills(t - mu)) if mu > t else special.log_ndtr(t - mu) + (
            mu * (mu / 2.0 - t))
        first = float(special.log_ndtr(t))
        return first + math.log1p(-math.exp(min(second - first, -1e-300)))
    if mu < 1e-4:  # the ratio's slope in the middle
        middle = t - mu / 2.0
        return density + math.log(mu * max(1.0 + middle * _mills(middle), 5e-324))
    return density + math.log(_mills(t) - _mills(t - mu))


def _mills(x: float) -> float:
    """Phi(x) / phi(x)."""
    return math.sqrt(math.pi / 2.0) * float(special.erfcx(-x / math.sqrt(2.0)))


def composed_epsilon(parts: Sequence[SampledGaussian], delta: float, rough: bool = False) -> float:
    """An epsilon for which all parts together are (epsilon, delta)-private, close to the smallest.

    Time and memory are bounded for every input. Meant for noise multipliers of 0.1 to 1000, rates
    of 1e-6 to 1, up to a million releases, delta of 1e-3 to 1e-20, and there about one percent
    above the smallest; docs/decisions/0014-accounting.md says what was checked, and where it fails.

    Args:
        parts: the mechanisms.
        delta: in (0, 1).
        rough: some percent more are enough; it is faster.
    """
    always = gaussian_epsilon(_mu(parts), delta)  # sampling never costs privacy
    # at a larger rate, or with less noise, a mechanism never costs less
    parts = [SampledGaussian(min(part.noise_multiplier, _MOST_NOISE),
                             max(part.sampling_rate, _LEAST_RATE), part.count) for part in parts]
    sampled = [part for part in parts if part.sampling_rate < 1.0
               and part.noise_multiplier >= _LEAST_NOISE]
    mu = _mu([part for part in parts if part not in sampled])
    if not sampled or always == 0.0 or not mu < 1e3:
        return always
    if _total_variation(sampled, mu) <= delta:
        return 0.0
    merged = _merged(sampled)
    laws = [_Law(part, delta / (1 + len(merged))) for part in merged]
    if mu > 0.0:
        laws.append(_Law(SampledGaussian(1.0 / mu, 1.0, 1), delta / (1 + len(merged))))
    inside = _one_way(laws, delta, 1, rough)
    other = _one_way(laws, delta, -1, rough=True)
    if other > inside and not rough:  # otherwise it does not matter how much less it is
        other = _one_way(laws, delta, -1, rough=False)
    return min(always, max(inside, other))


def _mu(parts: Sequence[SampledGaussian]) -> float:
    """Sensitivity / sigma of all of them as if the unit always took part."""
    return math.hypot(*(math.sqrt(part.count) / part.noise_multiplier if part.noise_multiplier
                        else math.inf for part in parts))


def _total_variation(sampled: Sequence[SampledGaussian], mu: float) -> float:
    """A bound on the delta of epsilon 0: distances add up."""
    return float(special.erf(mu / math.sqrt(8.0))) + sum(
        part.count * part.sampling_rate * math.erf(1.0 / (math.sqrt(8.0) * part.noise_multiplier))
        for part in sampled)


def _merged(parts: Sequence[SampledGaussian]) -> list[SampledGaussian]:
    """At most ``_GROUPS`` parts; the nearest two become the noisier's less and the larger rate."""
    left = sorted(parts)
    while len(left) > _GROUPS:
        logs = np.log([[part.noise_multiplier, part.sampling_rate] for part in left])
        steps = np.abs(np.diff(logs, axis=0)).sum(axis=1)
        i = int(np.argmin(steps))
        one, two = left[i], left[i + 1]
        left[i:i + 2] = [SampledGaussian(one.noise_multiplier,
                                         max(one.sampling_rate, two.sampling_rate),
                                         one.count + two.count)]
    return left


class _Law:
    """The loss of one mechanism: l = offset + d(x), increasing in the outcome x.

    With q < 1 the offset is log(1 - q) and d > 0. Outcomes outside [low, high] have, in all uses
    together, less than ``_CUT`` of delta; they are cut off.
    """

    def __init__(self, part: SampledGaussian, delta: float) -> None:
        self.z, self.q, self.count = part.noise_multiplier, part.sampling_rate, part.count
        reach = self.z * -float(special.ndtri_exp(math.log(delta * _CUT / self.count)))
        self.low, self.high = -reach, 1.0 + reach
        self.offset = math.log1p(-self.q) if self.q < 1.0 else 0.0
        self.odds = math.log(self.q) - self.offset

    def d(self, x: Array) -> Array:
        y = (2.0 * x - 1.0) / (2.0 * self.z**2) + self.odds
        losses: Array = np.logaddexp(0.0, y) if self.q < 1.0 else y
        return losses

    def outcome(self, d: Array) -> Array:
        """x with that d; minus infinity for 0 when q < 1."""
        with np.errstate(divide="ignore"):
            y = d + np.log(-np.expm1(-d)) if self.q < 1.0 else d
        found: Array = self.z**2 * (y - self.odds) + 0.5
        return found

    @cached_property
    def nodes(self) -> tuple[Array, Array]:
        """Points d of a trapezoid rule over the outcomes, and the logs of their weights under Q."""
        step = min(self.z / 8.0, self.z**2 / 2.0)
        x = np.linspace(self.low, self.high, min(int((self.high - self.low) / step) + 2, 20_000))
        width = x[1] - x[0]
        return self.d(x), math.log(width / self.z) - 0.5 * (x / self.z) ** 2 - 0.5 * math.log(
            2.0 * math.pi)

    def cumulant(self, theta: Array, sign: int) -> Array:
        """log E exp(theta * loss) of all uses, near enough to choose a tilt by; without offset."""
        d, weights = self.nodes
        power = theta + 1.0 if sign > 0 else -theta
        extra = self.offset if sign > 0 else 0.0  # dP = e^l dQ
        one: Array = special.logsumexp(power[:, None] * d + weights, axis=1) + extra
        return self.count * one

    def tilted(self, theta: float, sign: int) -> tuple[Array, Array]:
        """Points d and their probabilities under the tilted law."""
        d, weights = self.nodes
        return d, special.softmax((theta + 1.0 if sign > 0 else -theta) * d + weights)

    def atoms(self, edges: Array) -> tuple[Array, float, float]:
        """Probabilities under P of the grid points d = edges, and what lies beyond: under P above
        the last, under Q below the first."""
        x = self.outcome(edges)
        to_high, to_low = self._shares(x)
        gaps = np.diff(edges)
        mass = np.zeros(len(edges))
        mass[1:] += self.q * to_high / -np.expm1(-gaps)
        mass[:-1] += self.q * to_low / np.expm1(gaps)
        below = (1.0 - self.q) * special.ndtr(x[0] / self.z) + self.q * special.ndtr(
            (x[0] - 1.0) / self.z)
        mass[0] += below  # a larger loss than it had
        above = (1.0 - self.q) * special.ndtr(-x[-1] / self.z) + self.q * special.ndtr(
            (1.0 - x[-1]) / self.z)
        return mass, float(above), float(special.ndtr(x[0] / self.z))

    def _shares(self, x: Array) -> tuple[Array, Array]:
        """Integrals of 1 - exp(-(t - a)/z²) and exp((b - t)/z²) - 1 under N(1, z²) over [a, b]."""
        low, high, z = x[:-1], x[1:], self.z
        to_high, to_low = np.empty(len(low)), np.empty(len(low))
        wide = high - low > 0.5 * z
        a, b = low[wide], high[wide]
        shifted, plain = _between((a - 1.0) / z, (b - 1.0) / z), _between(a / z, b / z)
        with np.errstate(divide="ignore"):
            log_plain = np.log(plain)
        to_high[wide] = shifted - np.exp((2.0 * a - 1.0) / (2.0 * z * z) + log_plain)
        to_low[wide] = np.exp((2.0 * b - 1.0) / (2.0 * z * z) + log_plain) - shifted
        a, b = low[~wide, None], high[~wide, None]
        half = (b - a) / 2.0
        t = a + half * (1.0 + _NODES)
        weights = half / z * _WEIGHTS * np.exp(-0.5 * ((t - 1.0) / z) ** 2) / math.sqrt(
            2.0 * math.pi)
        to_high[~wide] = (-np.expm1(-half * (1.0 + _NODES) / z**2) * weights).sum(axis=1)
        to_low[~wide] = (np.expm1(half * (1.0 - _NODES) / z**2) * weights).sum(axis=1)
        return np.maximum(to_high, 0.0), np.maximum(to_low, 0.0)


def _between(a: Array, b: Array) -> Array:
    """Probability of [a, b] under N(0, 1), exact in both tails."""
    right = a > 0
    found: Array = np.where(right, special.ndtr(-a) - special.ndtr(-b),
                            special.ndtr(b) - special.ndtr(a))
    return found


@dataclass(frozen=True)
class _Tilt:
    """The Renyi bound: its epsilon, and the order less one at which it is smallest."""

    theta: float
    epsilon: float


def _renyi(laws: Sequence[_Law], log_delta: float, sign: int, tail: bool = False) -> _Tilt:
    """The smallest (K(theta) - log delta - c(theta)) / theta; c is 0 for a mere tail bound."""
    shift = _offset(laws, sign)

    def bound(theta: Array) -> Array:
        total = sum((law.cumulant(theta, sign) for law in laws), np.zeros(len(theta)))
        sharper = np.log1p(theta) + theta * np.log1p(1.0 / theta)
        return (total - log_delta - (0.0 if tail else sharper)) / theta + shift

    logs = np.linspace(-20.0, 35.0, 111)
    for _ in range(3):
        found = bound(np.exp(logs))
        best = int(np.argmin(found))
        near, far = logs[max(best - 1, 0)], logs[min(best + 1, len(logs) - 1)]
        value, at = float(found[best]), float(logs[best])
        logs = np.linspace(near, far, 15)
    return _Tilt(math.exp(at), value)


def _offset(laws: Sequence[_Law], sign: int) -> float:
    return sign * math.fsum(law.count * law.offset for law in laws)


def _one_way(laws: Sequence[_Law], delta: float, sign: int, rough: bool) -> float:
    """Epsilon where the unit is in the data set (sign 1), or in its neighbour (-1)."""
    tilt = _renyi(laws, math.log(delta), sign)
    theta, allowed = tilt.theta, _ERROR * max(tilt.epsilon, 1e-3 / tilt.theta)
    best, points = math.inf, _FEW_POINTS if rough else _POINTS
    for _ in range(_PASSES):
        loss = _ComposedLoss(laws, _Wanted(sign, delta, theta, allowed, points))
        found, error, rounding = loss.epsilon(delta)
        best = min(best, found)
        if best <= 0.0 or rough:
            break
        if rounding > 10.0 * _ROUNDING:  # the bulk of the tilted sum is far from epsilon
            theta, allowed = theta / 3.0, min(allowed, _ERROR * best)
        elif loss.coarse and points < _MORE_POINTS and error > 4.0 * _ERROR * found:
            points = _MORE_POINTS
        elif not loss.coarse and error > 2.0 * _ERROR * found:
            allowed *= min(0.5, _ERROR * found / error)
        else:
            break
    return best


@dataclass(frozen=True)
class _Wanted:
    """What a sum of losses is composed for.

    Attributes:
        sign: the direction.
        delta: for which an epsilon is wanted.
        theta: of the tilt.
        allowed: what the grid may add to epsilon.
        points: the most of the grid; more is coarser.
    """

    sign: int
    delta: float
    theta: float
    allowed: float
    points: int


class _ComposedLoss:
    """The tilted law of the sum of all losses, on a grid."""

    def __init__(self, laws: Sequence[_Law], wanted: _Wanted) -> None:
        self.theta, self.sign = wanted.theta, wanted.sign
        theta, allowed, delta, sign = wanted.theta, wanted.allowed, wanted.delta, wanted.sign
        grid = _Grid.fitting(laws, theta, allowed, sign)
        top = _renyi(laws, math.log(delta * _TAIL), sign, tail=True)
        bottom, highest = _bulk(laws, theta, sign)
        highest = max(highest, top.epsilon)
        self.coarse = highest - bottom > (wanted.points - 2) * grid.step
        if self.coarse:
            grid = _Grid((highest - bottom) / (wanted.points - 2), grid.spread, grid.most)
        self.spread_added = grid.variance(laws, theta, sign)
        self.step, self.offset = grid.step, _offset(laws, sign)
        self.first = math.floor((bottom - self.offset) / self.step)
        self._compose([(law.count, *self._atoms(law, grid)) for law in laws], top.theta,
                      math.log(delta * _TAIL), highest - self.offset)

    def _compose(self, parts: Sequence[tuple[int, NDArray[np.int64], Array, float]],
                 top_theta: float, log_tail: float, highest: float) -> None:
        """The law of the sum in a window, from the atoms of its parts."""
        self.cut = sum(count * lost for count, _, _, lost in parts) + math.exp(log_tail)
        cumulant = math.fsum(count * _log_moment(mass, top_theta * self.step * places)
                             for count, places, mass, _ in parts)
        # P(sum > top) <= exp(log_tail), by Markov
        top = max((cumulant - log_tail) / top_theta, highest)
        size = fft.next_fast_len(max(math.ceil(top / self.step) - self.first + 1, 16), real=True)
        if size > 4 * _MORE_POINTS:  # a window of this grid would need more memory than is given
            self.cut, size = 1.0, 16
        logs, spectra = np.zeros(size // 2 + 1, dtype=np.complex128), []
        self.log_scale, start, rest = self.theta * self.offset, self.first, 0.0
        for count, places, mass, _ in parts:
            tilted = np.log(mass) + self.theta * self.step * places
            log_scale = float(special.logsumexp(tilted))
            shares = np.exp(tilted - log_scale)
            largest = int(np.argmax(shares))
            shares[largest] = 0.0  # kept apart: what seldom happens is not lost beside it
            around = np.bincount((places - places[largest]) % size, shares, size)
            part = fft.rfft(around) - shares.sum()
            part[part == -1.0] += np.finfo(np.float64).eps  # its logarithm is finite
            logs += count * np.log1p(part)
            rest += count * math.log1p(-float(shares.sum()))
            spectra.append((count, part, float(np.linalg.norm(shares) + shares.sum())))
            self.log_scale += count * log_scale
            start -= count * int(places[largest])
        spectrum: Spectrum = (np.expm1(logs) - math.expm1(rest)).astype(np.complex128)
        mass = np.roll(fft.irfft(spectrum, size), -(start % size))
        mass[-start % size] += math.exp(rest)
        self.mass = np.maximum(mass, 0.0)
        whole: Array = np.exp(logs.real)
        self.rounding = self._rounding(spectrum, whole, spectra)

    def _atoms(self, law: _Law, grid: _Grid) -> tuple[NDArray[np.int64], Array, float]:
        """Places of the loss less the offset, in steps, their probabilities, and what is cut."""
        points = grid.points(law, self.theta, self.sign)
        losses: Array = np.multiply(points, self.step, dtype=np.float64)
        mass, above, below = law.atoms(losses)
        lost = above
        if self.sign < 0:  # Q holds e^-l of what P holds; the losses change their signs
            mass = mass * np.exp(-(losses + law.offset))
            mass[-1] += special.ndtr(-law.outcome(losses[-1:]) / law.z)[0]
            points, lost = -points, below
        kept = mass > 0.0
        return points[kept], mass[kept], lost

    def _rounding(self, spectrum: Spectrum, whole: Array,
                  parts: Sequence[tuple[int, Spectrum, float]]) -> float:
        """Many standard deviations of the rounding errors of single points of ``mass``: of every
        transform, as often as it is multiplied with itself, and of the last one."""
        size = len(self.mass)
        moved = sum((count * norm / np.maximum(np.abs(1.0 + part), 1e-300)
                     for count, part, norm in parts), np.zeros(len(whole)))
        norm = np.linalg.norm(whole * moved) + np.linalg.norm(spectrum)
        return float(_DEVIATIONS * np.finfo(np.float64).eps * math.log2(size) * norm / size)

    def epsilon(self, delta: float) -> tuple[float, float, float]:
        """Epsilon, about what the grid has added to it, and the share of delta that is an allowance
        for rounding errors."""
        x = self.offset + self.step * (self.first + np.arange(len(self.mass)))
        middle = x[int(np.argmax(self.mass))]
        untilt = np.exp(np.minimum(self.log_scale - self.theta * x, 300.0))
        mass = self.mass * untilt
        above = _beyond(mass)
        priced = np.exp(np.clip(x - middle, -300.0, 300.0)) * _beyond(
            mass * np.exp(np.clip(middle - x, -300.0, 300.0)))
        rounding = self.rounding * np.sqrt(_beyond(untilt**2))
        deltas = (above - priced) * (1.0 + _ROUNDING) + self.cut + rounding
        over = np.flatnonzero(deltas > delta)
        if len(over) == 0:
            return max(0.0, float(x[0])), 0.0, 0.0
        last = int(over[-1])
        if last + 1 == len(x):
            return math.inf, math.inf, 1.0
        share = (deltas[last] - delta) / (deltas[last] - deltas[last + 1])
        found = float(x[last] + math.log1p(share * math.expm1(self.step)))
        slope = priced[last] / delta
        return (max(0.0, found), 0.5 * self.spread_added * (1.0 + slope),
                float(rounding[last]) / delta)


def _log_moment(mass: Array, exponent: NDArray[np.floating]) -> float:
    return float(special.logsumexp(np.log(mass) + exponent))


def _beyond(values: Array) -> Array:
    """The sum of all later values."""
    sums = np.cumsum(values[::-1])[::-1]
    return np.append(sums[1:], 0.0)


def _bulk(laws: Sequence[_Law], theta: float, sign: int) -> tuple[float, float]:
    """Two losses outside which the tilted sum has hardly any probability, by Markov."""
    steps = np.exp(np.linspace(-14.0, 14.0, 113)) * theta

    def total(at: Array) -> Array:
        return sum((law.cumulant(at, sign) for law in laws), np.zeros(len(at)))

    needed = -math.log(_NEGLIGIBLE) - total(np.array([theta]))
    low = -float(np.min((total(theta - steps) + needed) / steps))
    high = float(np.min((total(theta + steps) + needed) / steps))
    return low + _offset(laws, sign), high + _offset(laws, sign)


@dataclass(frozen=True)
class _Grid:
    """Where the atoms of every law stand.

    Attributes:
        step: of the grid.
        spread: distance of two atoms over their distance from the bulk, where that is more.
        most: the largest distance of two atoms, where the step is not more.
    """

    step: float
    spread: float
    most: float

    @classmethod
    def fitting(cls, laws: Sequence[_Law], theta: float, allowed: float, sign: int) -> _Grid:
        """The coarsest one that adds about ``allowed`` to epsilon."""
        grid = cls(0.3 / (1.0 + theta), _SPREAD, 0.3 / (1.0 + theta))
        for _ in range(400):
            if 0.5 * (1.0 + theta) * grid.variance(laws, theta, sign) <= allowed:
                break
            fine = cls(0.0, grid.spread, grid.most)
            if 0.5 * (1.0 + theta) * fine.variance(laws, theta, sign) > 0.5 * allowed:
                grid = cls(grid.step, grid.spread / 1.5, grid.most / 1.5)
            grid = cls(grid.step / 1.25, grid.spread, grid.most)
        return grid

    def variance(self, laws: Sequence[_Law], theta: float, sign: int) -> float:
        """About what the grid adds to the variance of the sum."""
        total = 0.0
        for law in laws:
            d, probability = law.tilted(theta, sign)
            bulk = probability @ d
            gap = np.maximum(np.minimum(self.spread * np.abs(d - bulk), self.most), self.step)
            added = gap**2 / 6.0
            if law.q < 1.0:  # nothing lies below the first atom
                added = np.minimum(added, d * gap)
            total += law.count * float(probability @ added)
        return total

    def points(self, law: _Law, theta: float, sign: int) -> NDArray[np.int64]:
        """The places of the atoms in steps: dense at the bulk, further apart away from it."""
        d, probability = law.tilted(theta, sign)
        lowest, highest = law.d(np.array([law.low, law.high])) / self.step
        first, last = math.floor(lowest), math.ceil(highest)
        bulk = round(float(probability @ d) / self.step)
        kept = np.flatnonzero(_within(probability, _NEGLIGIBLE / law.count))
        left, right = d[[max(kept[0] - 1, 0), min(kept[-1] + 1, len(d) - 1)]] / self.step
        # Where the losses are small, what is negligible may count as a little larger.
        first, last = (max(first, math.floor(left)), last) if sign > 0 else (
            first, min(last, math.ceil(right)))
        up = self._distances(right - bulk, last - bulk)
        down = self._distances(bulk - left, bulk - first)
        places = np.concatenate([bulk - down[::-1], bulk + up[1:]])
        inside = places[(places > first) & (places < last)]
        return np.concatenate([[first], inside, [last]]).astype(np.int64)

    def _distances(self, near: float, far: float) -> NDArray[np.int64]:
        """Distances from the bulk of atoms on one side, in steps: at most ``most`` from one another
        up to ``near``, growing beyond."""
        most = max(1, int(self.most / self.step), int(near / _ATOMS))
        away, gap = [0], 1
        while away[-1] < near and gap < most:
            gap = min(most, max(1, int(self.spread * away[-1])))
            away.append(away[-1] + gap)
        away += range(away[-1] + most, math.ceil(max(near, 0.0)), most)
        while away[-1] < far:
            gap = max(1, int(0.1 * (away[-1] - near)), int(self.spread * away[-1]))
            away.append(away[-1] + gap)
        return np.array(away)


def _within(probability: Array, tail: float) -> NDArray[np.bool_]:
    """All but the ends that have less than ``tail`` each."""
    return (np.cumsum(probability) > tail) & (np.cumsum(probability[::-1])[::-1] > tail)
