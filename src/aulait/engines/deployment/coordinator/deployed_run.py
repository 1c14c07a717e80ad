"""A run whose clients are elsewhere: who takes part, what each is told, and then the same straight
line as everywhere.

Who takes part is fixed when the run begins (RUN/serve/roll.json) and the same after every restart;
a site that is not there then is a client that does not answer. With ``machine = "measured"`` a tier
is planned by what its sites measured.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from aulait.core.errors import AulaitError, ConfigError, DataError, require
from aulait.core.files import JsonObject, replace_file
from aulait.core.reading import read_json_object
from aulait.core.seeds import Seeds
from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
from aulait.engines.deployment.coordinator.outbox import BodyT
from aulait.federation import tiers
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import loop, size_law
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer
from aulait.runs.settled import as_begun
from aulait.runs.setup import prepare

ROLL: Final = "serve/roll.json"
RECORDS: Final = "serve/records.json"
Roll = Mapping[str, Mapping[str, JsonValue]]


def run_deployed(engine: CoordinatorEngine[BodyT], settings: Settings, out: Path,
                 enrolled: Sequence[str], *, resume: bool) -> JsonObject:
    """Carry a run out with sites on other machines.

    Args:
        engine: speaks with them.
        settings: the experiment.
        out: the run folder.
        enrolled: names of all sites that may come.
        resume: go on with what is there.

    Returns:
        What result.json holds.

    Raises:
        AulaitError: as ``loop.run``; a site refuses, too few come, nobody answers.
    """
    folder, event_log, cache = RunFolder(out), engine.event_log, SharedCache()
    roll = _settled_roll(engine, settings, folder, enrolled)
    settings = as_begun(planned_by(settings, roll, out), out / "config.toml")
    event_log.progress("prepare", 0, 1, "loading the base")
    prepared = prepare(settings, cache, dict.fromkeys(sorted(roll), 1))
    if not settings.privacy.protects_records:  # else the numbers of records are not known yet
        size_law.warning(prepared)
    known = _written_records(out / RECORDS)
    told = {name: facts.get("identity") for name, facts in roll.items()}
    engine.participants.identities = {
        name: identity if isinstance(identity, str) else None for name, identity in told.items()}
    engine.begin(prepared, known, again=(out / "config.toml").is_file())
    folder.write_json(RECORDS, engine.clients)
    try:
        observer = Observer(event_log.progress,
                            lambda text: event_log.warning("tracking", reason=text))
        return loop.run(settings, out, engine, resume=resume, cache=cache, observer=observer)
    finally:
        with contextlib.suppress(AulaitError):  # a full disk has its own line by now
            event_log.event("travelled", **engine.traffic)


def _settled_roll(engine: CoordinatorEngine[BodyT], settings: Settings, folder: RunFolder,
                  enrolled: Sequence[str]) -> Roll:
    """Who takes part, with what they told; on disk once it is settled."""
    path, config = folder.path / ROLL, settings.engine
    if path.is_file():
        roll = _written_roll(path)
        engine.participants.hello(min(config.least_sites, len(roll)), min(config.wait_s, 60.0),
                                  sorted(roll))
        return roll
    told = engine.participants.hello(config.least_sites, config.wait_s, enrolled)
    folder.write_json(ROLL, {name: facts.model_dump(mode="json") for name, facts in told.items()})
    return _written_roll(path)


def _written_roll(path: Path) -> Roll:
    roll = read_json_object(path, DataError, "who takes part in the run; restore it from a copy")
    require(all(isinstance(told, dict) for told in roll.values()), DataError,
            f"{path} holds a site without facts, expected what every site told; restore it from a "
            "copy")
    return roll


def _written_records(path: Path) -> dict[str, int]:
    """Numbers of records that sites told before a restart."""
    if not path.is_file():
        return {}
    known = read_json_object(path, DataError, "numbers of records; restore it from a copy")
    require(all(type(count) is int for count in known.values()), DataError,
            f"{path} holds a site without a number of records; restore it from a copy")
    return known


def planned_by(settings: Settings, roll: Roll, out: Path) -> Settings:
    """The settings with a tier for every site of a tier whose machine is "measured".

    Raises:
        ConfigError: a site of such a tier has measured nothing.
    """
    if all(tier.machine != tiers.MEASURED for tier in settings.federation.tier):
        return settings
    dealt = tiers.members(settings.federation.tier, sorted(roll), Seeds(settings.run.seed))
    found = []
    for tier in settings.federation.tier:
        # dealt already: its share was one of all sites, not of those that are left
        if tier.machine != tiers.MEASURED:
            found.append(tier.model_copy(update={"clients": dealt[tier.name], "share": None,
                "count": None}))
            continue
        for name in dealt[tier.name]:
            path = out / "serve" / "profiles" / f"{name}.json"
            profile = roll[name].get("profile")
            require(isinstance(profile, dict), ConfigError,
                    f"site '{name}' is in tier '{tier.name}', whose machine is 'measured', and "
                    "told no profile; measure it there: aulait probe --out STATE/profile.json, or "
                    "name a machine")
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(profile).encode("utf-8"))
            own = {"name": f"{tier.name}:{name}", "clients": (name,), "share": None, "count": None,
                   "machine": str(path)}
            found.append(tier.model_copy(update=own))
    settings = settings.model_copy(
        update={"federation": settings.federation.model_copy(update={"tier": tuple(found)})})
    problems = tiers.problems(settings.federation, settings.compute, not settings.privacy.off)
    require(not problems, ConfigError, "\n".join(problems))
    return settings
