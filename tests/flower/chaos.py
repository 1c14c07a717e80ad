"""A TCP proxy on loopback that misbehaves when told: late, cut, stalled as in a partition, or with flipped bits."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

PIECE = 1 << 15


class Chaos:
    """Carries bytes between a port of loopback and another one.

    Args:
        target: port of loopback that connections go on to.

    Attributes:
        port: where it listens.
        delay_s: that every piece is held back, each way.
        stalled: nothing passes and nothing is closed; bytes wait in the sockets. So does a new connection: a partition.
        flip: this many pieces from now on have a flipped bit, whichever way they go.
        flipped: pieces that had one.
        carried: bytes that passed.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.delay_s, self.stalled, self.flip, self.flipped, self.carried = 0.0, False, 0, 0, 0
        self._closed = False
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.2)
        self.port: int = self._server.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Chaos:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.cut()
        self._accepting.join(5)
        self._server.close()

    def cut(self) -> int:
        """Close all connections that are open; how many."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for side in pair:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def calm(self) -> None:
        """Misbehave no more."""
        self.delay_s, self.stalled, self.flip = 0.0, False, 0

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._server.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._open, args=(near,), daemon=True).start()

    def _open(self, near: socket.socket) -> None:
        self._hold()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        pair = (near, far)
        with self._lock:
            self._pairs.add(pair)
        ways = [threading.Thread(target=self._carry, args=way, daemon=True) for way in ((near, far), (far, near))]
        for way in ways:
            way.start()
        for way in ways:
            way.join()
        with self._lock:
            self._pairs.discard(pair)
        for side in pair:
            side.close()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        """One way, until either side ends."""
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._hold()
                sink.sendall(self._spoilt(piece))
                self.carried += len(piece)
        for side in (source, sink):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _hold(self) -> None:
        while self.stalled and not self._closed:
            time.sleep(0.02)

    def _spoilt(self, piece: bytes) -> bytes:
        with self._lock:
            if not self.flip:
                return piece
            self.flip -= 1
            self.flipped += 1
        middle = len(piece) // 2
        return piece[:middle] + bytes([piece[middle] ^ 0x20]) + piece[middle + 1 :]
