"""Child processes: a log that does not grow for ever, a free port, the end of a process with all
that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from aulait.core.errors import ConfigError

_LARGE_LOG_BYTES: Final = 10 * 2**20


def start(words: Sequence[str], log: Path, environment: Mapping[str, str],
          told: int | None = None) -> subprocess.Popen[bytes]:
    """A process in a session of its own, so that an interrupt at the terminal reaches us alone; it
    writes into its log.

    Args:
        words: the command.
        log: added to; set aside first where it is large.
        environment: of the process.
        told: the writing end of a pipe that the process inherits as AULAIT_TELL.
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    set_aside(log)
    given = {**environment, "AULAIT_ROOT": str(os.getpid()),
             **({} if told is None else {"AULAIT_TELL": str(told)})}
    with open(log, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as output:
        return subprocess.Popen(
            words, env=given, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            cwd=log.parent, umask=0o077,
            start_new_session=True, pass_fds=() if told is None else (told,),
        )  # fmt: skip


def set_aside(log: Path) -> None:
    """Move what a large log holds to NAME.1, also under a process that writes it: it appends, and
    so goes on at the beginning.

    A line of that very moment may be lost. A disk that is full stops nothing.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LARGE_LOG_BYTES:
            shutil.copy(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


def end(process: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """End a process and all of its session: asked first, made to after the grace."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # what it had started, and itself if it did not listen
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(log: Path, lines: int = 3) -> str:
    """The last lines of a log that say something, on one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return "its log cannot be read"
    said = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return " | ".join(line[:300] for line in said[-lines:]) or "it said nothing"


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def claim(host: str, port: int, wait_s: float) -> None:
    """Wait until a port can be listened on: a server that was killed lets go of it within seconds.

    Raises:
        ConfigError: somebody else has it, or the host is no address of this machine.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"cannot listen on {host}:{port} ({error.strerror or error}), expected a free "
                    "port of this machine; choose another with --host and --port, or end what "
                    "listens there") from None
        time.sleep(0.2)


def answers(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # nosec B104  # a comparison
    try:
        with socket.create_connection((near, port), timeout=1.0):
            return True
    except OSError:
        return False


def loopback(host: str) -> bool:
    """Whether a host means this machine alone."""
    return host in ("localhost", "127.0.0.1", "::1", "[::1]")
