"""A socket in a folder of its owner: whole packets there and back, for nobody else on the machine.

The file has mode 0600 in a folder of mode 0700, and the other side must run under the same user (or
as root), which the kernel tells; so another user of the machine can neither ask for work nor answer
in the worker's place.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from aulait.core.errors import DeviceError, WireError, require
from aulait.engines.deployment.protocol.envelope import Packet, chunks, receive_packet

MOST_PATH = 100  # bytes that a socket's name may have on every system
_PIECE = 1 << 20


def send(connection: socket.socket, packet: Packet) -> None:
    """A packet, whole."""
    for part in chunks(packet):
        connection.sendall(part)


def send_raw(connection: socket.socket, raw: bytes) -> None:
    """The bytes of a packet, as they came."""
    connection.sendall(raw)


def receive(connection: socket.socket, limit: int) -> Packet:
    """A packet, whole; memory is taken as bytes arrive.

    Raises:
        WireError: it is none, too large, cut or damaged.
    """

    def take(count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            part = connection.recv(min(_PIECE, count - len(found)))
            if not part:
                break
            found += part
        return bytes(found)

    return receive_packet(take, limit)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket that waits for the owner's processes; a left-over file of a worker that died is
    replaced.

    Raises:
        DeviceError: a worker answers there already, or the path does not suit.
    """
    require(len(os.fsencode(path)) <= MOST_PATH, DeviceError,
            f"the socket {path} has a name of {len(os.fsencode(path))} bytes, expected at most "
            f"{MOST_PATH}; choose a shorter site.state")
    require(hasattr(socket, "AF_UNIX"), DeviceError,
            "this system has no local sockets; run the site on Linux or macOS")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = stat.S_IMODE(path.parent.stat().st_mode)
    require(not mode & 0o077 and path.parent.stat().st_uid == os.getuid(), DeviceError,
            f"folder {path.parent} has mode {mode:o}, expected 700 and you as its owner; chmod 700 "
            f"{path.parent}")
    if path.exists():
        require(not _answers(path), DeviceError,
                f"a worker answers on {path} already; end it first, or choose another site.state")
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        before = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(before)
        server.listen(16)
        try:
            yield server
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


@contextlib.contextmanager
def calling(path: Path, timeout_s: float | None) -> Iterator[socket.socket]:
    """A connection to the worker.

    Raises:
        DeviceError: nobody answers there, or somebody else.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise DeviceError(
                f"no worker answers on {path} ({error.strerror or error}); start it by 'aulait "
                "join'") from error
        require(owned(connection), DeviceError,
                f"the worker on {path} runs under another user; it was not spoken to")
        yield connection


def ask(path: Path, packet: Packet, limit: int, timeout_s: float | None = None) -> Packet:
    """One packet there, one back.

    Raises:
        DeviceError: nobody answers, or not in time.
        WireError: what came back is no packet.
    """
    with calling(path, timeout_s) as connection:
        try:
            send(connection, packet)
            return receive(connection, limit)
        except TimeoutError as error:
            raise DeviceError(
                f"the worker on {path} gave no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise WireError(
                f"the worker on {path} went away ({error.strerror or error})") from error


def owned(connection: socket.socket) -> bool:
    """Whether the other side runs under this user or as root; where the system does not tell, the
    file's mode must do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED,
        size))
    return user in (0, os.getuid())


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(str(path))
            return True
    except OSError:
        return False


def is_nobody(error: Exception) -> bool:
    """Whether a worker did not answer because none is there."""
    return isinstance(error.__cause__ or error, FileNotFoundError | ConnectionRefusedError)
