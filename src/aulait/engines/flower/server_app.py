"""The Flower server app: one run of aulait, its requests carried by Flower. ``aulait serve`` starts
it; so can ``flwr run``.

    flwr run APP CONNECTION --run-config 'experiment="run.toml" out="runs/x" keys="server"
    resume=false'
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aulait.core.errors import AulaitError, ConfigError, require
from aulait.engines.deployment.coordinator.event_log import EventLog

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry a run out; how it ended stands in RUN/serve/outcome.json."""
    told = context.run_config
    out = Path(str(told["out"]))
    journal = EventLog(out)
    journal.begin()
    try:
        result = conduct(grid, out, Path(str(told["experiment"])), Path(str(told["keys"])), journal,
                         resume=bool(told.get("resume", False)))
    except AulaitError as error:
        journal.warning("stopped", reason=str(error))
        journal.outcome(False, error=str(error), kind=type(error).__name__)
        return
    except BaseException as error:
        journal.outcome(False,
            error=f"a defect ended the run: {type(error).__name__}: {error}; report it, then go on "
                  "with --resume",
                        kind="AulaitError")
        raise
    journal.outcome(True, rounds=result["rounds"])


def conduct(grid: Grid, out: Path, experiment: Path, keys_folder: Path, journal: EventLog, *,
            resume: bool) -> dict[str, Any]:
    """The run, from the files that say what it is.

    Args:
        grid: Flower's.
        out: the run folder.
        experiment: resolved settings.
        keys_folder: of the server.
        journal: for the operator.
        resume: go on with what is there.

    Returns:
        What result.json holds.

    Raises:
        AulaitError: as ``loop.run``; a site refuses, too few come, nobody answers.
    """
    from aulait.engines.deployment.coordinator import deployed_run
    from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
    from aulait.engines.deployment.pki import keys
    from aulait.engines.deployment.protocol import signing
    from aulait.engines.flower.transport import FlowerTransport
    from aulait.runs import experiment_file

    settings = experiment_file.read_settings(experiment)
    require(settings.engine.deployed, ConfigError,
            f"engine.name = '{settings.engine.name}' found, expected 'flower'")
    roster = keys.roster(keys_folder)
    run, epoch = enter(out, resume)
    key = signing.load_private(keys_folder / "order-key.pem")
    engine = CoordinatorEngine(FlowerTransport(grid, roster), settings, key, run, epoch, journal)
    return deployed_run.run(engine, settings, out, sorted(roster), journal, resume=resume)


def enter(out: Path, resume: bool) -> tuple[str, int]:
    """The run's own number and how often it has been started; on disk before anything is sent.

    Raises:
        ConfigError: there is a run already, or none to go on with.
    """
    path = out / "serve" / "run.json"
    known: Mapping[str, Any] | None = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    )
    require(known is None or resume or not (out / "config.toml").exists(), ConfigError,
            f"run folder {out} already holds a run; add --resume to go on with it, or choose "
            "another --out")
    run, epoch = (
        (str(known["run"]), int(known["epoch"]) + 1) if known else (secrets.token_hex(16), 1)
    )
    from aulait.runfolder.run_folder import RunFolder

    RunFolder(out).write_json("serve/run.json", {"run": run, "epoch": epoch})
    return run, epoch
