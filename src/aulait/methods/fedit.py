"""FedIT: every client trains A and B; the server averages A and B separately.

what: LoRA factors averaged one by one, A with A and B with B.
source: Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP
2024, arXiv 2305.05644.
travels: up and down 4 · sum over layers r_k (M + N) bytes a client and round.
privacy: the sum over clients of the whole update (all A and B together), each clipped in L2 to C:
    sensitivity C. Leading columns keep their norm among zeros, so unequal ranks change nothing.
differs: the mean of products is not the product of means; this error is FedIT's own. Unequal ranks
    are nested columns, each averaged over those who own it, at the scale alpha / R for everyone.
    Optimiser moments start afresh every round. Uniform weights unless privacy is off and
    algorithm.weights = "size".
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import start
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round, trained
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="every client trains A and B; A and B are averaged separately",
    source="Zhang et al., Towards Building the Federated GPT, ICASSP 2024, arXiv 2305.05644",
    up="4 sum r_k (M + N)",
    down="4 sum r_k (M + N)",
    privacy="sum of whole updates, each clipped to C; sensitivity C",
    differs="moments of the local optimiser start afresh every round; unequal ranks are nested "
            "columns",
    unequal_ranks=True,
    exact="no",
    private=True,
    secure=True,
)


class Config(AveragingConfig):
    """``[algorithm] name = "fedit"``."""


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    theta = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds))
    return State(0, theta | start(config, theta))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the factors, average what comes back."""
    return mixed_round(config, context, state, cohort, server)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local LoRA steps from the sent factors; the share is the change of A and B."""
    done = client_update.train(
        requests, sites, context, learner, lambda request,
        _: lora.from_tensors(request.tensors, context.alpha, context.rank), Trainable.AB)
    return client_update.changes(sites, done, Trainable.AB)


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors."""
    return lora.from_tensors(trained(state), context.alpha, context.rank)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, name), client_update.factor_bytes(context, name)
