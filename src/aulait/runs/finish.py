"""The end of a run: the adapters, the numbers, the facts about the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from urllib.parse import quote

import torch

from aulait.core.files import JsonObject, private_folder
from aulait.core.types import Adapter
from aulait.evaluation.lm_eval_tasks import measure_tasks
from aulait.methods.contract import State
from aulait.models import peft_export
from aulait.models.fingerprint import fingerprint
from aulait.runfolder import schema
from aulait.runs import size_law
from aulait.runs.books import epsilons
from aulait.runs.experiment_file import Settings
from aulait.runs.export_check import ScoredRecords, check_exported, check_personal
from aulait.runs.prepared import Books, Federation, PreparedRun
from aulait.runs.privacy_schedule import vote_bound
from aulait.runs.progress import Progress
from aulait.runs.set_measures import measured_set
from aulait.runs.stage import Execution
from aulait.runs.virtual_time import clock

_LONGEST_NAME = 80  # bytes of a client's name as a folder's
PACKAGES = ("aulait", "torch", "transformers", "peft", "sentence-transformers", "dp-accounting")


def machine() -> JsonObject:
    """Facts about this machine that a reader of the numbers needs."""
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    )
    return schema.MachineFile(
        system=platform.system(), machine=platform.machine(), python=platform.python_version(),
        processors=os.cpu_count(), threads=torch.get_num_threads(), memory_bytes=memory,
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    ).on_disk()


def finish(execution: Execution) -> JsonObject:
    """Write adapter/, personal/ and result.json.

    Returns:
        What result.json holds.
    """
    run, folder, progress = execution.run, execution.folder, execution.progress
    execution.watch("finish", 0, 2, "writing the adapter")
    kept = kept_state(run, progress)
    shared = run.settings.method.result(run.context, kept)
    base, records = run.models.base, ScoredRecords.of(run)
    dropout = run.settings.adapter.dropout
    peft_export.export(shared, base, folder.path / "adapter", dropout=dropout)
    execution.watch("finish", 0, 2, "reading the adapter back")
    exported = check_exported(records, base, shared, folder.path / "adapter")
    own = progress.personal or execution.engine.personal(run, kept)
    folders = {_folder(name): name for name in own}
    if any(name.startswith("client-") for name in folders):
        folder.write_json("personal/clients.json", dict(sorted(folders.items())))
    places = {private_folder(folder.path / "personal") / _folder(name): adapter
              for name, adapter in own.items()}
    for place, adapter in places.items():
        peft_export.export(adapter, base, place, personal=True, dropout=dropout)
    check_personal(base, records, places)
    result = _result(execution, exported) | _tasks(execution, shared)
    folder.write_json("result.json", result)
    return result


def kept_state(run: PreparedRun, progress: Progress) -> State:
    """The state whose adapter is written: of the last round, or of the best measured one."""
    assert progress.state is not None  # a run ends after its first state
    if run.settings.train.keep == "last" or not progress.best_eval:
        return progress.state
    return progress.best or run.first_state()


def _tasks(execution: Execution, adapter: Adapter) -> JsonObject:
    """The scores of lm-eval's tasks, where the experiment names some."""
    config = execution.run.settings.evaluate
    if not config.tasks:
        return {}
    execution.watch("finish", 0, 2, f"measuring {', '.join(config.tasks)}")
    return {"tasks": measure_tasks(execution.run.models.base, adapter, config, config.rows)}


def _folder(client: str) -> str:
    """A folder name for a client: no separators, no name that means another folder, and short
    enough for any file system; ``clients.json`` beside the folders tells whose a short one is."""
    plain = quote(client, safe=" ()@+,=-_.")
    if len(plain) > _LONGEST_NAME:
        return f"client-{hashlib.sha256(client.encode()).hexdigest()[:32]}"
    return plain.replace(".", "%2E") if set(plain) <= {"."} else plain


