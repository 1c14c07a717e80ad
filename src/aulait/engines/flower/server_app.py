"""The Flower server app: one run of aulait, its requests carried by Flower. ``aulait serve`` starts
it; so can ``flwr run``.

    flwr run APP CONNECTION --run-config 'experiment="run.toml" out="runs/x" keys="server"
    resume=false'
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aulait.core.errors import AulaitError, ConfigError, DataError, require
from aulait.core.files import JsonObject
from aulait.core.reading import read_json_object
from aulait.engines.deployment.coordinator import deployed_run
from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.coordinator.outbox import Outbox, RunIdentity
from aulait.engines.deployment.coordinator.receipt_book import ReceiptBook
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol import signing
from aulait.engines.flower.transport import FlowerTransport
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import experiment_file

app = ServerApp()


@dataclass(frozen=True)
class RunPlaces:
    """The files of a run, as the server app is told them.

    Attributes:
        experiment: resolved settings.
        out: the run folder.
        keys: of the server.
        resume: go on with what is there.
    """

    experiment: Path
    out: Path
    keys: Path
    resume: bool


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry a run out; how it ended stands in RUN/serve/outcome.json."""
    told = context.run_config
    places = RunPlaces(Path(str(told["experiment"])), Path(str(told["out"])),
                       Path(str(told["keys"])), bool(told.get("resume", False)))
    event_log = EventLog(places.out)
    event_log.begin()
    try:
        result = conduct(grid, places, event_log)
    except AulaitError as error:
        event_log.warning("stopped", reason=str(error))
        event_log.outcome(False, error=str(error), kind=type(error).__name__)
        return
    except BaseException as error:
        text = (f"a defect ended the run: {type(error).__name__}: {error}; report it, then go on "
                "with --resume")
        event_log.outcome(False, error=text, kind="AulaitError")
        raise
    event_log.outcome(True, rounds=result["rounds"])


def conduct(grid: Grid, places: RunPlaces, event_log: EventLog) -> JsonObject:
    """The run, from the files that say what it is.

    Returns:
        What result.json holds.

    Raises:
        AulaitError: as ``loop.run``; a site refuses, too few come, nobody answers.
    """
    settings = experiment_file.read_settings(places.experiment)
    require(settings.engine.deployed, ConfigError,
            f"engine.name = '{settings.engine.name}' found, expected 'flower'")
    roster = keys.roster(places.keys)
    run, epoch = enter(places.out, places.resume)
    identity = RunIdentity(signing.load_private(places.keys / "order-key.pem"), run, epoch)
    receipts = ReceiptBook(places.keys, event_log.folder, roster)
    outbox = Outbox(FlowerTransport(grid, roster), identity, event_log, receipts)
    engine = CoordinatorEngine(outbox, settings)
    return deployed_run.run_deployed(engine, settings, places.out, sorted(roster),
                                     resume=places.resume)


def enter(out: Path, resume: bool) -> tuple[str, int]:
    """The run's own number and how often it has been started; on disk before anything is sent.

    Raises:
        ConfigError: there is a run already, or none to go on with.
    """
    path = out / "serve" / "run.json"
    known = _numbered(path) if path.is_file() else None
    require(known is None or resume or not (out / "config.toml").exists(), ConfigError,
            f"run folder {out} already holds a run; add --resume to go on with it, or choose "
            "another --out")
    run, epoch = known or (secrets.token_hex(16), 0)
    epoch += 1
    RunFolder(out).write_json("serve/run.json", {"run": run, "epoch": epoch})
    return run, epoch


def _numbered(path: Path) -> tuple[str, int]:
    """The run's own number and how often it has been started, from its file."""
    known = read_json_object(path, DataError, "the number of a run; restore it from a copy")
    run, epoch = known.get("run"), known.get("epoch")
    if not isinstance(run, str) or type(epoch) is not int:
        raise DataError(f"{path} holds no number of a run, expected run and epoch; restore it from "
                        "a copy")
    return run, epoch
