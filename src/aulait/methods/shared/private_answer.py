"""A method's answer where the unit of privacy is the record: the same for every method, at a site
of a deployment and in one process.
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core.types import ClientUpdate, Site, TrainRequest
from aulait.methods.contract import AnyMethod, RunContext
from aulait.privacy.record_level import SiteNoise
from aulait.training.private_learner import PrivateLearner, SummingLearner
from aulait.training.trainer import Learner


def answer_privately(
    method: AnyMethod, requests: Sequence[TrainRequest], sites: Sequence[Site],
    context: RunContext, learner: Learner, noise: SiteNoise
) -> list[ClientUpdate]:
    """Updates of sites whose training adds noise, in the order of the requests.

    The method is given a learner that trains with noise, and places in the stead of records, so
    that an update is a function of the noised factors. Diagnostics are left out. Where the noise
    is added as the site masks its sum, the update is that sum, float64, and sensitive until then.

    Args:
        method: its ``answer`` is called.
        requests: one for each site; they all ask for this noise.
        sites: with their records, which the method does not see.
        context: what all sites know.
        learner: the shared base.
        noise: what the sites add to their steps.

    Raises:
        PrivacyError: the method does not train by the learner it is given, or trains twice.
    """
    if noise.summed:
        summing = SummingLearner(learner, noise, sites)
        answers = method.answer(requests, [summing.stand_in(site) for site in sites], context,
                                summing)
        return [ClientUpdate(own.client, summing.sum_of(own.client, own.tensors), own.weight)
                for own in answers]
    private = PrivateLearner(learner, noise, sites)
    updates = method.answer(requests, [private.stand_in(site) for site in sites], context, private)
    return [ClientUpdate(own.client, own.tensors, own.weight) for own in updates]
