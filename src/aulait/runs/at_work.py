"""Requests of clients at work, where clients work at their own pace: kept until their updates are
due, also over an interruption.

An update follows from its request, its site and the seed alone. So it is made when it is due and
not when the client begins: until then there is a request to keep, which is public, and no update,
which is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aulait.core.cohort import Buffer
from aulait.core.errors import ConfigError, require
from aulait.core.types import ClientRequest, ClientUpdate, Tensors, TrainRequest
from aulait.methods.contract import Ask
from aulait.runs.client_state import Memories


def due(ask: Ask, buffer: Buffer, at_work: Memories) -> Ask:
    """Asks the clients whose updates fill a buffer, each for what it began with; others, as sites
    of the server, for what they are asked now.

    Args:
        ask: gets updates.
        buffer: of the round.
        at_work: client -> its request, as plain values; those that begin are added and those whose
            updates are due taken out.
    """

    def asking(requests: Sequence[ClientRequest]) -> Iterable[ClientUpdate]:
        shared: dict[tuple[object, ...], Tensors] = {}
        now = []
        for request in requests:
            if request.client in buffer.beginning:
                key = tuple((name, value.data_ptr(), tuple(value.shape))
                            for name, value in request.tensors.items())
                at_work[request.client] = {
                    "round": request.round, "settings": dict(request.settings),
                    "tensors": shared.setdefault(key, request.tensors)}
            if request.client in buffer.filling:
                now.append(_begun(request.client, at_work))
            elif request.client not in buffer.beginning:
                now.append(request)
        return ask(now) if now else iter(())

    return asking


def _begun(client: str, at_work: Memories) -> ClientRequest:
    """The request with which a client began."""
    require(client in at_work, ConfigError,
            f"client '{client}' is at work and the checkpoint has not what it was asked; "
            "restore the run folder from a copy")
    held = at_work.pop(client)
    return TrainRequest(client, held["round"], held["tensors"], held["settings"])
