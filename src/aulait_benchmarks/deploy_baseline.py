"""Bare Flower for comparison: its own executables, a server app and a client app of a few lines,
TLS and node keys as in ours.

The client app sends back what it was sent. The server app asks for answers ten times a second and
SuperExec looks for work four times, as in ours: what plain Flower waits beyond that (3 s and 1 s)
is no merit of the comparison. Nothing of Flower is
imported here; keys are those of a loopback deployment.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from aulait.core.errors import AulaitError, require
from aulait.core.files import replace_file
from aulait.engines.flower import processes
from aulait.engines.flower.hardening.supported import SETTINGS
from aulait.engines.flower.loopback import Loopback

START_S: Final = 600.0
ASK_S: Final = 600.0
_LOOK_S: Final = 0.02
_COMMAND_S: Final = 300.0
_PROJECT: Final = """[project]
name = "bare"
version = "1.0.0"
description = "Sends bytes to every node and back"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.43"]

[tool.flwr.app]
publisher = "bare"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
folder = ""
sites = 1
"""
_CLIENT: Final = """from flwr.app import Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("bare")
def query(message, context):
    return Message(message.content, reply_to=message)
"""
_SERVER: Final = """import json, time
from pathlib import Path
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


def exchange(grid, nodes, raw):
    content = RecordDict({"bare": ArrayRecord({"body": Array("uint8", (len(raw),), "bytes", raw)})})
    letters, heard = {}, {}
    began = time.time()
    for node in nodes:
        sent = time.time()
        (letter,) = grid.push_messages([Message(content, node, "query.bare")])
        letters[letter] = {"node": node, "sent": sent}
    while len(heard) < len(letters):
        for reply in grid.pull_messages([letter for letter in letters if letter not in heard]):
            if reply.has_error() or len(reply.content["bare"]["body"].data) != len(raw):
                raise SystemExit(f"a node failed: {reply}")
            heard[reply.metadata.reply_to_message_id] = time.time()
        if len(heard) < len(letters):
            time.sleep(0.1)
    ended = time.time()
    told = [{**told, "heard": heard[name]} for name, told in letters.items()]
    return {"began": began, "ended": ended, "letters": told}


@app.main()
def main(grid, context):
    folder, number = Path(context.run_config["folder"]), 0
    while len(nodes := list(grid.get_node_ids())) < context.run_config["sites"]:
        time.sleep(0.2)
    found = {}
    while True:
        part = folder / "told.part"
        part.write_text(json.dumps(found))
        part.replace(folder / f"told-{number}.json")
        number += 1
        while not (ask := folder / f"ask-{number}.json").exists():
            time.sleep(0.02)
        asked = json.loads(ask.read_text())
        if asked.get("end"):
            return
        found = exchange(grid, nodes, bytes(asked["bytes"]))
