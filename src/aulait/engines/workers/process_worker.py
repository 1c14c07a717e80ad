"""A worker that is another process of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import BinaryIO, cast

from aulait.core.errors import DeviceError
from aulait.engines.workers.contract import ShareResult, WorkerSetup, WorkerShare
from aulait.engines.workers.messages import WorkerReply, packed, receive, send, unpacked

CHILD = "aulait.engines.workers.child"
GRACE_S = 5.0  # within which a process whose pipes are closed has ended


class ProcessWorker:
    """A process with a base of its own, spoken to through pipes.

    A process of its own, and not a copy of this one: a copy would inherit locks, threads and the
    state of random generators.

    Args:
        setup: what it must know.
        label: which of the workers it is, as "2 of 4"; for messages.

    Attributes:
        process: as the system knows it.
    """

    def __init__(self, setup: WorkerSetup, label: str) -> None:
        self._label = label
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        threads = str(setup.threads)
        paths = os.pathsep.join(path for path in sys.path if path)
        around = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads,
                  "MKL_NUM_THREADS": threads}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._said, env=around)
        self._write(packed(setup))

    def ready(self) -> None:
        """Wait until the base is loaded.

        Raises:
            AulaitError: it cannot be.
        """
        self._read()

    def begin(self, share: WorkerShare) -> None:
        """Write the share into the pipe."""
        self._write(packed(share))

    def finished(self) -> ShareResult:
        """Wait for the reply.

        Raises:
            DeviceError: the process has ended, or could not do it.
        """
        return self._read().result

    def close(self) -> None:
        """End the process, whatever it is doing: it has nothing to save."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._said):
            with suppress(OSError):  # what could not be written any more
                cast(BinaryIO, stream).close()

    def _write(self, message: bytes) -> None:
        try:
            send(cast(BinaryIO, self.process.stdin), message)
        except OSError as error:
            raise self._gone() from error

    def _read(self) -> WorkerReply:
        message = receive(cast(BinaryIO, self.process.stdout))
        if message is None:
            raise self._gone()
        reply = cast(WorkerReply, unpacked(message))
        if reply.error is not None:
            raise reply.error
        return reply

    def _gone(self) -> DeviceError:
        """The error of a process that has ended. Its last line goes to the terminal alone: it may
        be words of the records, and errors go into logs."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        if said := self._last_words():
            sys.stderr.write(f"worker {self._label} said: {said}\n")
        return DeviceError(
            f"worker {self._label} (process {self.process.pid}) "
            f"{ending(self.process.returncode)} in the middle of the run, expected it to live as "
            f"long; nothing on disk is lost: go on with --resume")

    def _last_words(self) -> str:
        """The last line that the process wrote."""
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines()
                 if line.strip()]
        return lines[-1].strip()[:200] if lines else ""


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "no longer answers"
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else str(-code)
        often = ", as happens where memory runs out" if -code == signal.SIGKILL else ""
        return f"was ended by signal {name}{often},"
    return f"ended with status {code}"
