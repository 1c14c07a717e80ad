"""Records in the order in which they are read: in memory while they are few, else in a file.

The file has no name and is gone with the process; of a record only its place stays in memory, so
that the memory of a run does not grow with its texts.
"""

from __future__ import annotations

import marshal
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, overload

from aulait.core.types import Record, Turn

IN_MEMORY = 1 << 23  # characters up to which records stay in memory
_BUFFER = 1 << 20


class RecordStore:
    """Records by number, from 0; append, then read.

    Args:
        most: characters up to which all stay in memory.
    """

    def __init__(self, most: int = IN_MEMORY) -> None:
        self._most = most
        self._characters = 0
        self._held: list[Record] | None = []
        self._ends = array("Q", [0])
        self._written = 0
        self._waiting = bytearray()
        self._file: IO[bytes] | None = None
        self._descriptor = -1

    def append(self, record: Record) -> int:
        """Keep a record; its number."""
        if self._held is None:
            self._write(record)
            return len(self._ends) - 2
        self._held.append(record)
        self._characters += len(record.text) + len(record.prompt or "")
        if record.before:
            self._characters += sum(len(turn.content) for turn in record.before)
        number = len(self._held) - 1
        if self._characters > self._most:
            self._spill()
        return number

    def __getitem__(self, number: int) -> Record:
        if self._held is not None:
            return self._held[number]
        if self._waiting:
            self._flush()
        start = self._ends[number]
        packed = os.pread(self._descriptor, self._ends[number + 1] - start, start)
        text, prompt, label, unit, before = marshal.loads(packed)
        if before:
            before = tuple(Turn(*turn) for turn in before)
        return Record(text, prompt, label, unit, before)

    def records(self, numbers: Iterable[int]) -> Sequence[Record]:
        """Some of the records: themselves while they are in memory, else where they lie."""
        if self._held is not None:
            return tuple(self._held[number] for number in numbers)
        return StoredRecords(self, array("I", numbers))

    def _spill(self) -> None:
        """From memory to a file that only this process can open."""
        held, self._held = self._held or [], None
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the store)
        self._descriptor = self._file.fileno()
        for record in held:
            self._write(record)

    def _write(self, record: Record) -> None:
        before = (tuple((turn.role, turn.content) for turn in record.before)
                  if record.before else ())
        packed = marshal.dumps((record.text, record.prompt, record.label, record.unit, before))
        self._waiting += packed
        self._written += len(packed)
        self._ends.append(self._written)
        if len(self._waiting) > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        at = self._written - len(self._waiting)
        rest = memoryview(bytes(self._waiting))
        while rest:
            count = os.pwrite(self._descriptor, rest, at)
            rest, at = rest[count:], at + count
        self._waiting.clear()


class StoredRecords(Sequence[Record]):
    """Records that are read from their store whenever they are looked at."""

    __slots__ = ("_numbers", "_store")

    def __init__(self, store: RecordStore, numbers: array[int]) -> None:
        self._store = store
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> StoredRecords: ...

    def __getitem__(self, index: int | slice) -> Record | StoredRecords:
        if isinstance(index, slice):
            return StoredRecords(self._store, self._numbers[index])
        return self._store[self._numbers[index]]

    def __iter__(self) -> Iterator[Record]:
        return map(self._store.__getitem__, self._numbers)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredRecords) and other._store is self._store:
            return other._numbers == self._numbers
        return isinstance(other, StoredRecords | tuple) and len(other) == len(self) and all(
            one == two for one, two in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def pick(self, indices: Iterable[int]) -> StoredRecords:
        """Those at some places."""
        return StoredRecords(self._store, array("I", [self._numbers[i] for i in indices]))


def picked(records: Sequence[Record], indices: Iterable[int]) -> Sequence[Record]:
    """The records at some places, in that order; those of a store stay there."""
    if isinstance(records, StoredRecords):
        return records.pick(indices)
    return tuple(records[index] for index in indices)
