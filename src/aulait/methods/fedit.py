"""FedIT: every client trains A and B; the server averages A and B separately.

In round t the server sends (A, B) to the clients of the cohort. Client k takes local LoRA steps
from there and answers with how its A_k and B_k moved. The server adds the mean of the A_k to A and
the mean of the B_k to B. The mean of products is not the product of means: this error is FedIT's
own.

The whole update (all A and B together) is clipped in L2 to C. Leading columns keep their norm among
zeros, so unequal ranks change nothing in that. They are averaged over those who own them, at the
scale alpha / R for everyone. Weights are uniform unless privacy is off and algorithm.weights =
"size".

what: every client trains A and B; A and B are averaged separately
source: Zhang et al., Towards Building the Federated GPT, ICASSP 2024, arXiv 2305.05644
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of whole updates, each clipped to C; sensitivity C. Records: DP-SGD at the site
differs: moments of the local optimiser start afresh every round; unequal ranks are nested columns
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared.client_update import (
    changes,
    factor_bytes,
    local_training,
    sent_factors,
    train,
)
from aulait.methods.shared.server_optimizer import initial_state
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    units=("client", "record"), steps=True, asynchronous=True, placed=True))


class FedITConfig(AveragingConfig):
    """``[algorithm] name = "fedit"``."""


Config = FedITConfig


def init(config: FedITConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return initial_state(config, lora.to_tensors(context.initial()))


def step(config: FedITConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send A and B, average how they moved, add the mean."""
    return mixed_round(config, context, state, cohort, server)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local LoRA steps from the sent A and B; the update is how they moved."""
    training = local_training(requests, sites, context, sent_factors(context))
    return changes(sites, train(requests, training, learner))


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors."""
    return context.adapter(state.factors)


def travels(config: FedITConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return factor_bytes(context, client), factor_bytes(context, client)
