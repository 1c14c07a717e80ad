"""Passes dealt to workers: as many for each as can be, of about equal work, by a rule that has no
chance in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Pass = list[int]  # numbers of the sites that train together
PassCost = Callable[[Pass], float]


def divided(passes: Sequence[Pass], cost: PassCost, workers: int) -> list[Pass]:
    """The passes, the costliest of several sites halved until every worker can have as many.

    Where their number is a multiple already nothing is cut, and every pass is the one that a
    single process makes, to the last bit.
    """
    cut = list(passes)
    for _ in range(-len(cut) % workers):
        several = [number for number, own in enumerate(cut) if len(own) > 1]
        if not several:
            break
        largest = max(several, key=lambda number: (cost(cut[number]), -number))
        own = cut[largest]
        cut[largest : largest + 1] = [own[: len(own) // 2], own[len(own) // 2 :]]
    return cut


def dealt(passes: Sequence[Pass], cost: PassCost, workers: int) -> list[list[Pass]]:
    """The passes of every worker: the costliest first, each to whom has least so far."""
    shares: list[list[Pass]] = [[] for _ in range(workers)]
    loads = [0.0] * workers
    for own in sorted(passes, key=cost, reverse=True):  # equal ones stay in order
        least = loads.index(min(loads))
        shares[least].append(own)
        loads[least] += cost(own)
    return shares
