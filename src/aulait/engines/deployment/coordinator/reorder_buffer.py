"""Replies in the order of their requests, whoever answers first, without holding them all in
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
from aulait.engines.deployment.protocol import envelope as packets
from aulait.engines.deployment.protocol import tensor_codec
from aulait.engines.deployment.protocol.envelope import Packet


class ReorderBuffer:
    """Packets by name, on disk until they are taken.

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
        """Lay a packet by.

        Raises:
            AulaitError: no space is left.
        """
        with writing(self._folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (closed with the block)
            start = self._file.seek(0, 2)
            for part in packets.chunks(packet):
                self._file.write(part)
            self._places[name] = (start, self._file.tell() - start)

    def take(self, name: str) -> Packet | None:
        """The packet of a name, once; None where there is none."""
        place = self._places.pop(name, None)
        if place is None or self._file is None:
            return None
        self._file.seek(place[0])
        return packets.loads(self._file.read(place[1]), 2**62)


def in_order(names: Sequence[str], early: Iterable[ClientUpdate],
             later: Iterable[tuple[ClientUpdate, Packet]],
             spool: ReorderBuffer) -> Iterator[ClientUpdate]:
    """Replies by the order of ``names``; those that nobody gave are left out.

    Args:
        names: clients in the order of their requests.
        early: updates that are here.
        later: updates that come in any order, with their packets.
        spool: where answers wait for those before them.
    """
    here = {update.client: update for update in early}
    coming = iter(later)
    for name in names:
        if name in here:
            yield here.pop(name)
            continue
        if (waiting := spool.take(name)) is not None:
            yield tensor_codec.read_reply(waiting)
            continue
        for update, packet in coming:
            if update.client == name:
                yield update
                break
            spool.put(update.client, packet)
