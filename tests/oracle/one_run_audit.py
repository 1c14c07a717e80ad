"""The lower bound of an audit in one run (Steinke, Nasr, Jagielski 2023, theorem 5.2), term by
term in 50 digits."""

from __future__ import annotations

from mpmath import mp, mpf


def p_value(canaries, guesses, right, epsilon, delta):
    """P(W >= v) + 2 m delta max_i P(v - i <= W < v) / i, with W a binomial of r tries at e^eps /
    (e^eps + 1)."""
    rate = mp.exp(epsilon) / (mp.exp(epsilon) + 1)
    mass = [
        mp.binomial(guesses, k) * rate**k * (1 - rate) ** (guesses - k) for k in range(guesses + 1)
    ]
    tail = mp.fsum(mass[right:])
    worst = max((mp.fsum(mass[right - i : right]) / i for i in range(1, right + 1)), default=mpf(0))
    return min(mpf(1), tail + 2 * canaries * delta * worst)


def epsilon(canaries, guesses, right, delta, failure):
    """The largest epsilon that is refuted, by bisection to 1e-9; 0 where none is."""
    mp.dps = 50
    delta, failure = mpf(delta), mpf(failure)
    if p_value(canaries, guesses, right, mpf(0), delta) > failure:
        return 0.0
    low, high = mpf(0), mpf(1)
    while p_value(canaries, guesses, right, high, delta) <= failure:
        high *= 2
    while high - low > mpf("1e-9"):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if p_value(canaries, guesses, right, middle, delta) <= failure
            else (low, middle)
        )
    return float(low)
