"""One process at a time: a lock on a file, which the kernel takes away from a process that died."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from aulait.core.errors import ConfigError

# Whoever asks whether the lock is held has it for a moment (``lock_is_held``).
_PATIENCE_S = 1.0


@contextlib.contextmanager
def only_process_of(folder: Path) -> Iterator[None]:
    """Hold FOLDER/lock as long as the block runs.

    Raises:
        ConfigError: another process holds it.
    """
    lock = FileLock(folder / "lock", timeout=_PATIENCE_S, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"found another process at work in {folder}, expected none; end it, or "
                          "choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def lock_is_held(path: Path) -> bool:
    """Whether some process holds the lock on this file; nobody is turned out of it."""
    if not path.exists():
        return False
    lock = FileLock(path, blocking=False, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False
