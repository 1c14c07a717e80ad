"""Bytes that cross the walls of clients' sites in a round: measured without privacy, planned under it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from aulait import lora
from aulait.algorithms.contract import Setting
from aulait.cohort import Cohort
from aulait.types import Info, Order, Reply, Tensors, nbytes


class Meter:
    """Bytes that cross the walls of the sites of clients in a round, as they go by; proxies have no wall to cross."""

    def __init__(self, sent: Sequence[Order], cohort: Cohort) -> None:
        self.local = [order for order in sent if order.client not in cohort.proxies]
        self._up_bytes = 0

    def up(self, replies: Iterable[Reply]) -> Iterator[Reply]:
        """The replies, counted."""
        for reply in replies:
            self._up_bytes += nbytes(reply.share)
            yield reply

    def told(self) -> Info:
        """Bytes so far."""
        return {"up_bytes": self._up_bytes, "down_bytes": sum(nbytes(order.tensors) for order in self.local)}


def planned(cohort: Cohort) -> Mapping[str, float]:
    """Client -> its part of the planned cohort; an unnamed client with all ranks where the population is not told."""
    names = cohort.population or ("",)
    return dict.fromkeys(names, cohort.planned / len(names))


def planned_traffic(setting: Setting, cohort: Cohort, share: Tensors, down: Tensors) -> Info:
    """Bytes of the planned cohort, from what a site of all ranks sends and is sent: who was drawn and who replied is private."""
    full = {"up_bytes": share, "down_bytes": down}
    return {way: round(sum(part * nbytes(lora.leading(t, setting.rank_of(name))) for name, part in planned(cohort).items()))
            for way, t in full.items()}
