"""Records that a base cannot read as they are: longer than its context (cut, dropped, or an
error), or refused by its chat template (left out)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from aulait.core.errors import DataError, require
from aulait.core.types import Record
from aulait.data.client_data import NAMED_ROWS, ClientData
from aulait.training.batches import Encoder, too_long


def readable(encode: Encoder, clients: Mapping[str, ClientData],
             ) -> tuple[dict[str, ClientData], tuple[str, ...]]:
    """The clients without the conversations that the base's chat template refuses, and a line on
    each of these, the first 1,000.

    Whether a record is left out follows from the record alone.

    Raises:
        DataError: no client has a training record left.
    """
    found = [(name, record, reason) for name, client in clients.items()
             for record in (*client.train, *client.holdout)
             if record.asked and (reason := encode.form.refusal(record.turns)) is not None]
    if not found:
        return dict(clients), ()
    left = _without(clients, {record for _, record, _ in found})
    require(bool(left), DataError, found[0][2])
    return left, tuple(f"a conversation of '{name}': {reason}"
                       for name, _, reason in found[:NAMED_ROWS])


def fitted(how: str, context: int, encode: Encoder,
           clients: Mapping[str, ClientData]) -> dict[str, ClientData]:
    """Treat texts of more than ``context`` tokens as ``how`` (``data.too_long``) says.

    Raises:
        DataError: there are some, and ``how`` is "error".
    """
    everything = [r for client in clients.values() for r in (*client.train, *client.holdout)]
    long = list(too_long(encode, context, everything))
    if not long or how == "cut":
        return dict(clients)
    if how == "error":
        raise DataError(
            f"{len(long)} of {len(everything)} texts are longer than model.context = {context} "
            f"tokens (longest {max(n for _, n in long)}); set data.too_long = 'cut' or 'drop', or "
            "a larger model.context")
    left = _without(clients, {record for record, _ in long})
    require(bool(left) or not clients, DataError,
            f"data.too_long = 'drop' leaves no client a text: {len(long)} of {len(everything)} are "
            f"longer than model.context = {context} tokens (shortest of them "
            f"{min(n for _, n in long)}); raise model.context, or set data.too_long = 'cut'")
    return left


def _without(clients: Mapping[str, ClientData],
             drop: Collection[Record]) -> dict[str, ClientData]:
    """The clients that have training records left without some."""

    def keep(records: Sequence[Record]) -> tuple[Record, ...]:
        return tuple(record for record in records if record not in drop)

    left = {name: ClientData(keep(c.train), keep(c.holdout)) for name, c in clients.items()}
    return {name: client for name, client in left.items() if client.train}
