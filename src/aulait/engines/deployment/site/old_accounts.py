"""What a state folder of an older version had given, taken over into the lifetime account.

Before there was an account of a data source, a run of the unit "record" had ``account.jsonl`` in
its own folder, and a run of the unit "client" had none: its terms and its answers show that it was
answered. The old files stay as they are.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from aulait.core.errors import PrivacyError
from aulait.core.files import JsonObject, sync_folder, writing
from aulait.core.parsing import parsed_json
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site.lifetime_account import FOLDER, Charge, LifetimeAccount
from aulait.engines.deployment.site.policy import SITE, told_plan
from aulait.privacy.config import PrivacyConfig


def take_over(state: Path, source: str) -> None:
    """Charge everything that old runs were given, once: when there is no folder of accounts yet.

    Args:
        state: the site's state folder.
        source: the data source of the site file, which all old runs are taken to have used.

    Raises:
        PrivacyError: an old account or the terms of an answered run cannot be read.
    """
    if (state / FOLDER).exists() or not (state / "runs").is_dir():
        return
    charges = [charge for folder in sorted((state / "runs").iterdir())
               for charge in _charges(folder)]
    if not charges:
        return
    made = state / f"{FOLDER}.new"
    with writing(state):
        shutil.rmtree(made, ignore_errors=True)  # half of it, from a crash
        account = LifetimeAccount(made, source)
        for charge in charges:
            account.add(charge)
        os.replace(made / FOLDER, state / FOLDER)
        made.rmdir()
        sync_folder(state / FOLDER)


def _charges(folder: Path) -> list[Charge]:
    """What one old run was given."""
    path = folder / "terms.json"
    if not path.is_file():
        return []
    try:
        told: JsonObject = parsed_json(path.read_bytes())
        privacy = dict(told["privacy"])
        if privacy["off"]:
            return [Charge(run=folder.name, unit="none")] if _answered(folder) else []
        if privacy["unit"] == "record":
            return _events(folder, float(privacy["delta"]))
        return [_promise(folder.name, told)] if _answered(folder) else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrivacyError(f"the terms and the account in {folder} cannot be read "
                           f"({type(error).__name__}), expected those of an earlier version; "
                           "restore them, what they have spent must be counted") from error


def _answered(folder: Path) -> bool:
    return any(folder.glob("answer-*")) or (folder / "kept.safetensors").exists()


def _events(folder: Path, delta: float) -> list[Charge]:
    """The charges of an old run of the unit "record"; a last line without its end was never
    answered."""
    path = folder / "account.jsonl"
    raw = path.read_bytes() if path.exists() else b""
    lines = [parsed_json(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]
    return [Charge(run=folder.name, unit="record", delta=delta, stage="train", rate=line["rate"],
                   noise_multiplier=line["noise_multiplier"], steps=line["steps"])
            for line in lines]


def _promise(run: str, told: JsonObject) -> Charge:
    """What an old run of the unit "client" promised."""
    epsilon, delta = told["privacy"]["epsilon"], told["privacy"]["delta"]
    if epsilon is None:
        # What this version's terms have beside it does not touch the count.
        terms = RunTerms.model_construct(**told | {"privacy": PrivacyConfig(**told["privacy"])})
        epsilon = told_plan(terms, told["privacy"]["noise_multiplier"], None).epsilon[SITE]
    return Charge(run=run, unit="client", delta=delta, epsilon=epsilon)
