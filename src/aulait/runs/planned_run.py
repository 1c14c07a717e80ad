"""A run before it begins, in the form of a run folder that was read: its settings, its roles, the
planned releases as ledger lines. What a dossier says of it is then said as of a finished run."""

from __future__ import annotations

import hashlib
import math
import tomllib
from dataclasses import replace
from pathlib import Path

from aulait.core.cohort_turn import CohortTurn
from aulait.core.version import PACKAGE_VERSION
from aulait.models.fingerprint import fingerprint
from aulait.privacy.accounting import epsilon
from aulait.privacy.curve import privacy_curve
from aulait.privacy.plan import PlannedRelease, PrivacyPlan
from aulait.reporting.dossier import DossierSubject, SentBytes
from aulait.reporting.folder import RunFiles
from aulait.runfolder import schema
from aulait.runs.experiment_file import dump_settings
from aulait.runs.finish import noise_result, tier_results
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import PreparedRun


def planned_run(run: PreparedRun, file: Path) -> DossierSubject:
    """The subject of a run that is prepared.

    Args:
        run: nothing of it has been trained.
        file: the experiment file.
    """
    settings = run.settings
    text = dump_settings(settings)
    hashes = [
        ("experiment file (SHA-256)", hashlib.sha256(file.read_bytes()).hexdigest()),
        ("config.toml that the run will write (SHA-256)",
         hashlib.sha256(text.encode()).hexdigest()),
        ("base model (fingerprint)", fingerprint(run.models.base)),
        ("aulait (version)", PACKAGE_VERSION),
    ]
    ledger = tuple(line for release in run.privacy.releases for line in _lines(run, release))
    files = RunFiles(file.parent, text, tomllib.loads(text), result=_result(run),
                     synthesis=_bare_votes(run), ledger=ledger)
    return DossierSubject(files, True, settings.method.TRAITS.personal, _sent(run), hashes,
                          {role: privacy_curve(events)
                           for role, events in run.privacy.events.items()})


def _result(run: PreparedRun) -> schema.ResultFile:
    """What result.json would say before the first round."""
    settings, federation = run.settings, run.federation
    config = settings.synthesis
    return schema.ResultFile(
        name=settings.run.name, arm=settings.arm, algorithm=settings.algorithm["name"],
        engine=settings.engine.name, seed=settings.run.seed, clients=len(federation.sites),
        rounds=settings.train.rounds, privacy=_privacy(run.privacy, run),
        tiers=tier_results(settings, federation),
        synthesis=schema.SynthesisResult(
            rounds=settings.votings, candidates=config.largest_ballot,
            voters=len(federation.voters), selection=config.selection,
            source=config.source, texts=config.texts,
            **({"generator": config.generator, "kind": config.generate.kind} if config.writes
               else {}))
        if federation.breeds else None)


def _privacy(plan: PrivacyPlan, run: PreparedRun) -> schema.PrivacyResult:
    """What is promised; epsilon is null where it is infinite."""
    spent = {role: None if math.isinf(plan.epsilon[role]) else plan.epsilon[role]
             for role, names in run.federation.roles.items() if names}
    config, known = plan.config, [value for value in spent.values() if value is not None]
    bounded = len(known) == len(spent) and not plan.exact_roles
    return schema.PrivacyResult(
        off=config.off, unit=config.unit, relation=config.relation, delta=config.delta,
        trust=config.trust, exact_votes=bool(plan.exact_roles),
        noise_seeded=config.noise_seed is not None,
        private=not config.off and config.noise_seed is None and not plan.exact_roles,
        epsilon=schema.EpsilonByRole(**spent, max=max(known) if bounded and known else None),
        noise=noise_result(run))


def _lines(run: PreparedRun, release: PlannedRelease) -> list[schema.LedgerEntry]:
    """The lines that every round of a stage will write; the last one says what is then spent."""
    config = run.privacy.config
    planned = len(run.federation.voters if release.stage == "synthesis"
                  else run.federation.trainers)
    if release.rounds_of == "train":
        planned = run.settings.federation.planned(planned)
    spent = _spent_after(run.privacy, release)
    return [schema.LedgerEntry(
        stage=release.stage, round=round, role=release.role, mechanism=release.mechanism,
        sensitivity=release.sensitivity, sigma=release.sigma,
        noise_multiplier=release.noise_multiplier, planned=planned, steps=release.steps,
        sampling=_sampling(release, round),
        **({"epsilon": schema.EpsilonByRole(**spent)} if round == release.rounds else {}),
        delta=config.delta, relation=config.relation, unit=config.unit,
        private=config.noise_seed is None,
    ) for round in range(1, release.rounds + 1)]


def _sampling(release: PlannedRelease, round: int) -> schema.SamplingEntry:
    """How a round's clients are drawn."""
    turn = CohortTurn.of_round(round, release.cohorts)
    if turn is not None:
        return schema.SamplingEntry(kind="turns", turn=turn.number, cohorts=turn.cohorts)
    if release.most is not None:
        return schema.SamplingEntry(kind="schedule", most=release.most)
    if release.sampling_rate == 1.0:
        return schema.SamplingEntry(kind="all")
    return schema.SamplingEntry(kind="poisson", rate=release.sampling_rate)


def _spent_after(plan: PrivacyPlan, last: PlannedRelease) -> dict[str, float]:
    """Role -> epsilon after the last round of a stage; the stages follow in their order."""
    until = replace(plan, releases=plan.releases[: plan.releases.index(last) + 1])
    return {role: epsilon(until.events[role], plan.config.delta or 0.0) for role in last.roles}


def _bare_votes(run: PreparedRun) -> tuple[schema.SynthesisRound, ...]:
    """A round of votes without noise, where the votes are exact."""
    return (schema.SynthesisRound(noise_std=0.0),) if run.privacy.exact_roles else ()


def _sent(run: PreparedRun) -> list[SentBytes]:
    """Bytes by the methods' own formulas, by tier."""
    found = []
    for tier in summarise_plan(run)["tiers"]:
        vote_up, vote_down = tier["vote_up_bytes_run"], tier["vote_down_bytes_run"]
        if tier["vote_up_bytes_round"]:
            found.append(SentBytes(tier["name"], "votes", tier["clients"],
                                   tier["vote_up_bytes_round"], vote_up, vote_down))
        if tier["train_up_bytes_round"]:
            found.append(SentBytes(tier["name"], "updates", tier["clients"],
                                   tier["train_up_bytes_round"], tier["up_bytes_run"] - vote_up,
                                   tier["down_bytes_run"] - vote_down))
    return found
