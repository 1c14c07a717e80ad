"""The worker of a site: one process that holds base, embedder and records, and answers on a local
socket.

Flower starts a process for every message; all of them talk to this one, so that the base is loaded
once. One message is worked on at a time, questions after its health are answered meanwhile. Nothing
that arrives can end it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from aulait.core.errors import AulaitError, DeviceError
from aulait.core.files import JsonObject
from aulait.core.parsing import parsed_json
from aulait.engines.deployment.protocol.envelope import HEALTH, Packet
from aulait.engines.deployment.site import local_socket
from aulait.engines.deployment.site.handler import EventSink, SiteHandler
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.resources.meters import peak_of_process

HEALTH_BYTES = 1 << 20
_TICK_S = 0.2
_PATIENCE_S = 600.0  # for the bytes of a message, once it has begun


def silent(event: str, /, **fields: object) -> None:
    """Log nothing."""


def socket_path(site: SiteFile) -> Path:
    """Where the worker of a site answers."""
    return site.site.state / "worker.sock"


def health(path: Path, timeout_s: float = 5.0) -> JsonObject:
    """What a running worker says of itself.

    Raises:
        DeviceError: none answers there.
    """
    answer = local_socket.ask(path, HEALTH, HEALTH_BYTES, timeout_s)
    try:
        found: JsonObject = parsed_json(answer.head)
    except ValueError as error:
        raise DeviceError(f"the worker on {path} is of another version") from error
    return found


class Worker:
    """The process's state beside the site's own judgement."""

    def __init__(self, site: SiteFile, log: EventSink) -> None:
        self._site, self._log = site, log
        self._handler = SiteHandler(site, log)
        self._turn = threading.Lock()
        self._state, self._since, self._last = "unloaded", _now(), time.monotonic()
        self._last_order: str | None = None

    def facts(self) -> Packet:
        """Health, as it travels; its names are those of ``aulait status``."""
        own = {"kind": "health", "name": self._site.site.name, "pid": os.getpid(),
               "since": self._since, "state": self._state, "last_order": self._last_order,
               "memory_bytes": peak_of_process()}
        return Packet(json.dumps(own | asdict(self._handler.facts)).encode())

    def attend(self, connection: socket.socket) -> None:
        """One message and its answer; whatever is wrong with it ends this connection and nothing
        else."""
        with connection:
            if not local_socket.owned(connection):
                self._log("intruder", reason="a process of another user asked on the local socket")
                return
            try:
                connection.settimeout(_PATIENCE_S)
                packet = local_socket.receive(connection, self._site.limits.message_bytes)
                answer = self.facts() if packet.head == HEALTH.head else self._work(packet)
                local_socket.send(connection, answer)
            except (AulaitError, OSError) as error:
                self._handler.facts.last_error = str(error)
                self._log("unreadable", reason=str(error))

    def _work(self, packet: Packet) -> Packet:
        with self._turn:
            self._state, self._last_order = "working", _now()
            try:
                return self._handler.answer(packet)
            finally:
                self._state, self._last = "idle", time.monotonic()

    def rest(self) -> None:
        """Let the base go when nothing came for ``limits.idle_s``."""
        if (
            self._state == "idle" and time.monotonic() - self._last > self._site.limits.idle_s
            and self._turn.acquire(blocking=False)
        ):
            try:
                if self._handler.rest():
                    self._log("unloaded", idle_s=self._site.limits.idle_s)
                self._state = "unloaded"
            finally:
                self._turn.release()


def serve(site: SiteFile, stop: threading.Event, log: EventSink = silent) -> None:
    """Answer until ``stop`` is set.

    Args:
        site: the site file.
        stop: ends the worker at once; what it works on gets no answer, and where records are
            protected is charged all the same.
        log: (event, **fields) of the site's own log.

    Raises:
        DeviceError: another worker answers for this site, or the state folder does not suit.
        ConfigError: the key of the coordinator cannot be read.
    """
    worker = Worker(site, log)
    with local_socket.listening(socket_path(site)) as server:
        server.settimeout(_TICK_S)
        log("started", socket=str(socket_path(site)))
        while not stop.is_set():
            worker.rest()
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                threading.Thread(target=worker.attend, args=(connection,), daemon=True).start()
    log("stopped")


def running(site: SiteFile) -> JsonObject | None:
    """Health of a site's worker, or None where none runs."""
    try:
        return health(socket_path(site))
    except DeviceError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
