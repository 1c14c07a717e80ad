"""The end of a run: the adapter, the numbers, the facts about the machine, the page."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import torch

from aulait.models import peft_export
from aulait.privacy.accounting import Accountant
from aulait.runfolder import schema
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import scoring
from aulait.runs.progress import Progress, epsilons
from aulait.runs.setup import House
from aulait.runs.virtual_time import round_time
from aulait.synthesis import private_evolution

PACKAGES = ("aulait", "torch", "transformers", "peft", "sentence-transformers", "dp-accounting")


def machine() -> dict[str, Any]:
    """Facts about this machine that a reader of the numbers needs."""
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    )
    return schema.MachineFile(
        system=platform.system(), machine=platform.machine(), python=platform.python_version(),
        processors=os.cpu_count(), threads=torch.get_num_threads(), memory_bytes=memory,
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    ).on_disk()


def finish(house: House, folder: RunFolder, accountant: Accountant | None, progress: Progress,
           watch: Any) -> dict[str, Any]:
    """Write adapter/, result.json and report.html.

    Args:
        house: what ran.
        folder: where to.
        accountant: knows what was spent.
        progress: the loop's last state.
        watch: told about the last steps.

    Returns:
        What result.json holds.
    """
    watch("finish", 0, 2, "writing the adapter")
    assert progress.state is not None  # a run ends after its first state
    adapter = house.settings.method.result(house.context, progress.state)
    peft_export.export(adapter, house.base, folder.path / "adapter")
    own = progress.personal or scoring.personal(house, progress.state, final=True)
    for name, adapter in own.items():
        peft_export.export(adapter, house.base, folder.path / "personal" / _folder(name))
    result = _result(house, accountant, progress)
    folder.write_json("result.json", result)
    watch("finish", 1, 2, "writing the report")
    page(folder)
    watch("finish", 2, 2, "")
    return result


def _folder(client: str) -> str:
    """A folder name for a client: no separators, and no name that means another folder."""
    plain = quote(client, safe=" ()@+,=-_.")
    return plain.replace(".", "%2E") if set(plain) <= {"."} else plain


def page(folder: RunFolder) -> None:
    """Write report.html of a finished run."""
    from aulait import reporting

    reporting.write(folder.path)


def _result(house: House, accountant: Accountant | None, progress: Progress) -> dict[str, Any]:
    settings, totals = house.settings, progress.totals
    both = {way: int(totals.get(f"synthesis_{way}", 0) + totals.get(f"train_{way}", 0))
            for way in ("up_bytes", "down_bytes")}
    clock = round_time.result(totals)
    return schema.ResultFile(
        schema_version=schema.SCHEMA_VERSION,
        name=settings.run.name,
        arm=settings.arm,
        algorithm=settings.algorithm["name"],
        engine=settings.engine.name,
        seed=settings.run.seed,
        clients=len(house.sites),
        rounds=progress.state.round if progress.state else 0,
        base_eval=schema.Scores(**progress.base_eval),
        eval=schema.Scores(**progress.last_eval),
        privacy=_privacy(house, accountant, progress.stopped),
        traffic=schema.TrafficResult(**both),
        time=schema.TimeResult(**{name: None if house.secret_time else totals.get(name, 0.0)
            for name in ("wall_s", "synthesis_s", "train_s", "evaluate_s")}),
        clock=None if clock is None else schema.VirtualClock(**clock),
        versions={name: version(name) for name in PACKAGES},
        tiers=_tiers(house),
        synthesis=_synthesis(house, progress) if house.voting else None,
        data={"source": settings.data.source, **_rows_left_out(house)},
    ).on_disk()


def _rows_left_out(house: House) -> dict[str, Any]:
    """What the reader left out; counts over clients' rows stay on the terminal when privacy is
    on."""
    if not house.settings.privacy.off:
        return {}
    corpus = house.corpus
    return {"malformed": list(corpus.malformed[:20]), "malformed_count": len(corpus.malformed),
            "left_out": corpus.left_out}


def _privacy(house: House, accountant: Accountant | None,
             stopped: str | None) -> schema.PrivacyResult:
    """What was promised and spent. Epsilon is null where it is infinite or where a role does not
    exist."""
    privacy = house.settings.privacy
    exact = bool(house.privacy_plan.exact_roles)
    spent: dict[str, float | None] = {"proxy": None, "local": None, "split": None,
        **epsilons(house, accountant)}
    known = [value for value in spent.values() if value is not None]
    return schema.PrivacyResult(
        off=privacy.off,
        unit=privacy.unit,
        relation=privacy.relation,
        delta=privacy.delta,
        private=not privacy.off and privacy.noise_seed is None and not exact,
        exact_votes=exact,
        noise_seeded=privacy.noise_seed is not None,
        stopped_early=stopped,
        epsilon=schema.EpsilonByRole(**spent, max=max(known) if known and not exact else None),
    )


def _tiers(house: House) -> tuple[schema.TierResult, ...]:
    rows = []
    for tier in house.settings.federation.tier:
        plans = [site.plan for site in house.sites.values() if site.plan.tier == tier.name]
        if plans:
            rows.append(schema.TierResult(
                name=tier.name, placement=plans[0].placement, clients=len(plans),
                rank=plans[0].rank, steps=plans[0].steps, batch=plans[0].batch,
                machine=tier.machine, reason=house.places[tier.name].why))
    return tuple(rows)


def _synthesis(house: House, progress: Progress) -> schema.SynthesisResult:
    config, voters = house.settings.synthesis, len(house.voters)
    rounds = max(1, progress.synthesis.round if progress.synthesis else 1)
    each = voters * rounds
    per = {way: progress.totals.get(f"synthesis_{way}_bytes", 0) / each if each else 0
           for way in ("up", "down")}
    return schema.SynthesisResult(
        rounds=config.rounds, candidates=config.pool,
        texts=sum(len(shard) for shard in progress.texts),
        voters=voters, selection=config.selection, generator=config.generator,
        kind=config.generate.kind,
        vote_sensitivity=private_evolution.vote_bound(house.settings.data.records_per_client),
        records_per_client=house.settings.data.records_per_client,
        client_down_bytes_per_round=per["down"], client_up_bytes_per_round=per["up"],
        down_formula="4 · J · D", up_formula="4 · J",
        client_s_mean=progress.totals.get("client_s", 0.0) / voters
        if voters and not house.secret_time else None,
    )
