"""Records that a base cannot read as they are: longer than its context (cut, dropped, or an
error), or refused by its chat template (left out)."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence

from aulait.core.errors import DataError, require
from aulait.core.types import Record
from aulait.data.client_data import NAMED_ROWS, ClientData
from aulait.data.record_store import picked
from aulait.training.batches import Encoder, too_long


def readable(encode: Encoder, clients: Mapping[str, ClientData],
             ) -> tuple[dict[str, ClientData], tuple[str, ...]]:
    """The clients without the conversations that the base's chat template refuses, and a line on
    each of these, the first 1,000.

    Whether a record is left out follows from the record alone.

    Raises:
        DataError: no client has a training record left.
    """
    if not encode.form.chat:
        return dict(clients), ()
    found = [(name, place, reason) for place, (name, record) in enumerate(_records(clients))
             if record.asked and (reason := encode.form.refusal(record.turns)) is not None]
    if not found:
        return dict(clients), ()
    left = _without(clients, {place for _, place, _ in found})
    require(bool(left), DataError, found[0][2])
    return left, tuple(f"a conversation of '{name}': {reason}"
                       for name, _, reason in found[:NAMED_ROWS])


def fitted(how: str, context: int, encode: Encoder,
           clients: Mapping[str, ClientData]) -> dict[str, ClientData]:
    """Treat texts of more than ``context`` tokens as ``how`` (``data.too_long``) says.

    Raises:
        DataError: there are some, and ``how`` is "error".
    """
    if how == "cut":
        return dict(clients)
    long = dict(too_long(encode, context, (record for _, record in _records(clients))))
    if not long:
        return dict(clients)
    count = sum(len(client.train) + len(client.holdout) for client in clients.values())
    if how == "error":
        raise DataError(
            f"{len(long)} of {count} texts are longer than model.context = {context} tokens "
            f"(longest {max(long.values())}); set data.too_long = 'cut' or 'drop', or a larger "
            "model.context")
    left = _without(clients, long)
    require(bool(left) or not clients, DataError,
            f"data.too_long = 'drop' leaves no client a text: {len(long)} of {count} are longer "
            f"than model.context = {context} tokens (shortest of them {min(long.values())}); raise "
            "model.context, or set data.too_long = 'cut'")
    return left


def _records(clients: Mapping[str, ClientData]) -> Iterator[tuple[str, Record]]:
    """All records with their clients, in the order of the places by which they are told."""
    return ((name, record) for name, client in clients.items()
            for part in (client.train, client.holdout) for record in part)


def _without(clients: Mapping[str, ClientData], drop: Container[int]) -> dict[str, ClientData]:
    """The clients without the records at some places among all, and without those that have
    nothing left to train on."""
    places = itertools.count()

    def keep(records: Sequence[Record]) -> Sequence[Record]:
        """What is left of the next part."""
        own = [at for at in range(len(records)) if next(places) not in drop]
        return records if len(own) == len(records) else picked(records, own)

    left = {name: ClientData(keep(client.train), keep(client.holdout))
            for name, client in clients.items()}
    return {name: client for name, client in left.items() if client.train}