"""


class Turns:
    """Asks a server app for one exchange at a time, by files in a folder.

    Args:
        folder: of ask-N.json and told-N.json; told-0.json says that the app is ready.
        watched: logs that tell why nothing came.
    """

    def __init__(self, folder: Path, watched: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._watched, self._number = folder, watched, 0

    def ready(self) -> dict[str, Any]:
        """What the app says once it stands.

        Raises:
            AulaitError: it does not come up.
        """
        return self._told(START_S)

    def ask(self, **asked: Any) -> dict[str, Any]:
        """One exchange with all sites.

        Raises:
            AulaitError: no answer.
        """
        self._number += 1
        put(self._folder / f"ask-{self._number}.json", asked)
        return self._told(ASK_S)

    def end(self) -> None:
        """The app may go."""
        put(self._folder / f"ask-{self._number + 1}.json", {"end": True})

    def _told(self, limit_s: float) -> dict[str, Any]:
        try:
            return take(self._folder / f"told-{self._number}.json", limit_s)
        except TimeoutError:
            raise AulaitError(
                f"no answer {self._number} within {limit_s:g} s; "
                f"{processes.last_words(self._watched)}; see {self._watched}") from None


def put(path: Path, value: Any) -> None:
    """A JSON file that is whole as soon as it is there."""
    replace_file(path, json.dumps(value).encode(), durable=False)


def take(path: Path, limit_s: float = math.inf) -> dict[str, Any]:
    """What ``put`` wrote, as soon as it is there.

    Raises:
        TimeoutError: it is not there in time.
    """
    until = time.monotonic() + limit_s
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(path)
        time.sleep(_LOOK_S)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@contextlib.contextmanager
def bare(loopback: Loopback, folder: Path) -> Iterator[tuple[Turns, dict[str, Path]]]:
    """Flower's own SuperLink and SuperNodes with the keys of a loopback deployment, as long as the
    block runs.

    Args:
        loopback: whose server keys and site keys are used.
        folder: for its app, state and logs.

    Yields:
        Asks for exchanges of ``bytes=N``; and site -> log of its SuperNode.

    Raises:
        AulaitError: it does not start.
    """
    _app(folder / "app")
    port, home, running = processes.free_port(), folder / "home", []
    around = _around(home)
    keys, address = loopback.keys, f"127.0.0.1:{port}"
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = '
        f'"{address}"\nroot-certificates = "{keys / "ca.pem"}"\n')
    logs = {name: folder / "logs" / f"{name}.txt" for name in loopback.sites}
    try:
        link = _words("flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--database",
                      str(folder / "superlink.db"),
                      "--enable-supernode-auth", "--ssl-ca-certfile", str(keys / "ca.pem"),
                      "--ssl-certfile", str(keys / "server.pem"),
                      "--ssl-keyfile", str(keys / "server-key.pem"))
        running.append(processes.start(link, folder / "logs" / "superlink.txt", around))
        _wait_for(port, folder / "logs" / "superlink.txt")
        for name, path in loopback.sites.items():
            _done(_words("flwr", "supernode", "register", str(path.parent / "site-key.pub"),
                         "bench"), around)
            node = _words("flower-supernode", "--superlink", address, "--root-certificates",
                          str(keys / "ca.pem"), "--host", "127.0.0.1",
                          "--auth-supernode-private-key", str(path.parent / "site-key"), "--port",
                          str(processes.free_port()))
            running.append(processes.start(node, logs[name], around))
        told = f'folder="{folder / "turns"}" sites={len(logs)}'
        turns = Turns(folder / "turns", folder / "logs" / "superlink.txt")
        _done(_words("flwr", "run", str(folder / "app"), "bench", "--run-config", told), around)
        yield turns, logs
        turns.end()
    finally:
        for process in reversed(running):
            processes.end(process)


def _app(folder: Path) -> None:
    folder.mkdir(parents=True)
    texts = {"pyproject.toml": _PROJECT, "server_app.py": _SERVER, "client_app.py": _CLIENT,
             "LICENSE": "Apache License, Version 2.0\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _around(home: Path) -> dict[str, str]:
    """Flower's own executables first on the path; nothing is sent home; SuperExec looks as often as
    in ours."""
    own = {name: value for name, value in os.environ.items()
           if not name.startswith(("FLWR_", "AULAIT_"))}
    return own | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)]),
        "FLWR_HOME": str(home),
        "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **SETTINGS,
    }  # fmt: skip


def _words(name: str, *words: str) -> list[str]:
    return [str(Path(sys.executable).parent / name), *words]


def _done(words: list[str], around: dict[str, str]) -> None:
    found = subprocess.run(words, env=around, capture_output=True, text=True, timeout=_COMMAND_S,
                           check=False)
    text = " ".join((found.stdout + found.stderr).split())[-300:]
    require(found.returncode == 0, AulaitError,
            f"'{Path(words[0]).name} {words[1]}' ended with {found.returncode}: {text}")


def _wait_for(port: int, log: Path) -> None:
    until = time.monotonic() + START_S
    while not processes.answers("127.0.0.1", port):
        require(time.monotonic() < until, AulaitError,
                f"bare Flower did not start: {processes.last_words(log)}; see {log}")
        time.sleep(0.1)
