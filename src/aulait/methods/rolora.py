"""RoLoRA: rounds that train B with A frozen take turns with rounds that train A with B frozen.

Odd rounds train and average B, even rounds A. The frozen factor is the same for everyone, so the
mean is exact, and it is a constant of the round, so noise enters the update linearly. The paper
lets everyone take part in every round and sends down the factor that changed; here both are sent,
so that a client which missed a round is up to date. The first round trains B: with B = 0 the
gradient of A is 0. Unequal ranks are nested columns, each averaged over those who own it.

what: odd rounds train B with A frozen, even rounds A with B frozen
source: Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA,
    NeurIPS 2025, arXiv 2502.01755
travels: up 4 sum r_k M, then 4 sum r_k N, in turn; down 4 sum r_k (M + N)
privacy: sum of changes of the trained factor, each clipped to C; sensitivity C; noise enters
    linearly. Records: DP-SGD at the site
differs: both factors are sent down, so that a client may miss a round; unequal ranks are nested
    columns
unequal ranks: yes
exact: at equal ranks
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import initial_state
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(units=("client", "record"), placed=True))


class RoLoRAConfig(AveragingConfig):
    """``[algorithm] name = "rolora"``."""


Config = RoLoRAConfig


def init(config: RoLoRAConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return initial_state(config, lora.to_tensors(context.initial()))


def step(config: RoLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send both factors, average the one of this round."""
    return mixed_round(config, context, state, cohort, server, _trainable(cohort.round))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps on one factor; the update is its change."""
    trainable = _trainable(requests[0].round)
    training = client_update.local_training(
        requests, sites, context, client_update.sent_factors(context), trainable)
    return client_update.changes(
        sites, client_update.train(requests, training, learner), trainable)


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors."""
    return context.adapter(state.factors)


def travels(config: RoLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    up = client_update.factor_bytes(context, client, _trainable(round))
    return up, client_update.factor_bytes(context, client)


def _trainable(round: int) -> Trainable:
    """The factor that a round trains; rounds are counted from 1."""
    return Trainable.B if round % 2 else Trainable.A
