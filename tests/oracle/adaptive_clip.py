"""Adaptive clipping as its paper writes it, one client at a time: slow, and each line is a step of
Algorithm 1 (Andrew, Thakkar, McMahan, Ramaswamy, NeurIPS 2021)."""

from __future__ import annotations

import math


def noise_on_updates(multiplier, count_noise):
    """z_delta, which leaves ``multiplier`` to both releases together."""
    return (multiplier ** -2 - (2.0 * count_noise) ** -2) ** -0.5


def bounds(rounds, start, quantile, rate, planned, count_noise=()):
    """The bounds of all rounds and the one after them.

    Args:
        rounds: of each the updates of its clients, lists of numbers.
        start: of the first round.
        quantile: of the norms.
        rate: of the geometric update.
        planned: clients, by whose number counts are divided.
        count_noise: of each round what noise was added to the sum of b - 1/2; none without noise.
    """
    found = [start]
    for number, updates in enumerate(rounds):
        total = 0.0
        for update in updates:
            length = math.sqrt(math.fsum(value * value for value in update))
            total += (1.0 if length <= found[-1] else 0.0) - 0.5
        if count_noise:
            total += count_noise[number]
        within = min(1.0, max(0.0, total / planned + 0.5))
        found.append(found[-1] * math.exp(-rate * (within - quantile)))
    return found


def clipped_sum(updates, bound):
    """The sum of updates, each shortened to the bound."""
    total = [0.0] * len(updates[0])
    for update in updates:
        length = math.sqrt(math.fsum(value * value for value in update))
        factor = min(1.0, bound / length) if length else 1.0
        total = [old + factor * value for old, value in zip(total, update, strict=True)]
    return total
