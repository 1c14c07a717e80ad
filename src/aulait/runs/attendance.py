"""Bytes that a client may expect in a round where not everybody takes part in every one.

Where merges are folded into the base, what a client is sent depends on who answered the round
before: who did is sent that round's stack, which grows with the others that did; who missed it is
sent the whole update. The plan takes the mean over the draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pydantic import BaseModel

from aulait.methods.contract import AnyMethod, FoldingMethod, RunContext

OTHERS = "others"  # one site in place of all others of the round before, of their ranks together


@dataclass(frozen=True)
class Attendance:
    """Who answered the round before, as seen from a client that is asked.

    Attributes:
        seen: chance that the client did.
        others: layer -> the mean sum of the ranks of all other sites that did, if the client did.
        sites: all that might have, for the formula of a method that folds nothing.
    """

    seen: float
    others: Mapping[str, float]
    sites: tuple[str, ...]


def expected_bytes(method: AnyMethod, config: BaseModel, context: RunContext, round: int,
                   client: str, before: Attendance) -> tuple[int, int]:
    """Bytes up, and the mean of bytes down, of a client that is asked.

    A method's formula is a sum over layers. It is asked layer by layer for the two whole ranks
    around the mean one: exact where the formula is linear in ranks, as stacks are, or linear up to
    a whole rank and constant behind it, as a bound by the layer's sides is.
    """
    up, down = method.travels(config, context, round, client, before.sites)
    if not isinstance(method, FoldingMethod):
        return up, down
    seen = sum(weight * method.travels(config, alone, round, client, (client, OTHERS))[1]
               for layer in context.shapes
               for weight, alone in _layers(context, client, layer, before.others[layer]))
    missed = method.missed_bytes(config, context, round, client)
    return up, math.floor(before.seen * seen + (1.0 - before.seen) * missed + 0.5)


def _layers(context: RunContext, client: str, layer: str,
            others: float) -> Iterator[tuple[float, RunContext]]:
    """(weight, context of the layer alone) of the two whole ranks of the others around a mean
    one."""
    own, low = context.rank_of(client)(layer), math.floor(others)
    for rank, weight in ((low, 1.0 - (others - low)), (low + 1, others - low)):
        yield weight, replace(context, shapes={layer: context.shapes[layer]},
                              ranks={client: {layer: own}, OTHERS: {layer: rank}})
