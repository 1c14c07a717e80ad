"""A deployment for the golden comparison: a server and two sites, by the public commands.

One site trains, the other votes. Noise cannot be repeated in a deployment, so privacy is off.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from tests.house import golden_runs
from tests.house.golden_read import content, run_folder, timeless

COMMAND = (sys.executable, "-c", "from aulait.cli import main; main()")
SITES = {"ward-a": "local", "clinic-b": "proxy"}
LIMIT_S = 400.0
# Of a site's health and of the keys only what does not differ from one deployment to the next.
HEALTH = ("kind", "name", "state", "loads", "last_error")


class Place:
    """The folder of a deployment, short because of the names of local sockets, and its processes.

    Attributes:
        folder: of keys, sites and the run.
        port: of the server, on loopback.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self._environment = folder, environment
        self._running: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    def said(self, *words: str) -> Any:
        """The JSON that a command prints.

        Raises:
            CalledProcessError: it failed.
        """
        done = subprocess.run(
            [*COMMAND, *words, "--json"],
            cwd=self.folder,
            env=self._environment,
            check=True,
            stdout=subprocess.PIPE,
            timeout=LIMIT_S,
        )
        return json.loads(done.stdout)

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a process that goes on; what it says is in NAME.txt."""
        with (self.folder / f"{name}.txt").open("wb") as log:
            process = subprocess.Popen(
                [*COMMAND, *words],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._running.append(process)
        return process

    def stop(self) -> None:
        """End every process that was started here."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def enrolled(place: Place) -> dict[str, Any]:
    """Make keys, data and site files of server and sites; what ``aulait keys list`` says."""
    place.said("keys", "server", "server", "--host", "127.0.0.1")
    for number, (name, role) in enumerate(SITES.items()):
        home = place.folder / name
        place.said("keys", "site", name, "--name", name, "--server", f"127.0.0.1:{place.port}")
        place.said("keys", "enrol", "server", name, f"{name}/site-key.pub")
        for public in ("ca.pem", "order-key.pub"):
            shutil.copy(place.folder / "server" / public, home / public)
        own = [row | {"client": name} for row in golden_runs.rows(number)]
        (home / "own.jsonl").write_text(golden_runs.lines(own), encoding="utf-8")
        tables = {
            "site": {"name": name, "server": f"127.0.0.1:{place.port}", "state": "state"},
            "data": {"source": "own.jsonl"},
            "models": {"brew": "brew"},
            "embedders": {"minilm": "minilm"},
            "limits": {"privacy": False, "roles": [role], "threads": 1},
        }
        (home / "site.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    listed = place.said("keys", "list", "server")
    return {
        "keys": sorted(listed),
        "sites": [site["name"] for site in listed["sites"]],
        "hosts": listed["hosts"],
    }


def experiment(public: Path) -> dict[str, Any]:
    """The run of both sites.

    Args:
        public: full path of the public texts, for the server works in a folder of its own.
    """
    tiers = [{"name": role, "placement": role, "clients": [name]} for name, role in SITES.items()]
    return golden_runs.experiment(
        "deployed",
        data={"public": str(public)},
        federation={"tier": tiers},
        synthesis={"rounds": 1},
        engine={"threads": 1, "wait_s": 200.0, "deadline_s": 200.0, "least_sites": len(SITES)},
    )


def record(checkout: Any) -> dict[str, Any]:
    """Deploy, run, and read what came of it.

    Args:
        checkout: a ``golden.Checkout``; the run and the logs are copied into its folder.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="g", ignore_cleanup_errors=True) as short:
        place = Place(Path(short), checkout.environment)
        public = shutil.copy(checkout.folder / "public.txt", place.folder)
        text = tomli_w.dumps(experiment(public))
        (place.folder / "experiment.toml").write_text(text, encoding="utf-8")
        words = f"serve experiment.toml --keys server --host 127.0.0.1 --port {place.port}"
        try:
            found["keys"] = enrolled(place)
            for name in SITES:
                place.start(name, "join", f"{name}/site.toml")
            server = place.start("server", *words.split(), "--out", "deployed", "--json")
            if code := server.wait(LIMIT_S):
                raise subprocess.CalledProcessError(code, "serve")
            found |= read(place)
        except (subprocess.SubprocessError, OSError) as error:
            checkout.failed.append(f"deployment: {error}; see {checkout.folder / 'deployment'}")
        finally:
            place.stop()
            shutil.copytree(place.folder, checkout.folder / "deployment", ignore=left_out)
    return json.loads(json.dumps(found).replace(short, "PLACE"))


def read(place: Place) -> dict[str, Any]:
    """What a finished deployment left, at the coordinator and at the sites."""
    serve = (path.name for path in (place.folder / "deployed" / "serve").iterdir())
    sites = {}
    for name in SITES:
        health = place.said("status", f"{name}/site.toml")
        adapter = place.folder.glob(f"{name}/state/runs/*/adapter/*.safetensors")
        sites[name] = {
            "keys": sorted(health),
            **{key: health[key] for key in HEALTH if key in health},
            "adapters": [content(path) for path in adapter],
        }
    return {
        "run": run_folder(place.folder / "deployed"),
        "serve": sorted(name for name in serve if not name.startswith("superlink.db")),
        "status": timeless(place.said("status", "deployed")),
        "sites": sites,
    }


def left_out(folder: str, names: Sequence[str]) -> list[str]:
    """Names that are not kept: keys, sockets, and the site's memory."""
    return [
        name
        for name in names
        if name in ("server", "state") or "key" in name or (Path(folder) / name).is_socket()
    ]
