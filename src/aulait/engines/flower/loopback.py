"""A whole deployment on one machine: keys, site files and data laid out in a folder, every process
a real one, TLS and all.

For the demonstration, the benchmark and the tests; and the shortest description of what an operator
and his sites do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from aulait.core.errors import DeviceError, require
from aulait.core.files import JsonMapping
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol import receipts
from aulait.engines.deployment.site import site_file, worker
from aulait.engines.flower import processes

COMMAND = [sys.executable, "-c", "from aulait.cli import main; main()"]
START_S = 120.0


@dataclass
class Loopback:
    """Where everything lies, and the processes that run.

    Attributes:
        folder: of the layout: server/ (keys), one folder a site, logs/.
        host, port: of the server.
        sites: name -> its site file.
        running: name -> process; "server" is the coordinator.
    """

    folder: Path
    host: str
    port: int
    sites: dict[str, Path]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def keys(self) -> Path:
        """The server's keys folder."""
        return self.folder / "server"

    def log(self, name: str) -> Path:
        """What a process wrote to its terminal."""
        return self.folder / "logs" / f"{name}.txt"

    def join(self, name: str, command: Sequence[str] = COMMAND, **around: str) -> None:
        """Start a site, and wait until its worker answers.

        Args:
            name: of the site.
            command: what takes the words ``join SITE.toml``; by default aulait.
            around: variables of its environment.
        """
        self._start(name, ["join", str(self.sites[name])], command, around)
        site, until = site_file.read(self.sites[name]), time.monotonic() + START_S
        while worker.running(site) is None:
            alive = self.running[name].poll() is None and time.monotonic() < until
            require(alive, DeviceError,
                    f"site '{name}' did not start: {processes.last_words(self.log(name), 3)}")
            time.sleep(0.1)

    def serve(self, experiment: Path, out: Path, *words: str,
              command: Sequence[str] = COMMAND) -> subprocess.Popen[bytes]:
        """Start the coordinator for one run; it ends by itself.

        Args:
            experiment: its file.
            out: the run folder.
            words: more of ``aulait serve``.
            command: what takes the words ``serve FILE ...``; by default aulait.
        """
        self._start("server", ["serve", str(experiment), "--keys", str(self.keys), "--host",
                               self.host, "--port", str(self.port),
                               "--out", str(out), "--json", *words], command)
        return self.running["server"]

    def finished(self, limit_s: float) -> int:
        """Wait for the coordinator; its exit code.

        Raises:
            TimeoutExpired: it has not ended in time.
        """
        return self.running["server"].wait(limit_s)

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """Send a signal to a process (not to its children), and wait where that ends it."""
        process = self.running[name]
        os.kill(process.pid, how)
        if how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            process.wait(30)

    def stop(self) -> None:
        """End everything."""
        for process in self.running.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def _start(self, name: str, words: Sequence[str], command: Sequence[str] = COMMAND,
               more: Mapping[str, str] | None = None) -> None:
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        around = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(more or {})}
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen([*command, *words], stdout=log,
                stderr=subprocess.STDOUT, env=around,
                                                  stdin=subprocess.DEVNULL, start_new_session=True)


@contextlib.contextmanager
def laid_out(
    folder: Path, rows: Mapping[str, Sequence[Mapping[str, str]]],
    limits: Mapping[str, JsonMapping] | None = None, *, host: str = "127.0.0.1"
) -> Iterator[Loopback]:
    """Keys, sites that know each other, and their data in a folder; everything started is ended on
    the way out.

    Args:
        folder: new or empty; its path must be short enough for local sockets.
        rows: site -> its own rows.
        limits: site -> keys of ``[limits]``; by default runs without privacy are allowed, as
            "local" and "proxy".
        host: address of the server, in its certificate and in the site files.
    """
    port = processes.free_port()
    keys.server(folder / "server", sorted({host, "127.0.0.1", "localhost"}))
    sites, peers = {}, dict[str, str]()
    for name in rows:
        keys.site(folder / name, name, f"{host}:{port}")
        own_keys = receipts.identity(name, folder / name / "site-key")
        assert own_keys is not None  # it was made just now
        peers[name] = own_keys.sums.public.hex()
    for name, own in rows.items():
        home = folder / name
        keys.enrol(folder / "server", name, home / "site-key.pub")
        for public in ("ca.pem", "order-key.pub"):
            (home / public).write_bytes((folder / "server" / public).read_bytes())
        (home / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own),
            encoding="utf-8")
        allowed = {"privacy": False, "roles": ["local", "proxy"],
                   "threads": 1} | dict((limits or {}).get(name, {}))
        tables = {"site": {"name": name, "server": f"{host}:{port}", "state": "state"},
                  "data": {"source": "own.jsonl"}, "models": {"brew": "brew"},
                  "embedders": {"minilm": "minilm"}, "peers": peers, "limits": allowed}
        (home / "site.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
        sites[name] = home / "site.toml"
    loopback = Loopback(folder, host, port, sites)
    try:
        yield loopback
    finally:
        loopback.stop()
