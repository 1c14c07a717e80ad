"""What a run will release about its clients: the privacy plan of both stages, from public settings.

Where the unit is the client the aggregator adds the noise of either stage to a sum. Where it is the
record or a field the sites add it, to their votes and to their steps of training: one plan, one
ledger, and a role pays for the worst unit of its clients.
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core.types import Site
from aulait.methods.contract import RunContext, record_mechanism
from aulait.methods.shared import line_search
from aulait.privacy import record_level
from aulait.privacy.plan import PrivacyPlan, ReleaseSchedule, plan_privacy
from aulait.runs.experiment_file import Settings
from aulait.synthesis import private_evolution


def privacy_plan(
    settings: Settings, context: RunContext, voters: Sequence[str], trainers: Sequence[Site]
) -> PrivacyPlan:
    """The privacy plan of a run.

    Args:
        settings: the experiment.
        context: what all sites know.
        voters: clients that vote in stage 1.
        trainers: sites of the clients that train on their own texts.

    Raises:
        PrivacyError: the settings contradict each other.
    """
    schedules, exact = [], settings.synthesis.votes == "exact"
    if voters and not exact and settings.votings:
        schedules.append(_voting(settings, bool(trainers)))
    if trainers and settings.train.rounds and _sends(settings, trainers[0].name, context):
        schedules.append(_training(settings, trainers))
        if line_search.searches(settings.method_config):
            schedules.append(ReleaseSchedule(
                stage=line_search.TAG, rounds=settings.train.rounds, role="local",
                mechanism=settings.privacy.client_mechanism(), bound=line_search.BOUND))
    exact_roles = vote_role(settings, bool(trainers)).split("+") if voters and exact else ()
    return plan_privacy(settings.privacy, schedules, exact_roles)


def vote_role(settings: Settings, trainers: bool) -> str:
    """The roles that a vote is charged to; ``trainers`` says whether there are clients that
    train."""
    return "proxy+local" if settings.synthesis.voters == "all" and trainers else "proxy"


def vote_bound(settings: Settings) -> float:
    """S, the L2 bound of the votes of one unit: of a client, or of one record or field of it."""
    privacy = settings.privacy
    if privacy.protects_records:
        return record_level.unit_vote_bound(settings.synthesis.neighbours, privacy.unit_records)
    return private_evolution.vote_bound(settings.data.records_per_client)


def _sends(settings: Settings, client: str, context: RunContext) -> bool:
    """Whether a client's update leaves its site at all; that of "alone" does not."""
    up_bytes, _ = settings.method.travels(settings.method_config, context, 1, client, (client,))
    return up_bytes > 0


def _voting(settings: Settings, trainers: bool) -> ReleaseSchedule:
    """The releases of stage 1."""
    privacy = settings.privacy
    return ReleaseSchedule(
        stage="synthesis", rounds=settings.votings, role=vote_role(settings, trainers),
        mechanism=(record_level.vote_mechanism(privacy) if privacy.protects_records
                   else privacy.client_mechanism()),
        bound=vote_bound(settings))


def _training(settings: Settings, trainers: Sequence[Site]) -> ReleaseSchedule:
    """The releases of stage 2."""
    privacy, federation = settings.privacy, settings.federation
    rate = federation.rate if federation.sampling == "poisson" else 1.0
    cohorts, most = federation.cohorts, None
    mechanism, steps = privacy.client_mechanism(cohorts), 1
    if federation.asynchronous:
        most = min(federation.contributions or settings.train.rounds, settings.train.rounds)
    if privacy.protects_records:  # every round counts for every unit, whoever is drawn
        asked = record_mechanism(settings.method, settings.method_config, privacy, trainers)
        mechanism, rate, steps, cohorts = asked.mechanism, asked.rate, asked.steps, 1
        most = None
    return ReleaseSchedule(stage="train", rounds=settings.train.rounds, role="local",
                           mechanism=mechanism, bound=privacy.known_clip, sampling_rate=rate,
                           steps=steps, cohorts=cohorts, most=most)