def _result(execution: Execution, exported: schema.ExportedResult) -> JsonObject:
    """What result.json holds."""
    run, progress, secret = execution.run, execution.progress, execution.secret_seconds
    settings, totals = run.settings, progress.totals
    moved = {way: int(totals.get(f"synthesis_{way}", 0) + totals.get(f"train_{way}", 0))
             for way in ("up_bytes", "down_bytes")}
    seconds = {name: None if secret else totals.get(name, 0.0)
               for name in ("wall_s", "synthesis_s", "train_s", "evaluate_s")}
    virtual = clock.virtual_totals(totals)
    return schema.ResultFile(
        schema_version=schema.SCHEMA_VERSION,
        name=settings.run.name,
        arm=settings.arm,
        algorithm=settings.algorithm["name"],
        engine=settings.engine.name,
        seed=settings.run.seed,
        clients=len(run.federation.sites),
        rounds=progress.state.round if progress.state else 0,
        **({"kept_round": kept_state(run, progress).round}
           if settings.train.keep == "best" else {}),
        base_eval=schema.Scores(**progress.base_eval),
        eval=schema.Scores(**progress.last_eval),
        privacy=_privacy(run, execution.books, progress.stopped),
        traffic=schema.TrafficResult(**moved),
        time=schema.TimeResult(**seconds),
        clock=None if virtual is None else schema.VirtualClock(**virtual),
        versions={name: version(name) for name in PACKAGES},
        base_fingerprint=fingerprint(run.models.base),
        exported=exported,
        tiers=tier_results(settings, run.federation),
        synthesis=_synthesis(execution) if run.federation.breeds else None,
        data={"source": settings.data.source, **_rows_left_out(settings, run.federation)},
    ).on_disk()


def _rows_left_out(settings: Settings, federation: Federation) -> JsonObject:
    """What the reader left out; counts over clients' rows stay on the terminal when privacy is
    on."""
    if not settings.privacy.off:
        return {}
    corpus = federation.corpus
    return {"malformed": list(corpus.malformed[:20]), "malformed_count": len(corpus.malformed),
            "left_out": corpus.left_out}


def _privacy(run: PreparedRun, books: Books, stopped: str | None) -> schema.PrivacyResult:
    """What was promised and spent. Epsilon is null where it is infinite or where a role does not
    exist."""
    privacy, exact = run.settings.privacy, bool(run.privacy.exact_roles)
    spent: dict[str, float | None] = {"proxy": None, "local": None, "split": None,
                                      **epsilons(run, books.accountant)}
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
        ledger=None if privacy.off else schema.LedgerResult(
            **books.ledger.head.model_dump(),
            releases={release.stage: release.rounds for release in run.privacy.releases}),
        epsilon=schema.EpsilonByRole(**spent, max=max(known) if known and not exact else None),
        noise=noise_result(run),
    )


def noise_result(run: PreparedRun) -> schema.NoiseResult | None:
    """Noise beside signal of the training stage, as it was known before the run."""
    found = size_law.noise_ratio(run)
    if found is None:
        return None
    return schema.NoiseResult(
        trained_numbers=found.numbers, clients=found.clients, ratio=found.ratio,
        affordable_numbers=found.affordable(run.settings.privacy.target_ratio),
        in_words=size_law.law_in_words(run))


def tier_results(settings: Settings, federation: Federation) -> tuple[schema.TierResult, ...]:
    """What the clients of every tier that has some did."""
    rows = []
    for tier in settings.federation.tier:
        plans = [site.plan for site in federation.sites.values() if site.plan.tier == tier.name]
        if plans:
            rows.append(schema.TierResult(
                name=tier.name, placement=plans[0].placement, clients=len(plans),
                rank=plans[0].rank, cut=plans[0].cut, steps=plans[0].steps, batch=plans[0].batch,
                machine=tier.machine, reason=federation.tiers[tier.name].why))
    return tuple(rows)


def _synthesis(execution: Execution) -> schema.SynthesisResult:
    """What stage 1 made, and what it asked of a voter in a round."""
    settings, progress = execution.run.settings, execution.progress
    config, voters = settings.synthesis, len(execution.run.federation.voters)
    votes = voters * max(1, progress.synthesis.round if progress.synthesis else 1)
    mean_bytes = {way: progress.totals.get(f"synthesis_{way}_bytes", 0) / votes if votes else 0
                  for way in ("up", "down")}
    known_seconds = voters and not execution.secret_seconds
    return schema.SynthesisResult(
        rounds=settings.votings, candidates=config.largest_ballot,
        texts=sum(len(shard) for shard in progress.texts),
        voters=voters, selection=config.selection, source=config.source,
        **({"generator": config.generator, "kind": config.generate.kind} if config.writes else {}),
        **({"taught": True} if settings.taught else {}),
        set=measured_set(execution.run, [text for shard in progress.texts for text in shard],
                         execution.engine.clients is None),
        vote_sensitivity=vote_bound(settings),
        records_per_client=settings.data.records_per_client,
        client_down_bytes_per_round=mean_bytes["down"],
        client_up_bytes_per_round=mean_bytes["up"],
        down_formula="4 · J · D", up_formula="4 · J",
        client_s_mean=progress.totals.get("client_s", 0.0) / voters if known_seconds else None)
