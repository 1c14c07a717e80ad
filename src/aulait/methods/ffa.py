"""FFA-LoRA: A is one random matrix that everybody knows and nobody trains; B is trained and
averaged.

A follows from the run's seed, so only B travels, and the mean of the updates is exactly the update
of the mean. Noise enters the update linearly and in half the coordinates of FedIT. Unequal ranks
are nested columns, each averaged over those who own it. Server optimisers and the weight of local
against proxied clients are ours.

what: A is frozen and shared, only B is trained and averaged
source: Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, arXiv
    2403.12313
travels: up 4 sum r_k M; down 4 sum r_k M
privacy: sum of changes of B, each clipped to C; sensitivity C; noise enters linearly. Records:
    DP-SGD at the site
differs: none at equal ranks; unequal ranks are nested columns
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

TRAITS = described(__name__, __doc__, Abilities(
    trains=Trainable.B, units=("client", "record"), searches=True, steps=True,
    asynchronous=True, placed=True))


class FFAConfig(AveragingConfig):
    """``[algorithm] name = "ffa"``."""


Config = FFAConfig


def init(config: FFAConfig, context: RunContext) -> State:
    """B starts at zero."""
    return initial_state(config, lora.to_tensors(context.initial(), Trainable.B))


def step(config: FFAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send B, average what comes back."""
    return mixed_round(config, context, state, cohort, server)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps on B alone; the update is the change of B."""
    frozen = lora.to_tensors(context.initial(), Trainable.A)

    def start(request: TrainRequest, site: Site) -> Adapter:
        return context.adapter(context.leading(frozen, site.name) | request.tensors)

    training = client_update.local_training(requests, sites, context, start, Trainable.B)
    done = client_update.train(requests, training, learner)
    return client_update.changes(sites, done, Trainable.B)


def result(context: RunContext, state: State) -> Adapter:
    """The shared A with the averaged B."""
    return lora.with_tensors(context.initial(), state.factors)


def travels(config: FFAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    own = client_update.factor_bytes(context, client, Trainable.B)
    return own, own
