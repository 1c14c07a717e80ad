"""Delta of one and of two Poisson sampled Gaussians by integrals, for one direction at a time.

    P = (1 - q) N(0, z^2) + q N(1, z^2) against Q = N(0, z^2), or the other way round
    delta(eps) = P(l > eps) - e^eps Q(l > eps);   two: the mean of delta(eps - l(x)) over x of P
"""

import numpy as np
from scipy.special import ndtr


def delta_once(eps, z, q, unit_in):
    """Exact, for any eps >= minus infinity (an array)."""
    eps = np.asarray(eps, float)
    inside = eps if unit_in else -eps
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(np.exp(inside) > 1 - q, z**2 * np.log((np.exp(inside) - 1 + q) / q) + 0.5,
                     -np.inf)
    if unit_in:  # outcomes above x
        mixed = (1 - q) * ndtr(-x / z) + q * ndtr((1 - x) / z)
        return np.maximum(mixed - np.exp(eps) * ndtr(-x / z), 0)
    mixed = (1 - q) * ndtr(x / z) + q * ndtr((x - 1) / z)
    return np.maximum(ndtr(x / z) - np.exp(eps) * mixed, 0)


def delta_twice(eps, z, q, unit_in):
    x = np.linspace(-14 * z, 1 + 14 * z, 20_001)
    density = np.exp(-0.5 * (x / z) ** 2) / (z * np.sqrt(2 * np.pi))
    shifted = np.exp(-0.5 * ((x - 1) / z) ** 2) / (z * np.sqrt(2 * np.pi))
    loss = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * z**2))
    if unit_in:
        weight, rest = (1 - q) * density + q * shifted, eps - loss
    else:
        weight, rest = density, eps + loss
    return float(np.sum(weight * delta_once(rest, z, q, unit_in)) * (x[1] - x[0]))


def epsilon(delta_of, delta):
    """The larger of both directions by halving."""
    found = 0.0
    for unit_in in (True, False):
        if delta_of(0.0, unit_in) <= delta:
            continue
        low, high = 0.0, 1.0
        while delta_of(high, unit_in) > delta:
            high *= 2
        for _ in range(45):
            middle = (low + high) / 2
            low, high = (middle, high) if delta_of(middle, unit_in) > delta else (low, middle)
        found = max(found, high)
    return found
