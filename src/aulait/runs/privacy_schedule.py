"""What a run will release about its clients: the privacy plan, from public settings."""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core.types import Site
from aulait.methods.contract import RecordMethod, RunContext
from aulait.privacy.plan import PrivacyPlan, ReleaseSchedule, plan_privacy
from aulait.privacy.record_level import RecordMechanism
from aulait.runs.experiment_file import Settings
from aulait.synthesis.private_evolution import vote_bound


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
    if voters and not exact and settings.synthesis.rounds:
        schedules.append(ReleaseSchedule(
            stage="synthesis", rounds=settings.synthesis.rounds,
            role=vote_role(settings, bool(trainers)), mechanism=settings.privacy.mechanism,
            bound=vote_bound(settings.data.records_per_client)))
    if trainers and settings.train.rounds and _sends(settings, trainers[0].name, context):
        schedules.append(_training(settings, record_mechanism(settings, trainers)))
    exact_roles = vote_role(settings, bool(trainers)).split("+") if voters and exact else ()
    return plan_privacy(settings.privacy, schedules, exact_roles)


def vote_role(settings: Settings, trainers: bool) -> str:
    """The roles that a vote is charged to; ``trainers`` says whether there are clients that
    train."""
    return "proxy+local" if settings.synthesis.voters == "all" and trainers else "proxy"


def _sends(settings: Settings, client: str, context: RunContext) -> bool:
    """Whether a client's update leaves its site at all; that of "alone" does not."""
    up_bytes, _ = settings.method.travels(settings.method_config, context, 1, client, (client,))
    return up_bytes > 0


def _training(settings: Settings, asked: RecordMechanism | None) -> ReleaseSchedule:
    """The releases of stage 2."""
    privacy, federation = settings.privacy, settings.federation
    bound = None if privacy.clip == "proxies" else float(privacy.clip) * privacy.clip_scale
    rate = federation.rate if federation.sampling == "poisson" else 1.0
    mechanism, steps = privacy.mechanism, 1
    if asked is not None:  # every round counts for every record, whoever is drawn
        mechanism = asked.mechanism
        rate, steps = asked.rate, asked.steps
    return ReleaseSchedule(stage="train", rounds=settings.train.rounds, role="local",
                           mechanism=mechanism, bound=bound, sampling_rate=rate, steps=steps)


def record_mechanism(settings: Settings, sites: Sequence[Site]) -> RecordMechanism | None:
    """With the unit "record", what a round may ask of any record of the training sites; else
    None."""
    method, privacy = settings.method, settings.privacy
    if privacy.off or privacy.unit == "client" or not isinstance(method, RecordMethod):
        return None
    return method.record_mechanism(settings.method_config, sites)
