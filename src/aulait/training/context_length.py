"""Records that are longer than the model's context: cut, dropped, or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aulait.core.errors import DataError, require
from aulait.core.types import Record
from aulait.data.client_data import ClientData
from aulait.training.batches import Encoder, too_long


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
    drop = {record for record, _ in long}

    def keep(records: Sequence[Record]) -> tuple[Record, ...]:
        return tuple(record for record in records if record not in drop)

    left = {name: ClientData(keep(c.train), keep(c.holdout)) for name, c in clients.items()}
    left = {name: client for name, client in left.items() if client.train}
    require(bool(left) or not clients, DataError,
            f"data.too_long = 'drop' leaves no client a text: {len(long)} of {len(everything)} are "
            f"longer than model.context = {context} tokens (shortest of them "
            f"{min(n for _, n in long)}); raise model.context, or set data.too_long = 'cut'")
    return left
