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

IN_MEMORY = 1 << 24  # bytes up to which records stay in memory
_BUFFER = 1 << 20


class RecordStore:
    """Records by number, from 0; append, then read.

    They are packed from the beginning, so that what goes to the file leaves no holes in memory.

    Args:
        most: bytes up to which all stay in memory.
    """

    def __init__(self, most: int = IN_MEMORY) -> None:
        self._most = most
        self._ends = array("Q", [0])
        self._written = 0  # bytes in the file
        self._waiting = bytearray()  # what comes behind them
        self._file: IO[bytes] | None = None
        self._descriptor = -1

    def append(self, record: Record) -> int:
        """Keep a record; its number."""
        before = (tuple((turn.role, turn.content) for turn in record.before)
                  if record.before else ())
        self._waiting += marshal.dumps(
            (record.text, record.prompt, record.label, record.unit, before))
        self._ends.append(self._written + len(self._waiting))
        if len(self._waiting) > self._most:
            self._write()
        return len(self._ends) - 2

    def __getitem__(self, number: int) -> Record:
        start, end = self._ends[number], self._ends[number + 1]
        first = start - self._written
        packed = (os.pread(self._descriptor, end - start, start) if first < 0
                  else self._waiting[first : end - self._written])
        # bytes that this process has written
        text, prompt, label, unit, before = marshal.loads(packed)  # nosec B302
        if before:
            before = tuple(Turn(*turn) for turn in before)
        return Record(text, prompt, label, unit, before)

    def records(self, numbers: Iterable[int]) -> Sequence[Record]:
        """Some of the records: themselves while all are in memory, else where they lie."""
        if self._file is None:
            return tuple(map(self.__getitem__, numbers))
        return StoredRecords(self, array("I", numbers))

    def _write(self) -> None:
        """From memory to a file that only this process can open."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the store)
            self._descriptor = self._file.fileno()
            self._most = min(self._most, _BUFFER)
        rest = memoryview(self._waiting)
        while rest:
            count = os.pwrite(self._descriptor, rest, self._written)
            rest, self._written = rest[count:], self._written + count
        self._waiting = bytearray()


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
