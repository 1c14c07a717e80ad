"""The Gaussian mechanism in closed form, without dp-accounting.

    delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2),   mu^2 = sum of 1/z_i^2 over full-participation releases
"""

import json
import math
from pathlib import Path

from scipy.special import log_ndtr


def mu_of(multipliers):
    return math.sqrt(sum(1.0 / z**2 for z in multipliers))


def delta_of(eps, mu):
    first, second = log_ndtr(-eps / mu + mu / 2), eps + log_ndtr(-eps / mu - mu / 2)
    return math.exp(first) - math.exp(second)


def epsilon_of(multipliers, delta):
    """Epsilon by 200 halvings; 0 for no release, inf for a release without noise."""
    multipliers = list(multipliers)
    if not multipliers:
        return 0.0
    if min(multipliers) == 0:
        return math.inf
    mu = mu_of(multipliers)
    if delta_of(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(high, mu) > delta:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, mu) > delta else (low, middle)
    return high


def epsilon_from_ledger(path, role, delta):
    """Epsilon of a role from the sigma and the sensitivity in ``ledger.jsonl``, nothing else."""
    lines = [json.loads(text) for text in Path(path).read_text().splitlines()]
    mine = [line for line in lines if role in line["role"].split("+")]
    assert all(line["sampling"] == {"kind": "all"} for line in mine)
    return epsilon_of([line["sigma"] / line["sensitivity"] for line in mine], delta)
