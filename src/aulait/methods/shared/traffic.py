"""Bytes that clients send and receive in a round: counted without privacy, planned under it.

Of a split client only the factors of its own half travel, beside the messages of every step: its
update says how many bytes, under "wire_up_bytes" and "wire_down_bytes", which count in place of the
sizes of request and update.

A sealed update counts with the size that it must have: nobody here can look at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from aulait.core.cohort import Cohort
from aulait.core.types import ClientUpdate, Info, Tensors, TrainRequest, nbytes
from aulait.methods.contract import RunContext
from aulait.privacy.sealed import SealedUpdate
from aulait.privacy.update_checks import ExpectedShapes


class TrafficCount:
    """Counts the bytes of requests and updates as they pass. Proxies are at the server: theirs do
    not count.

    Args:
        sent: all requests of the round.
        cohort: who takes part.
        expected_shapes: client -> names and shapes of its update, which give the bytes of one that
            is sealed; None: such updates are not counted.

    Attributes:
        local: the requests to clients.
    """

    def __init__(self, sent: Sequence[TrainRequest], cohort: Cohort,
                 expected_shapes: ExpectedShapes | None = None) -> None:
        self._expected_shapes = expected_shapes or {}
        self.local = [request for request in sent if request.client not in cohort.proxies]
        self._up_bytes = 0
        self._down_bytes = {request.client: nbytes(request.tensors) for request in self.local
                            if request.client in cohort.asked}

    def counted(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """The updates, unchanged."""
        for update in updates:
            if isinstance(update, SealedUpdate):
                self._up_bytes += nbytes(self._expected_shapes.get(update.client, {}))
                yield update
                continue
            up, down = (update.info.get(f"wire_{way}_bytes") for way in ("up", "down"))
            if _is_count(up) and _is_count(down):
                self._up_bytes += int(up or 0)
                self._down_bytes[update.client] = int(down or 0)
            else:
                self._up_bytes += nbytes(update.tensors)
            yield update

    def metrics(self) -> Info:
        """Bytes so far."""
        return {"up_bytes": self._up_bytes, "down_bytes": sum(self._down_bytes.values())}


def _is_count(value: object) -> bool:
    """Whether this is a number of bytes."""
    return isinstance(value, int | float) and 0 <= value < math.inf


def planned_clients(cohort: Cohort) -> Mapping[str, float]:
    """Client -> its part of the planned cohort; one client without a name and with all ranks where
    the population is not known."""
    names = cohort.population or ("",)
    return dict.fromkeys(names, cohort.planned / len(names))


def planned_bytes(cohort: Cohort, travels: Callable[[str], tuple[int, int]]) -> Info:
    """Bytes of the planned cohort: who was drawn and who answered is private.

    Args:
        cohort: the planned number of clients, and who they may be.
        travels: client -> bytes up and down.
    """
    parts = [(part, travels(name)) for name, part in planned_clients(cohort).items()]
    return {way: round(sum(part * both[side] for part, both in parts))
            for side, way in enumerate(("up_bytes", "down_bytes"))}


def planned_traffic(context: RunContext, cohort: Cohort, update: Tensors, down: Tensors) -> Info:
    """Bytes of the planned cohort: who was drawn and who answered is private.

    Args:
        context: ranks of the clients.
        cohort: the planned number of clients, and who they may be.
        update: names and shapes of the update of a client that has all ranks.
        down: names and shapes of what such a client is sent.
    """
    full = {"up_bytes": update, "down_bytes": down}
    return {way: round(sum(part * nbytes(context.leading(tensors, name))
                           for name, part in planned_clients(cohort).items()))
            for way, tensors in full.items()}
