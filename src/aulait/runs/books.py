"""The books of a run: one ledger and one accountant, and the aggregators that write to them."""

from __future__ import annotations

import hashlib
import json

from aulait.core.errors import PrivacyError, require
from aulait.core.files import writing
from aulait.core.units import units
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.privacy.secure.summation import BeginSecureSum
from aulait.runfolder.run_folder import RunFolder
from aulait.runfolder.schema import is_chained
from aulait.runs.prepared import Books, PreparedRun
from aulait.runs.progress import Progress

MOST_PROXIES = 1000  # as synthesis.proxy_count allows


def open_ledger(run: PreparedRun, folder: RunFolder, progress: Progress) -> Ledger:
    """The ledger of a run folder, once it is the one that the checkpoint knows; its head is saved
    with the run from now on, and before anybody is asked.

    Raises:
        PrivacyError: it was cut, deleted or edited, or is another run's; or the clients are others
            than when the run began.
    """
    ledger = Ledger(folder.path / "ledger.jsonl")
    if run.settings.privacy.off:
        return ledger
    if progress.ledger_head is not None:
        ledger.hold_against(progress.ledger_head, "the checkpoint")
    else:
        require(not is_chained(progress.schema_version), PrivacyError,
                f"the checkpoint of {folder.path} names no head of the ledger, which is chained; "
                "restore the run folder from a copy")
    found = members(run)
    require(progress.members in ("", found), PrivacyError,
            f"{folder.path} was begun with other clients, or some of them have another part in it "
            "now, expected the same, as each has the account of its part; give the data and the "
            "settings that it was begun with, or begin a new run")
    progress.members = found
    with writing(folder.path):
        ledger.begin()
    progress.ledger = ledger
    if progress.ledger_head is None:
        progress.save(folder)
    return ledger


def members(run: PreparedRun) -> str:
    """SHA-256, in hexadecimal, of who votes and who trains. A role's account, and that of a cohort
    that takes turns, hold for the clients that were in it from the first release on: cohorts are
    dealt by the names of all."""
    parts = {"vote": sorted(run.federation.voters), "train": sorted(run.federation.trainers)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_releases(run: PreparedRun, folder: RunFolder, ledger: Ledger) -> None:
    """Hold everything that was released against the plan, before the result is written.

    Raises:
        PrivacyError: a release is missing, or is none of the plan.
    """
    if not run.settings.privacy.off:
        done = [(str(line["stage"]), int(line["round"])) for line in folder.lines()]
        run.privacy.check_run(done, ledger.lines)


def open_books(run: PreparedRun, ledger: Ledger, secure_sum: BeginSecureSum) -> Books:
    """The books of a run, with every line that is already in the ledger charged.

    Args:
        run: whose books.
        ledger: of its folder.
        secure_sum: begins a secure sum with its clients, wherever they are.
    """
    privacy, settings = run.settings.privacy, run.settings
    noise = SystemNoise() if privacy.noise_seed is None else SeededNoise(privacy.noise_seed)
    accountant = None
    if not privacy.off:
        assert privacy.delta is not None
        accountant = Accountant(privacy.delta, run.privacy.budget)
        ledger.replay(accountant)
    proxies = frozenset(f"{kind}-{k:03d}" for kind in ("proxy", "reference")
                        for k in range(MOST_PROXIES))
    most = max((len(units(site.train)) for site in run.federation.sites.values()), default=1) if (
        privacy.protects_records and privacy.secure) else 1
    train = PrivateAggregator(
        privacy, ledger, accountant, noise,
        KnownSites(proxies, settings.federation.max_norm, secure_sum,
                   settings.federation.robust_rule, most),
        run.privacy.record_mechanisms)
    votes, exact = train, settings.synthesis.votes == "exact"
    if exact and not privacy.off:
        votes = PrivateAggregator(PrivacyConfig(off=True), ledger, None, noise, KnownSites(proxies))
    return Books(ledger, accountant, votes, train)


def epsilons(run: PreparedRun, accountant: Accountant | None) -> dict[str, float | None]:
    """Epsilon spent so far by the roles that exist; None means infinite."""
    spent: dict[str, float | None] = {
        role: accountant.spent(role) if accountant is not None else None
        for role, names in run.federation.roles.items() if names}
    return spent | dict.fromkeys(run.privacy.exact_roles)
