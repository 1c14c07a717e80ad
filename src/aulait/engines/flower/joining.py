"""A site joins: the worker in this process, Flower's SuperNode as a child that is started again
whenever it ends.

The SuperNode connects outwards to the server; nothing listens for other machines here. What it may
do is narrowed in ``hardening/supernode.py``. The private key stays in its file: it signs who this
site is, and is read by the SuperNode alone.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from aulait.core.errors import AulaitError, ConfigError, require
from aulait.core.files import JsonObject
from aulait.core.parsing import parsed_json
from aulait.core.process_lock import only_process_of
from aulait.engines.deployment.site import site_file, worker
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.engines.deployment.site.site_log import Say, SiteLog
from aulait.engines.flower import processes
from aulait.engines.flower.hardening import supported

APP: Final = "aulait.engines.flower.client_app:app"
FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0
_STEADY_S: Final = 60.0
Work = Callable[[SiteFile, threading.Event, Callable[..., None]], None]


def join(site: SiteFile, insecure: bool, say: Say, stop: threading.Event, *,
         work: Work | None = None, app: str = APP) -> None:
    """Take part until told to stop.

    Args:
        site: the site file.
        insecure: without TLS; the server must be on loopback.
        say: told of what happens, a line each.
        stop: set it to end everything.
        work: the worker: answers until the event is set, and logs; None takes aulait's
            own.
        app: the client app that answers, as ``module:name``; never what a server ships.

    Raises:
        ConfigError: the site file and its keys do not suit, or Flower does not.
        AulaitError: what the worker ended with.
    """
    check(site, insecure)
    state = site_file.own_state(site)
    with only_process_of(state):
        note = SiteLog(state / "log.jsonl", say)
        node = SuperNode(site, state, insecure, note, app)
        keeper = threading.Thread(target=node.keep, args=(stop,), name="aulait-supernode")
        keeper.start()
        try:
            (work or worker.serve)(site, stop, note.event)
        finally:
            stop.set()
            keeper.join()
    if node.unfit:
        raise ConfigError(node.unfit)


def check(site: SiteFile, insecure: bool) -> None:
    """Look at everything that joining needs before anything starts.

    Raises:
        ConfigError: all problems, one a line.
    """
    supported.supported()
    found = site_file.absent(site)
    host = site.site.server.rpartition(":")[0]
    if insecure and not processes.loopback(host):
        found.append(
            f"found --insecure and server {host}, expected loopback where there is no TLS; leave "
            "--insecure out")
    key = site.keys.private
    if key.is_file() and stat.S_IMODE(key.stat().st_mode) & 0o077:
        found.append(
            f"keys.private: {key} may be read by others, expected mode 0600; run: chmod 600 {key}")
    require(not found, ConfigError, "\n".join(found))


def allows(site: SiteFile) -> list[str]:
    """What this site allows, in words, a line each."""
    limits = site.limits
    noise = (
        f"only runs with privacy: epsilon at most {limits.epsilon:g}, delta at most "
        f"{limits.delta:g}" if limits.privacy else
        "RUNS WITHOUT PRIVACY TOO: what is learnt from the text may reach the server without noise")
    return [
        f"site {site.site.name}, server {site.site.server}",
        f"roles: {', '.join(limits.roles)}; methods: {', '.join(limits.methods) or 'all'}; models: "
        f"{', '.join(site.models)}",
        noise,
        f"at most {limits.records:,} records, {limits.rounds:,} rounds of {limits.steps:,} steps, "
        f"batch {limits.batch}, rank {limits.rank}",
    ]


class SuperNode:
    """Flower's SuperNode, kept alive.

    Args:
        site: the site file.
        state: the site's own folder.
        insecure: without TLS.
        note: told of what happens.
        app: the client app that answers.

    Attributes:
        unfit: why it cannot work at all; empty while it can.
    """

    def __init__(self, site: SiteFile, state: Path, insecure: bool, note: SiteLog,
                 app: str) -> None:
        self._site, self._state, self._insecure, self._note, self._app = (
            site, state, insecure, note, app
        )
        self.unfit = ""

    def keep(self, stop: threading.Event) -> None:
        """Start it again whenever it ends, later and later while it fails at once; until told to
        stop."""
        delay_s = FIRST_S
        try:
            supported.launchers(self._state / "bin",
                                {"flower-superexec": "", "flwr-clientapp": self._app})
            while not stop.is_set():
                began_s = time.monotonic()
                code = self._once(stop)
                if stop.is_set() or self.unfit:
                    return
                delay_s = FIRST_S if time.monotonic() - began_s > _STEADY_S else delay_s
                words = processes.last_words(self._state / "supernode.log", 2)
                self._note.shown("node_ended",
                    f"the node ended with code {code}; again in {delay_s:g} s", code=code,
                    said=words)
                stop.wait(delay_s)
                delay_s = min(2 * delay_s, LONGEST_S)
        except (AulaitError, OSError) as error:
            self.unfit = str(error)
        finally:
            stop.set()

    def _once(self, stop: threading.Event) -> int:
        """One life of the process; its exit code."""
        log = self._state / "supernode.log"
        reading, writing = os.pipe()
        try:
            process = processes.start(self._words(), log, self._around(), told=writing)
        finally:
            os.close(writing)
        listener = threading.Thread(target=self._listen,
            args=(os.fdopen(reading, encoding="utf-8", errors="replace"),), daemon=True)
        listener.start()
        try:
            while process.poll() is None and not stop.wait(0.2):
                processes.set_aside(log)
        finally:
            processes.end(process)
        listener.join(1.0)
        if process.returncode == supported.UNFIT and not self.unfit:
            self.unfit = f"Flower does not suit: {processes.last_words(log, 1)}"
        return process.returncode

    def _words(self) -> list[str]:
        site = self._site
        own = ("--host", "127.0.0.1", "--port", str(processes.free_port()))
        words = supported.command("flower-supernode", "--superlink", site.site.server, *own)
        if self._insecure:
            return [*words, "--insecure"]
        return [*words, "--root-certificates", str(site.keys.authority),
                "--auth-supernode-private-key", str(site.keys.private)]

    def _around(self) -> dict[str, str]:
        more = {"AULAIT_SOCKET": str(worker.socket_path(self._site)),
                "AULAIT_MESSAGE_BYTES": str(self._site.limits.message_bytes)}
        if self._insecure:
            more["AULAIT_NODE_KEY"] = str(self._site.keys.private)
        return supported.environment(self._state / "bin", self._state / "flower",
            secrets.token_hex(32), alone=True, **more)

    def _listen(self, lines: IO[str]) -> None:
        """What the processes tell over the pipe."""
        with lines:
            for raw in lines:
                try:
                    told = parsed_json(raw)
                    kind = str(told.pop("event"))
                except (ValueError, KeyError, AttributeError):
                    continue
                self._heard(kind, told)

    def _heard(self, kind: str, told: JsonObject) -> None:
        name, server = self._site.site.name, self._site.site.server
        if kind == "unfit":
            self.unfit = (
                f"found a Flower without {told.get('missing')}, expected flwr>=1.41,<1.43; install "
                "another"
            )
        text = {
            "connected": f"connected to {server} as {name}",
            "back": f"server {server} reached again",
            "away": f"server {server} not reachable ({told.get('error')}); trying again",
            "unknown": f"server {server} does not know this key, or its clock and ours differ by "
                       f"more than 5 minutes; send it {self._site.keys.public}, for: aulait keys "
                       f"enrol DIR {name} FILE",
            "refused": f"refused {told.get('what')}",
        }.get(kind, kind)
        self._note.shown(f"node_{kind}", text, **told)
