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
from typing import Any

from aulait.core.errors import AulaitError, ConfigError, require
from aulait.core.files import replace_file
from aulait.core.seeds import Seeds
from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.federation import tiers
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import loop
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer
from aulait.runs.setup import prepare

ROLL = "serve/roll.json"


def run(engine: CoordinatorEngine, settings: Settings, out: Path, enrolled: Sequence[str],
        journal: EventLog, *, resume: bool) -> dict[str, Any]:
    """Carry a run out with sites on other machines.

    Args:
        engine: speaks with them.
        settings: the experiment.
        out: the run folder.
        enrolled: names of all sites that may come.
        journal: for the operator.
        resume: go on with what is there.

    Returns:
        What result.json holds.

    Raises:
        AulaitError: as ``loop.run``; a site refuses, too few come, nobody answers.
    """
    folder = RunFolder(out)
    roll = _roll(engine, settings, folder, enrolled)
    settings = planned_by(settings, roll, out)
    names, cache = sorted(roll), SharedCache()
    journal.progress("prepare", 0, 1, "loading the base")
    prepared = prepare(settings, cache, dict.fromkeys(names, 1))
    held: dict[str, int] = (
        json.loads((out / "serve/records.json").read_text())
        if (out / "serve/records.json").is_file() else {}
    )
    engine.begin(prepared, again=(out / "config.toml").is_file(), known=held)
    folder.write_json("serve/records.json", engine.records)
    try:
        observer = Observer(journal.progress,
                            lambda text: journal.warning("tracking", reason=text))
        return loop.run(settings, out, engine, resume=resume, cache=cache, observer=observer)
    finally:
        with contextlib.suppress(AulaitError):  # a full disk has its own line by now
            journal.event("travelled", **engine.told)


def _roll(engine: CoordinatorEngine, settings: Settings, folder: RunFolder,
          enrolled: Sequence[str]) -> dict[str, Any]:
    """Who takes part, with what they told; on disk once it is settled."""
    path = folder.path / ROLL
    if path.is_file():
        roll: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        engine.hello(min(settings.engine.least_sites, len(roll)), min(settings.engine.wait_s, 60.0),
                     sorted(roll))
        return roll
    roll = engine.hello(settings.engine.least_sites, settings.engine.wait_s, enrolled)
    folder.write_json(ROLL, roll)
    return roll


def planned_by(settings: Settings, roll: Mapping[str, Any], out: Path) -> Settings:
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
