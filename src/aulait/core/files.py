"""How every file that must survive a crash is written: replaced whole, or a line added.

Files are their owner's alone (0600) unless the caller says otherwise, whatever the umask and
whatever mode they had before; a wider mode is narrowed by the umask, as that of ``open`` is.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from aulait.core.errors import AulaitError
from aulait.core.parsing import JsonObject as JsonObject

JsonTree: TypeAlias = "bool | int | float | str | list[JsonTree] | dict[str, JsonTree] | None"
"""What a JSON parser makes of a text."""

JsonMapping: TypeAlias = Mapping[str, Any]
"""The same, only read."""

LARGEST_NUMBER: Final = 1e100
"""A reader of a run folder takes no number beyond it: no run could measure one."""


PRIVATE: Final = 0o600
PUBLIC: Final = 0o666


def private_folder(path: Path) -> Path:
    """A folder that only its owner can enter (0700), made with its parents where it is missing.

    Raises:
        OSError: it cannot be made or closed.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o777 != 0o700:
        path.chmod(0o700)
    return path


def replace_file(path: Path, content: bytes, *, mode: int = PRIVATE, durable: bool = True) -> Path:
    """Replace a file: readers see the old content or the new one, also after a crash.

    Args:
        path: the file; its folder exists. The new content waits beside it as ``NAME.tmp``, a name
            that a later call uses again, so that no crash leaves several behind.
        content: all of it.
        mode: of the file.
        durable: it is on disk when this returns; False leaves that to the system.

    Returns:
        The path.

    Raises:
        OSError: it could not be written; then the file is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            _close_to_others(file.fileno(), mode)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path)
    return path


def append_durably(path: Path, line: bytes, *, mode: int = PRIVATE, undo: bool = False) -> None:
    """Add a line, with its line feed, to a file; when this returns it is on disk.

    Args:
        path: the file; its folder exists.
        line: what is added, in one write.
        mode: of the file.
        undo: take back what a failed write left, for a file whose next line must not be spoilt;
            without it the half line stays, for a file whose reader counts what may have been told.

    Raises:
        OSError: it could not be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    try:
        _close_to_others(descriptor, mode)
        size = os.fstat(descriptor).st_size
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(descriptor, left):]
            os.fsync(descriptor)
        except OSError:
            if undo:
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if size == 0:
        sync_folder(path)


def _close_to_others(descriptor: int, mode: int) -> None:
    """Give an open file exactly its mode where that lets nobody else in: the umask may have taken
    the owner's own bits, and an older file may be open to all."""
    if not mode & 0o077 and os.fstat(descriptor).st_mode & 0o777 != mode:
        os.fchmod(descriptor, mode)


def sync_folder(path: Path) -> None:
    """Make the name of a new or replaced file durable."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def json_document(value: Mapping[str, object]) -> bytes:
    """A JSON object as the content of a file: indented, with its last line feed."""
    return (json.dumps(plain_json(value), indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def json_line(value: Mapping[str, object]) -> bytes:
    """A JSON object as one line of a file, with its line feed."""
    return (json.dumps(plain_json(value), ensure_ascii=False) + "\n").encode("utf-8")


def plain_json(value: object) -> object:
    """Plain JSON values: infinite and undefined numbers become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AulaitError(
                f"no space left in the run folder {path}; free some space and go on with --resume"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise AulaitError(
                f"cannot write to the run folder {path} ({error.strerror}); choose another --out"
            ) from error
        raise
