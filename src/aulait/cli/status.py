"""``aulait status``: where a run or a site stands."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.ending import epsilon_in_words
from aulait.cli.options import JsonOption
from aulait.cli.progress import whole
from aulait.cli.terminal import Document
from aulait.core.errors import AulaitError, ConfigError
from aulait.core.log_files import plain_text
from aulait.engines.deployment.coordinator import status as reader
from aulait.reporting import numbers as n

BAD = ("dead", "failed", "not running")
OVER = ("finished", *BAD)
STATES = {
    "running": "a process holds the run",
    "finished": "finished",
    "failed": "stopped by an error",
    "dead": "no process holds the run",
    "unknown": "no result yet; a run of an older version left no mark of its process",
}


def status(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_SITE.toml",
        help="A run folder; or the site file of a site on this machine.")],
    as_json: JsonOption = False,
    watch: Annotated[
        float | None, typer.Option("--watch", metavar="SECONDS", min=0.2,
                                   help="Show it again so often, until it is over or Ctrl-C.")
    ] = None,
) -> None:
    """Show where a run stands, with its sites and epsilon; or whether a site is running, and at
    what.

    Exits with 1 when the run failed or its server is gone, or when the site is not running. With
    --json and --watch: one JSON object a line. Example: aulait status runs/cafe --watch 5
    """
    try:
        while True:
            found = status_of(path)
            _show(found, path, as_json, watch is not None)
            if watch is None or found["state"] in OVER:
                break
            time.sleep(watch)
    except KeyboardInterrupt:  # the way out of watching
        return
    if found["state"] in BAD:
        raise typer.Exit(1)


def status_of(path: Path) -> Document:
    """The status of a run folder, or with ``kind`` = "site" the health of the site whose file it
    is."""
    if path.is_dir():
        return {"kind": "run", **reader.read_status(path)}
    if not path.is_file():
        raise ConfigError(
            f"found nothing at {path}, expected a run folder or a site file; check the path")
    return {"kind": "site", **_site(path)}


def _site(path: Path) -> Document:
    # loads torch, too slow for the health check of a run
    from aulait.engines.deployment.site import account_summary, local_socket, site_file, worker

    site = site_file.read(path)
    own = {"accounts": account_summary.summary(site), "trust": list(site.limits.trust),
           "peers": sorted(site.peers)}
    try:
        return {**worker.health(worker.socket_path(site)), **own}
    except (AulaitError, OSError) as error:
        return {"name": site.site.name, "state": "not running", "last_error": None
                if local_socket.is_nobody(error) else str(error), **own}


def _show(found: Document, path: Path, as_json: bool, again: bool) -> None:
    # one line a look while it is watched
    if as_json:
        terminal.say(json.dumps(found, indent=None if again else 2, ensure_ascii=False,
                                default=str))
        return
    if again and sys.stdout.isatty():
        typer.clear()
    if found["kind"] == "run":
        _run(found, path)
    else:
        _health(found, path)


def _run(found: Document, path: Path) -> None:
    terminal.table(f"{found['name']} ({found['engine']}): {STATES[found['state']]}", ("", ""),
                   _facts(found))
    if found["sites"]:
        terminal.say()
        rows = [(site["name"], *(site[key] or "" for key in ("role", "tier", "state")),
                 _ago(site["last_seen_s"]),
                 "" if site["round"] is None else n.count(site["round"]), site["detail"] or "")
                 for site in found["sites"]]
        terminal.table(n.counted(len(rows), "site"), ("site", "role", "tier", "state", "last seen",
            "round", ""), rows, right=(5,))
    if found["warnings"]:
        terminal.say()
        terminal.table("last warnings", ("time (UTC)", "event", ""),
                       [((event["time"] or "")[:19].replace("T", " "), event["event"] or "",
                         event["text"]) for event in found["warnings"]])
    if found["state"] in ("dead", "failed"):
        terminal.say()
        terminal.say(f"go on with: {going_on(found['engine'], path)}")


def going_on(engine: str, path: Path) -> str:
    """The command that goes on with a run whose process is gone."""
    if engine == "inline":
        config = shlex.quote(str(path / "config.toml"))
        return f"aulait run {config} --out {shlex.quote(str(path))} --resume"
    return f"aulait serve FILE --keys DIR --out {path} --resume"


def _facts(found: Document) -> list[tuple[str, str]]:
    rows = []
    if found["stage"]:
        of_rounds = "" if found["rounds"] is None else f" of {n.count(found['rounds'])}"
        rows.append(("stage", f"{found['stage']}, {n.count(found['round'])}{of_rounds} done"))
    rows.append(("last progress", _ago(found["progress_s"]) or "none yet"))
    promised = [] if found["budget"] is None else [f"of {n.epsilon(found['budget'])}"]
    promised += [] if found["delta"] is None else [f"delta {found['delta']:g}"]
    beside = f" ({', '.join(promised)})" if promised else ""
    if found["private"] is False:
        rows.append(("epsilon", "infinite (privacy is off)"))
    else:
        spent = found["epsilon"]
        idle = [role for role, value in spent.items() if value == 0]  # a role that nobody has too
        rows += [(f"epsilon of {role} clients", f"{epsilon_in_words(value)}{beside}")
                 for role, value in spent.items()
                 if role not in idle or len(idle) == len(spent)]
    if found["loss"] is not None:
        rows.append(("held-out loss (nats a token)", n.loss(found["loss"])))
    rows.append(("bytes up, down", f"{n.size(found['up_bytes'])}, {n.size(found['down_bytes'])}"))
    if found["refused"]:
        rows.append(("replies refused", n.count(found["refused"])))
    if found["error"]:
        rows.append(("error", found["error"]))
    return rows


def _ago(age_s: float | None) -> str:
    return "" if age_s is None else f"{whole(age_s)} ago"


def _health(found: Document, path: Path) -> None:
    if found["state"] == "not running":
        reason = f" ({found['last_error']})" if found["last_error"] else ""
        terminal.say(f"{found['name']} is not running{reason}; start: aulait join {path}")
        terminal.say(_trusted(found))
        _accounts(found["accounts"])
        return
    rows = [(key.replace("_", " "),
             n.size(value) if key.endswith("_bytes") else plain_text(str(value)))
            for key, value in found.items()
            if key not in ("kind", "name", "state", "accounts", "trust", "peers")
            and value not in (None, "")]
    terminal.table(f"{found['name']}: {found['state']}", ("", ""), rows)
    terminal.say(_trusted(found))
    _accounts(found["accounts"])


def _trusted(found: Document) -> str:
    """Whom the site's file trusts with its updates, where a run protects clients."""
    peers = len(found["peers"])
    known = f"{peers} other site{'' if peers == 1 else 's'} in [peers]"
    if found["trust"] == ["secure"]:
        return ("updates of this site go to nobody as they are, only into secure sums with "
                f"{known}")
    if "secure" not in found["trust"]:
        return ("updates of this site go to the coordinator as they are, where a run protects "
                "clients")
    return ("updates of this site go to the coordinator as they are where a run says trust = "
            f"'server', and into secure sums with {known} where it says 'secure' (limits.trust)")


def _accounts(accounts: Sequence[Document]) -> None:
    """What a site has given in its lifetime, a line for every data source and unit."""
    rows = []
    for own in accounts:
        source = "damaged: " + own["error"] if own["error"] else own["source"]
        source += f" (lost, begun anew {own['begun_anew'][:10]})" if own["begun_anew"] else ""
        rows += [(plain_text(source), unit["unit"], n.count(unit["runs"]),
                  n.count(unit["charges"]), epsilon_in_words(unit["epsilon"]),
                  "" if unit["limit"] is None else f"{unit['limit']:g}",
                  "" if unit["delta"] is None else f"{unit['delta']:.3g}")
                 for unit in own["units"]] or [(plain_text(source), "", "0", "0", "", "", "")]
    if rows:
        terminal.say()
        terminal.table("lifetime accounts", ("data source", "unit", "runs", "charges", "epsilon",
                                             "limit", "delta"), rows, right=(2, 3, 4, 5, 6))
