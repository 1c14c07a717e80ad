"""The one place for Flower's insides, seen from outside: which Flower, its executables, its
environment, its Control API.

The executables are started through ``pinned_child``, which closes holes first; launchers of the
same names come first on their PATH, because Flower's processes start one another by name.
``pinned_parts``, ``pinned_site`` and ``pinned_link`` are the inside of those processes and the only
other files that reach for names which Flower does not publish.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from aulait.core.errors import AulaitError, ConfigError, install, require
from aulait.engines.flower.hardening.patching import PASS_HEADER
from aulait.engines.flower.hardening.patching import UNFIT as UNFIT

SUPPORTED: Final = ((1, 41), (1, 42))
KNOWN: Final = (
    "flower-superlink", "flower-supernode", "flower-superexec", "flwr-clientapp", "flwr-serverapp",
    "flwr-agentapp", "flwr-connector", "flwr-model", "flwr-simulation",
)  # fmt: skip
# s
SETTINGS: Final = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
                   "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25"}
_CONTROL_S: Final = 30.0
_CHILD: Final = "aulait.engines.flower.hardening.child"
_SHIM: Final = {
    "pyproject.toml": """[project]
name = "aulait-run"
version = "1.0.0"
description = "Hands over to the aulait that is installed on each machine; holds no code of its own"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.43"]

[tool.flwr.app]
publisher = "aulait"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
experiment = ""
out = ""
keys = ""
resume = false
""",
    "LICENSE": "Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0\n",
    "server_app.py": '"""The server app of aulait."""\n\nfrom aulait.engines.flower import '
                     'server_app\n\napp = server_app.app\n',
    "client_app.py": '"""The client app of aulait."""\n\nfrom aulait.engines.flower import '
                     'client_app\n\napp = client_app.app\n',
}


def supported() -> str:
    """Flower's version.

    Raises:
        ConfigError: it is missing, or one that was never tried.
    """
    need = f"expected flwr>=1.41,<1.43; {install('flower')}"
    try:
        found = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        raise ConfigError(f"found no Flower, {need}") from None
    numbers = tuple(int(word) for word in found.split(".")[:2] if word.isdigit())
    require(numbers in SUPPORTED, ConfigError, f"found Flower {found}, {need}")
    return found


def command(role: str, *words: str) -> list[str]:
    """The words that start one of Flower's executables our way."""
    return [sys.executable, "-P", "-m", _CHILD, role, *words]


def launchers(folder: Path, allowed: Mapping[str, str]) -> None:
    """Write the executables that Flower's processes find on their PATH; those not allowed refuse.

    Args:
        folder: made, or taken over when it belongs to this account; open to nobody else.
        allowed: name -> a word put before the others, or "".

    Raises:
        ConfigError: the folder belongs to somebody else, or is a link.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    require(own, ConfigError,
        f"{folder} is a link or belongs to another account, expected a folder of this one; remove "
        "it")
    folder.chmod(0o700)
    for old in folder.iterdir():
        old.unlink()
    for name in KNOWN:
        words = (
            command(name, *filter(None, [allowed[name]])) if name in allowed
            else command("refuse", name)
        )
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        path.chmod(0o700)


def environment(launcher: Path, home: Path, secret: str, *, alone: bool, **more: str) -> dict[str,
        str]:
    """The environment of Flower's processes: nothing of Flower's own is inherited, nothing is sent
    home, no proxy for loopback.

    Args:
        launcher: the folder of launchers, first on PATH.
        home: Flower's own folder.
        secret: what the processes of this run show one another.
        alone: nothing else is on PATH, so that a task of an unknown kind finds no executable.
        more: other variables.
    """
    inherited = {name: value for name, value in os.environ.items()
                 if not name.startswith(("FLWR_", "AULAIT_"))}
    around = ",".join(filter(None, [inherited.get("NO_PROXY") or inherited.get("no_proxy"),
        "127.0.0.1,localhost,::1"]))
    path = [str(launcher), *([] if alone else [inherited.get("PATH", os.defpath)])]
    return {
        **inherited,
        "PATH": os.pathsep.join(path),
        "NO_PROXY": around,
        "no_proxy": around,
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(home),
        **SETTINGS,
        "AULAIT_PASS": secret,
        **more,
    }


def app_folder(folder: Path) -> Path:
    """Write the app that Flower ships: two imports of what is installed; returns the folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in _SHIM.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


