"""``aulait join``: this machine takes part as a site."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.engines.deployment.site import site_file
from aulait.engines.flower import joining


def join(
    file: Annotated[Path,
        typer.Argument(metavar="SITE.toml", help="The site file: aulait keys site writes one.")],
    insecure: Annotated[bool,
        typer.Option("--insecure", help="Without TLS; only with a server on loopback.")] = False,
) -> None:
    """Take part as a site, until stopped: answers orders within the limits of its own file.

    Example: aulait join site/site.toml
    """
    site = site_file.read(file)
    joining.check(site, insecure)
    for line in joining.allows(site):
        terminal.note(line)
    if insecure:
        terminal.fail(
            "INSECURE: no TLS; whatever this site sends can be read and changed on the way. For "
            "trials on one machine only.")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    joining.join(site, insecure, terminal.note, stop)
    terminal.note("left; nothing runs any more")
