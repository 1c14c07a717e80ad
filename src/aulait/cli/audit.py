"""``aulait audit``: attack this installation's releases as a run makes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.account import recounted
from aulait.cli.options import JsonOption, SetOption
from aulait.core.errors import ConfigError, require
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger_line import LedgerLine
from aulait.privacy.mechanisms import find_mechanism
from aulait.privacy.plan import PlannedRelease
from aulait.reporting import numbers as n
from aulait.reporting.audit_page import (
    AuditFigures,
    MemberAttack,
    StageAttack,
    audit_page,
)
from aulait.reporting.page import save_page
from aulait.runs import experiment_file, setup
from aulait.runs.membership import member_attacks
from aulait.runs.prepared import SharedCache
from aulait.runs.privacy_audit import (
    CONFIDENCE,
    CONFIDENCE_MU,
    FULL,
    QUICK,
    Audited,
    audit,
)

AuditedArgument = Annotated[Path, typer.Argument(metavar="RUN|FILE",
    help="A run folder, or an experiment file.")]
MembersOption = Annotated[bool, typer.Option("--members",
    help="Guess at real records from the run's adapter and synthetic texts, too.")]
AuditPageOption = Annotated[Path | None, typer.Option("--out", metavar="PATH",
    help="The page. Default: RUN/audit.html; none for a file.")]
QuickOption = Annotated[bool, typer.Option("--quick",
    help="An eighth of the canaries: a coarser bound, in seconds.")]


def audit_run(subject: AuditedArgument, overrides: SetOption = None,
                  quick: QuickOption = False, members: MembersOption = False,
                  out: AuditPageOption = None, as_json: JsonOption = False) -> None:
    """Attack the releases that a run makes, and hold what is proven against what is claimed.

    Canary clients (or records) go into made-up rounds by fair coins, through the very code that
    clips, adds noise and accounts, with the noise and the rounds of the run. From what comes out an
    attacker that knows everything else says which were in. Lower bounds on epsilon and on mu
    follow. They are above the claim where something is broken, and else with a probability of at
    most 1 in 100 (epsilon, a modest bound) and 1 in 10,000 (mu, a close one). Exit code 1 when they
    are. With RUN the ledger's chain and its epsilon are checked first, and RUN/audit.html says in
    words what the attacker achieved.

    --members attacks a finished run's adapter and synthetic texts besides: which of the clients'
    real records did it see? That page is not for release.

    Example: aulait audit experiments/cafe-commits.toml --quick
    """
    with terminal.work(as_json):
        if subject.is_dir():
            require(not overrides, ConfigError,
                    f"--set found together with the run folder {subject}, expected neither: a run "
                    "knows its settings; leave it out")
            config, releases = _finished(subject)
        else:
            run = setup.prepare(experiment_file.read_settings(subject, overrides or []),
                                SharedCache())
            config, releases = run.settings.privacy, list(run.privacy.releases)
        require(not config.off or members, ConfigError,
                f"privacy.off = true in {subject}, expected a run that promises something; there "
                "is nothing to audit (--members guesses at the records of any finished run)")
        found, left = [], []
        for release in releases:
            terminal.note(f"{release.stage}: {n.counted(release.rounds, 'round')} of "
                          f"{release.mechanism}")
            done = audit(config, release, QUICK if quick else FULL)
            if done is None:
                left.append(release.stage)
            else:
                found.append(done)
        guessed = _members(subject) if members else []
        figures = _figures(subject, config, (found, left), guessed)
        path = out or (subject / "audit.html" if subject.is_dir() else None)
        if path is not None:
            save_page(path, audit_page(figures))
    holds = figures.holds
    if as_json:
        terminal.document({"confidence": CONFIDENCE, "confidence_mu": CONFIDENCE_MU,
                           "delta": config.delta, "holds": holds,
                           "stages": [each.as_dict() for each in found], "not_attacked": left,
                           "members": [vars(attack) for attack in guessed],
                           "page": None if path is None else str(path)})
    else:
        if not config.off:
            _show(config, found, left)
        _show_members(guessed)
        if path is not None:
            terminal.say(str(path))
    if not holds:
        raise typer.Exit(1)


def _members(run: Path) -> list[MemberAttack]:
    """Attacks on what a finished run released.

    Raises:
        ConfigError: it is no run folder.
    """
    require(run.is_dir(), ConfigError,
            f"--members found with the experiment file {run}, expected a run folder: only a "
            "finished run has something to guess from; run it first")
    return member_attacks(run)


def _figures(subject: Path, config: PrivacyConfig, found: tuple[list[Audited], list[str]],
             members: list[MemberAttack]) -> AuditFigures:
    """What the page tells."""
    attacked, left = found
    return AuditFigures(
        subject.resolve().name, config.unit, config.delta or 0.0, (CONFIDENCE, CONFIDENCE_MU),
        [StageAttack(
            each.release.stage, each.release.mechanism, each.release.rounds, each.canaries,
            each.right, each.proven_epsilon, each.claimed_epsilon, each.proven_mu,
            each.claimed_mu, each.holds) for each in attacked], left, members)


def _finished(run: Path) -> tuple[PrivacyConfig, list[PlannedRelease]]:
    """The promise of a run and what its ledger says that it released, once that is sound.

    Raises:
        PrivacyError: the ledger is broken.
    """
    settings = experiment_file.read_settings(run / "config.toml", [])
    if settings.privacy.off:
        return settings.privacy, []
    rows, ledger = recounted(run)
    differing = [row["role"] for row in rows if not row["agrees"]]
    require(not differing, ConfigError,
            f"ledger and result.json of {run} differ for role {', '.join(differing)}, expected "
            f"the same epsilon; see aulait account {run}")
    counted = Counter(_planned(line) for line in ledger.lines)
    return settings.privacy, [
        PlannedRelease(**{**vars(release), "rounds": rounds})
        for release, rounds in counted.items()]


def _planned(line: LedgerLine) -> PlannedRelease:
    """One round as the plan would have it."""
    of_one = find_mechanism(line.mechanism).sensitivity(1.0, line.relation)
    return PlannedRelease(
        stage=line.stage, rounds=1, role=line.role, mechanism=line.mechanism,
        bound=line.sensitivity / of_one, steps=line.steps, cohorts=line.sampling.cohorts or 1,
        sampling_rate=1.0 if line.sampling.rate is None else float(line.sampling.rate),
        noise_multiplier=float(line.noise_multiplier), sensitivity=float(line.sensitivity))


def _show(config: PrivacyConfig, found: list[Audited], left: list[str]) -> None:
    rows: list[tuple[str, ...]] = [
        (each.release.stage, each.release.role, each.release.mechanism, n.count(each.canaries),
         f"{each.right:.1%}", f"{each.proven_epsilon:.3g}", f"{each.claimed_epsilon:.3g}",
         *(("", "") if each.proven_mu is None or each.claimed_mu is None
           else (f"{each.proven_mu:.3g}", f"{each.claimed_mu:.3g}")),
         "holds" if each.holds else "BROKEN") for each in found]
    title = (f"attacks on canary {config.unit}s: at least this epsilon (at delta {config.delta:g}) "
             f"and mu are spent, with confidence {CONFIDENCE:.0%} and {CONFIDENCE_MU:.2%}")
    terminal.table(title, ("stage", "role", "mechanism", "canaries", "attacker right",
                           "epsilon proven", "claimed", "mu proven", "claimed", ""), rows,
                   right=range(3, 9))
    for stage in left:
        terminal.say(f"{stage}: not attacked (whole batches are clipped, from which no unit can "
                     "be told, or sites mask the sum of their units); the ledger's account holds "
                     "for it")
    if not all(each.holds for each in found):
        terminal.say("what is proven is more than what is claimed: the noise, the clipping or the "
                     "account of this installation is broken; do not run it on private data")


def _show_members(members: list[MemberAttack]) -> None:
    if members:
        terminal.table("guessing at real records (0.5 of the area is guessing)",
                       ("from", "members", "others", "area", "found at 1 % false alarms"),
                       [(attack.what, n.count(attack.members), n.count(attack.others),
                         n.significant(attack.area), n.percent(attack.caught))
                        for attack in members], right=range(1, 5))
