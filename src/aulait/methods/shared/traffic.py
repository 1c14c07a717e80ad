"""Bytes that cross the walls of clients' sites in a round: measured without privacy, planned under
it.

Of a client whose model is cut only its front's factors travel, and the messages of every step: its
update says how many bytes, under "wire_up_bytes" and "wire_down_bytes", which count in place of the
sizes of order and share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import ClientUpdate, Info, Tensors, TrainRequest, nbytes
from aulait.methods.contract import RunContext


class Meter:
    """Bytes that cross the walls of the sites of clients in a round, as they go by; proxies have no
    wall to cross."""

    def __init__(self, sent: Sequence[TrainRequest], cohort: Cohort) -> None:
        self.local = [request for request in sent if request.client not in cohort.proxies]
        self._up_bytes = 0
        self._down_bytes = {request.client: nbytes(request.tensors) for request in self.local}

    def up(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """The updates, counted."""
        for update in updates:
            up, down = (update.info.get(f"wire_{way}_bytes") for way in ("up", "down"))
            if _count(up) and _count(down):
                self._up_bytes += int(up or 0)
                self._down_bytes[update.client] = int(down or 0)
            else:
                self._up_bytes += nbytes(update.tensors)
            yield update

    def told(self) -> Info:
        """Bytes so far."""
        return {"up_bytes": self._up_bytes, "down_bytes": sum(self._down_bytes.values())}


def _count(value: object) -> bool:
    """Whether this is a number of bytes."""
    return isinstance(value, int | float) and 0 <= value < math.inf


def planned(cohort: Cohort) -> Mapping[str, float]:
    """Client -> its part of the planned cohort; an unnamed client with all ranks where the
    population is not told."""
    names = cohort.population or ("",)
    return dict.fromkeys(names, cohort.planned / len(names))


def planned_traffic(context: RunContext, cohort: Cohort, share: Tensors, down: Tensors) -> Info:
    """Bytes of the planned cohort, from what a site of all ranks sends and is sent: who was drawn
    and who replied is private."""
    full = {"up_bytes": share, "down_bytes": down}
    return {way: round(sum(part * nbytes(lora.leading(t, context.rank_of(name))) for name,
                           part in planned(cohort).items()))
            for way, t in full.items()}