class Control:
    """Flower's Control API at a loopback address that asks for a pass.

    Args:
        address: host:port.
        secret: the pass.
    """

    def __init__(self, address: str, secret: str) -> None:
        import httpx
        from flwr.supercore.control import ControlHttpClient

        self._client: Any = ControlHttpClient.from_server_address(address, insecure=True,
            root_certificates=None, interceptors=[])
        # that one would send the pass to a proxy that the environment names
        self._client._client.close()
        self._client._client = httpx.Client(headers={PASS_HEADER: secret}, follow_redirects=False,
            trust_env=False, timeout=_CONTROL_S)

    def enrolled(self) -> dict[bytes, tuple[int, str]]:
        """Public key (as Flower's bytes) -> (node id, status) of the sites the SuperLink lets
        in."""
        from flwr.proto.control_pb2 import ListNodesRequest

        nodes = self._ask("ListNodes", ListNodesRequest()).nodes_info
        return {bytes(node.public_key): (int(node.node_id), str(node.status)) for node in nodes
                if node.status != "unregistered"}

    def register(self, roster: Mapping[str, str]) -> None:
        """Let exactly these sites in: new keys are registered, keys that left the roster are turned
        away from now on.

        Args:
            roster: name of a site -> its public key, one OpenSSH line.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest, UnregisterNodeRequest

        wanted, present = {_key_bytes(name, line): name for name,
                           line in roster.items()}, self.enrolled()
        for key, (node, _) in present.items():
            if key not in wanted:
                self._ask("UnregisterNode", UnregisterNodeRequest(node_id=node))
        for key, name in wanted.items():
            if key not in present:
                self._ask("RegisterNode", RegisterNodeRequest(public_key=key, name=name))

    def submit(self, app: Path, config: Mapping[str, str | int | float | bool]) -> int:
        """Start a run of the app in this folder; returns Flower's number of it."""
        from hashlib import sha256

        from flwr.cli.build import build_fab_from_disk
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        bundle = build_fab_from_disk(app)
        fab = fab_to_proto(Fab(sha256(bundle).hexdigest(), bundle, {}))
        return int(self._ask("StartRun",
            StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))).run_id)

    def traffic(self, run: int) -> tuple[int, int]:
        """Bytes that a run's messages took down to the sites and up from them, as Flower counts
        what is inside its requests."""
        from flwr.proto.control_pb2 import ListRunsRequest

        found = self._ask("ListRuns", ListRunsRequest(run_id=run)).run_dict[run]
        return int(found.bytes_sent), int(found.bytes_recv)

    def stop_all(self) -> None:
        """Stop runs that an earlier, killed server left behind, so that no site answers their
        orders any more."""
        from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest

        for number, run in self._ask("ListRuns", ListRunsRequest(limit=100)).run_dict.items():
            if run.status.status != "finished":
                self._ask("StopRun", StopRunRequest(run_id=number))

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _ask(self, method: str, request: Any) -> Any:
        import httpx

        try:
            return getattr(self._client, method)(request)
        except httpx.HTTPStatusError as error:
            text = " ".join(error.response.text.split())[:300]
            raise AulaitError(
                f"Flower refused {method} with status {error.response.status_code}: {text}; see "
                "superlink.log") from None
        except httpx.HTTPError as error:
            raise AulaitError(
                f"Flower's SuperLink did not answer {method} ({error}); see superlink.log") from None


def _key_bytes(name: str, line: str) -> bytes:
    """A public key as Flower sends it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigError(
            f"found no elliptic-curve key in OpenSSH format for site '{name}', expected one; enrol "
            "it again")
    return bytes(public_key_to_bytes(key))
