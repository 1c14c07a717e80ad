"""LA-LoRA: a client trains B and A in turns, a step each, and smooths the gradient of every step.

In FedIT a step moves both factors at once, each by a gradient at the other's old value. Here odd
steps train B with A frozen and even ones A with B frozen, counted on from round to round; the
first step trains B, since with B = 0 the gradient of A is zero. Both are averaged, as in FedIT.
Every gradient passes a low-pass filter over the two axes of its factor, (I - s · Laplacian)^-1
(``aulait.training.smoothing``).

Where single records are protected, a step clips and noises the one factor that it trains, half the
coordinates of FedIT's step at the same noise, and the filter acts on the noised sum:
post-processing. The reference code clips layer by layer at a bound that follows from the batch,
without accounting for it, and makes every step twice, once filtered and once not.

what: clients train B and A in turns within a round, with smoothed gradients; both are averaged
source: Liu et al., Rethinking LoRA for Privacy-Preserving Federated Learning in Large Models, ICLR
    2026, arXiv 2602.19926
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of whole updates, each clipped to C; sensitivity C. Records: DP-SGD at the site, of the
    factor in turn
differs: B goes first; one learning rate for both; the clip bound is fixed and accounted; one step
    for a gradient; unequal ranks are nested columns
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from aulait.core.cohort import Cohort
from aulait.core.types import ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.averaged_factors import init as init
from aulait.methods.shared.averaged_factors import result as result
from aulait.methods.shared.averaged_factors import travels as travels
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round, with_settings
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    units=("client", "record"), splits=False, asynchronous=True))


class LALoRAConfig(AveragingConfig):
    """``[algorithm] name = "lalora"``.

    Attributes:
        smoothing: s, the strength of the filter on gradients; 0 for none.
    """

    smoothing: float = Field(1.0, ge=0)


Config = LALoRAConfig


def step(config: LALoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """As FedIT, with the filter's strength in the requests."""
    filtering = with_settings(server, {"smoothing": config.smoothing})
    return mixed_round(config, context, state, cohort, filtering)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps on B and A in turns; the update is how both moved."""
    training = [
        replace(own, turn=(request.round - 1) * own.steps % 2,
                smoothing=request.settings["smoothing"])
        for request, own in zip(requests, client_update.local_training(
            requests, sites, context, client_update.sent_factors(context)), strict=True)]
    return client_update.changes(sites, client_update.train(requests, training, learner))
