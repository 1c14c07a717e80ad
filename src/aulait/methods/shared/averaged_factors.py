"""A and B trained at every client and averaged at the server: what FedIT's relatives share.

A method that differs from FedIT in one thing takes the rest from here.
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import initial_state
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round
from aulait.training.trainer import Learner


def init(config: AveragingConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return initial_state(config, lora.to_tensors(context.initial()))


def step(config: AveragingConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send A and B, average how they moved, add the mean."""
    return mixed_round(config, context, state, cohort, server)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local LoRA steps from the sent A and B; the update is how they moved."""
    training = client_update.local_training(
        requests, sites, context, client_update.sent_factors(context))
    return client_update.changes(sites, client_update.train(requests, training, learner))


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors."""
    return context.adapter(state.factors)


def travels(config: AveragingConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    own = client_update.factor_bytes(context, client)
    return own, own
