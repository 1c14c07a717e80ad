"""FFA-LoRA: A is one random matrix that everybody knows and nobody trains; B is trained and
averaged.

what: only B travels; the mean of the updates is exactly the update of the mean.
source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv
2403.12313.
travels: up and down 4 · sum over layers r_k M bytes a client and round; A follows from the run's
seed and never travels.
privacy: the sum over clients of the change of all B together, each clipped in L2 to C: sensitivity
    C. Noise enters the update linearly and in half the coordinates of FedIT.
differs: none in the method at equal ranks; unequal ranks are nested columns, each averaged over
    those who own it. Server optimisers and the weight of local against proxied clients are ours.
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
    what="A is frozen and shared, only B is trained and averaged",
    source="Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, arXiv "
           "2403.12313",
    up="4 sum r_k M",
    down="4 sum r_k M",
    privacy="sum of changes of B, each clipped to C; sensitivity C; noise enters linearly",
    differs="none at equal ranks; unequal ranks are nested columns",
    unequal_ranks=True,
    exact="at equal ranks",
    private=True,
    secure=True,
    trains=Trainable.B,
)


class Config(AveragingConfig):
    """``[algorithm] name = "ffa"``."""


def init(config: Config, context: RunContext) -> State:
    """B starts at zero."""
    theta = lora.to_tensors(_frozen(context), Trainable.B)
    return State(0, theta | start(config, theta))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send B, average what comes back."""
    return mixed_round(config, context, state, cohort, server)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps on B alone; the share is the change of B."""
    frozen = lora.to_tensors(_frozen(context), Trainable.A)

    def begin(request: TrainRequest, site: Site) -> Adapter:
        own = lora.leading(frozen, context.rank_of(site.name))
        return lora.from_tensors(own | request.tensors, context.alpha, context.rank)

    done = client_update.train(requests, sites, context, learner, begin, Trainable.B)
    return client_update.changes(sites, done, Trainable.B)


def result(context: RunContext, state: State) -> Adapter:
    """The shared A with the averaged B."""
    return lora.with_tensors(_frozen(context), trained(state))


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, name, Trainable.B), client_update.factor_bytes(
        context, name, Trainable.B)


def _frozen(context: RunContext) -> Adapter:
    """The shared A, from the run's seed."""
    return lora.initial(context.shapes, context.rank, context.alpha, context.seeds)
