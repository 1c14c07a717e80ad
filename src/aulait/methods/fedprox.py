"""FedProx on LoRA factors: local steps are held near the server's factors.

A client minimises its loss + mu/2 ||theta - theta_s||^2 over A and B together, theta_s what it was
sent; the server averages as FedAvg does. The paper's mu is one of 0.001, 0.01, 0.1 and 1, by data
set. Where AdamW makes the steps the pull is a gradient among others and is scaled with them, so a
mu that does nothing under SGD may hold a client firmly here.

A penalty beside the loss has no place in a step of DP-SGD, so single records are not offered.

what: A and B averaged as in FedAvg; clients are held near the server's factors by a penalty
source: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv 1812.06127
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of whole updates, each clipped to C; sensitivity C
differs: a number of steps instead of a measured inexactness; the pull is on LoRA factors; AdamW by
    default; everyone who is asked takes all steps; unequal ranks are nested columns
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
from aulait.training.trainer import Learner, Penalty

TRAITS = described(__name__, __doc__, Abilities(asynchronous=True))


class FedProxConfig(AveragingConfig):
    """``[algorithm] name = "fedprox"``.

    Attributes:
        proximal: mu, the pull towards the server's factors; 0 for none.
    """

    proximal: float = Field(0.01, ge=0)


Config = FedProxConfig


def step(config: FedProxConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """As FedAvg, with mu in the requests."""
    pulled = with_settings(server, {"proximal": config.proximal})
    return mixed_round(config, context, state, cohort, pulled)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps held near the sent factors; the update is how A and B moved."""
    mu = requests[0].settings["proximal"]
    penalty = Penalty(proximal=mu) if mu else None
    training = [replace(own, penalty=penalty) for own in client_update.local_training(
        requests, sites, context, client_update.sent_factors(context))]
    return client_update.changes(sites, client_update.train(requests, training, learner))
