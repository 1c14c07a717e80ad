"""log.jsonl of a run folder: what happened when in a simulation, what libraries warned of, and
where it failed. It is its owner's, as the folder is, and never to be released. Under privacy it
leaves out what libraries and defects say in words, which may be words of the records, and held-out
losses in the notes of progress.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from aulait.core.errors import AulaitError
from aulait.core.log_files import JsonLinesLog
from aulait.core.version import PACKAGE_VERSION
from aulait.runfolder.naming import LOG
from aulait.runs.progress import Observer


class _Warnings(logging.Handler):
    """Passes on what libraries warn of."""

    def __init__(self, log: _Log, private: bool) -> None:
        super().__init__(logging.WARNING)
        self._log, self._private = log, private

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record down."""
        self._log.add("library", name=record.name, level=record.levelname,
                      message="" if self._private else record.getMessage())


class _Log:
    """A log that stops nothing when it cannot be written: a full disk has its own line."""

    def __init__(self, path: Path) -> None:
        self._file = JsonLinesLog(path)

    def add(self, kind: str, /, **fields: object) -> None:
        """Add an event."""
        with contextlib.suppress(OSError):
            self._file.add(kind, **fields)


@contextmanager
def logged(folder: Path, observer: Observer, resumed: bool,
           private: bool) -> Iterator[Observer]:
    """The observer, with all that it hears written to log.jsonl meanwhile; and how it ended.

    Args:
        folder: of the run; it exists.
        observer: who else hears of it.
        resumed: whether the run goes on.
        private: whether it promises privacy.
    """
    log = _Log(folder / LOG)

    def watch(stage: str, done: int, total: int, note: str) -> None:
        log.add("progress", stage=stage, done=done, total=total,
                note="" if private else note)
        observer.watch(stage, done, total, note)

    def warn(text: str) -> None:
        log.add("warning", reason=text)
        observer.warn(text)

    log.add("resumed" if resumed else "begun", aulait=PACKAGE_VERSION, torch=torch.__version__,
            python=sys.version.split()[0], threads=torch.get_num_threads())
    handler = _Warnings(log, private)
    logging.getLogger().addHandler(handler)
    try:
        yield Observer(watch, warn)
        log.add("finished")
    except (KeyboardInterrupt, SystemExit):
        log.add("interrupted")
        raise
    except BaseException as error:
        ours = isinstance(error, AulaitError)
        said = f": {error}" if ours or not private else ""
        log.add("refused" if ours else "failed", reason=f"{type(error).__name__}{said}",
                where=[line.rstrip() for line in traceback.format_tb(error.__traceback__)])
        raise
    finally:
        logging.getLogger().removeHandler(handler)
