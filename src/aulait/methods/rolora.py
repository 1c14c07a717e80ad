"""RoLoRA: rounds that train B with A frozen take turns with rounds that train A with B frozen.

what: odd rounds train and average B, even rounds A; the frozen factor is the same for everyone, so
the mean is exact.
source: Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
    NeurIPS 2025, arXiv 2502.01755.
travels: down 4 · sum over layers r_k (M + N) bytes; up 4 · sum r_k M in odd rounds, 4 · sum r_k N
in even ones.
privacy: the sum over clients of the change of the factor that is trained, each clipped in L2 to C:
    sensitivity C. The other factor is a constant of the round, so noise enters the update linearly.
differs: the paper lets everyone take part in every round and sends down the factor that changed;
    here both are sent, so that a client which missed a round is up to date. The first round trains
    B: with B = 0 the gradient of A is 0. Unequal ranks are nested columns, each averaged over those
        who own it.
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
    what="odd rounds train B with A frozen, even rounds A with B frozen",
    source="Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA, "
           "NeurIPS 2025, arXiv 2502.01755",
    up="4 sum r_k M, then 4 sum r_k N, in turn",
    down="4 sum r_k (M + N)",
    privacy="sum of changes of the trained factor, each clipped to C; sensitivity C; noise enters "
            "linearly",
    differs="both factors are sent down, so that a client may miss a round; unequal ranks are "
            "nested columns",
    unequal_ranks=True,
    exact="at equal ranks",
    private=True,
    secure=True,
)


class Config(AveragingConfig):
    """``[algorithm] name = "rolora"``."""


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    theta = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds))
    return State(0, theta | start(config, theta))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send both factors, average the one of this round."""
    return mixed_round(config, context, state, cohort, server, _part(cohort.round))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps on one factor; the share is its change."""
    part = _part(requests[0].round)
    done = client_update.train(
        requests, sites, context, learner, lambda request,
        _: lora.from_tensors(request.tensors, context.alpha, context.rank), part)
    return client_update.changes(sites, done, part)


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors."""
    return lora.from_tensors(trained(state), context.alpha, context.rank)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, name, _part(round)), client_update.factor_bytes(
        context, name)


def _part(round: int) -> Trainable:
    """The factor that a round trains; rounds are counted from 1."""
    return Trainable.B if round % 2 else Trainable.A
