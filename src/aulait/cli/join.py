"""``aulait join``: this machine takes part as a site."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.core.errors import AulaitError, ConfigError, require
from aulait.engines.deployment.site import local_socket, lost_account, site_file, worker
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.engines.flower import joining


def join(
    file: Annotated[Path,
        typer.Argument(metavar="SITE.toml", help="The site file: aulait keys site writes one.")],
    insecure: Annotated[bool,
        typer.Option("--insecure", help="Without TLS; only with a server on loopback.")] = False,
    account_lost: Annotated[bool,
        typer.Option("--account-lost",
                     help="Do not join. The account of what was given is lost for good: begin "
                          "another, in which all that the limits allow counts as spent. "
                          "Coordinators notice.")] = False,
) -> None:
    """Take part as a site, until stopped: answers orders within the limits of its own file.

    Example: aulait join site/site.toml
    """
    site = site_file.read(file)
    if account_lost:
        _begin_anew(site, file)
        return
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


def _begin_anew(site: SiteFile, file: Path) -> None:
    """Another account in the place of one that was lost; the site must not be running."""
    try:
        worker.health(worker.socket_path(site))
        running = True
    except (AulaitError, OSError) as error:
        running = not local_socket.is_nobody(error)
    require(not running, ConfigError,
            f"{site.site.name} is running, expected a site that is not while its account is begun "
            "anew; stop it")
    lost = lost_account.begin_anew(site)
    terminal.prose(
        f"begun anew: epsilon {lost.epsilon:g} and delta {lost.delta:g}, all that the limits "
        f"allow, count as spent for records and for clients of {site.data.source}")
    terminal.prose(
        f"no run fits until limits.lifetime_epsilon and limits.lifetime_delta in {file} are "
        "raised; every coordinator that knew the lost account says that this is another")
