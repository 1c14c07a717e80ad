"""Updates in the order of their requests, whoever answers first, without holding them all in
memory.

Sums of floating numbers depend on their order in the last bit, and steps of an optimiser can make
much of a last bit; so a run whose sites answered in another order would not be the same run. Early
answers wait in a file without a name, in the operator's folder. Sensitive.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from aulait.core.files import writing
from aulait.core.types import ClientUpdate
from aulait.engines.deployment.protocol.envelope import Packet, chunks, packet_from
from aulait.engines.deployment.protocol.messages import (
    Message,
    UpdateAnswer,
    client_update,
    read_answer,
)


class ReorderBuffer:
    """Updates by client, on disk until they are taken.

    Args:
        folder: where the file lies; it has no name and is gone when the block ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._places = folder, dict[str, tuple[int, int]]()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> ReorderBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, name: str, packet: Packet) -> None:
        """Lay an answer by.

        Raises:
            AulaitError: no space is left.
        """
        with writing(self._folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (closed with the block)
            start = self._file.seek(0, 2)
            for part in chunks(packet):
                self._file.write(part)
            self._places[name] = (start, self._file.tell() - start)

    def take(self, name: str) -> Packet | None:
        """The answer of a client, once; None where there is none."""
        place = self._places.pop(name, None)
        if place is None or self._file is None:
            return None
        self._file.seek(place[0])
        return packet_from(self._file.read(place[1]), 2**62)


def in_order(names: Sequence[str], early: Iterable[ClientUpdate],
             later: Iterable[tuple[ClientUpdate, Message[UpdateAnswer]]],
             buffer: ReorderBuffer) -> Iterator[ClientUpdate]:
    """Updates by the order of ``names``; those that nobody gave are left out.

    Args:
        names: clients in the order of their requests.
        early: updates that are here.
        later: updates that come in any order, with the answers that they were in.
        buffer: where updates wait for those before them.
    """
    here = {update.client: update for update in early}
    coming = iter(later)
    for name in names:
        if name in here:
            yield here.pop(name)
        elif (waiting := buffer.take(name)) is not None:
            yield _update_in(waiting)
        else:
            for update, answer in coming:
                if update.client == name:
                    yield update
                    break
                buffer.put(update.client, answer.packet())


def _update_in(packet: Packet) -> ClientUpdate:
    """The update that was laid by; it was read before."""
    answer = read_answer(packet)
    assert isinstance(answer.head, UpdateAnswer)
    return client_update(Message(answer.head, answer.body))
