"""Which Flower, its executables, its environment, seen from outside.

The executables are started through ``child.py``, which closes holes first; launchers of the same
names come first on their PATH, because Flower's processes start one another by name. What is
reached of Flower's insides stands in ``private_names.py``.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from aulait.core.errors import ConfigError, install, require
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
