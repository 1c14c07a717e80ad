"""FedSA-LoRA: A and B are trained, only A is shared; every client keeps a B of its own.

A learns what clients have in common, B stays at its client and is no part of what is released; a
personal adapter is as sensitive as the client's text. The reference code lets all simulated clients
write one B. The shared result is the averaged A with B = 0, which predicts as the base does: what
counts are the personal adapters.

what: A is averaged, B stays with its client
source: Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, ICLR 2025,
    arXiv 2410.01463
travels: up 4 sum r_k N; down 4 sum r_k N
privacy: sum of changes of A, each clipped to C; sensitivity C; B never leaves its site. Records:
    DP-SGD of both factors at the site
differs: every site has a B of its own also in a simulation; unequal ranks are nested columns
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import initial_state
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(personal=True, units=("client", "record"),
    placed=True))


class FedSAConfig(AveragingConfig):
    """``[algorithm] name = "fedsa"``."""


Config = FedSAConfig


def init(config: FedSAConfig, context: RunContext) -> State:
    """A random."""
    return initial_state(config, lora.to_tensors(context.initial(), Trainable.A))


def step(config: FedSAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send A, average what comes back."""
    return mixed_round(config, context, state, cohort, server)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps from the sent A and the site's own B; the update is the change of A, and B is
    remembered."""
    def start(request: TrainRequest, site: Site) -> Adapter:
        own = client_update.recall(site, request.round)
        return _joined(context, site.name, request.tensors, own)

    training = client_update.local_training(requests, sites, context, start)
    done = client_update.train(requests, training, learner)
    for request, site, (_, after) in zip(requests, sites, done, strict=True):
        client_update.keep(site, request.round, lora.to_tensors(after.adapter, Trainable.B))
    return client_update.changes(sites, done, Trainable.A)


def result(context: RunContext, state: State) -> Adapter:
    """The averaged A, with B zero: the base."""
    return _joined(context, "", state.factors, {})


def personal(config: FedSAConfig, context: RunContext, state: State, sites: Sequence[Site],
             learner: Learner, final: bool) -> dict[str, Adapter]:
    """The averaged A with each client's own B."""
    return {site.name: _joined(context, site.name, context.leading(state.factors, site.name),
                               client_update.recall(site, state.round + 1))
            for site in sites}


def travels(config: FedSAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    own = client_update.factor_bytes(context, client, Trainable.A)
    return own, own


def _joined(context: RunContext, name: str, shared: Tensors, own: Tensors) -> Adapter:
    """A from the server, B from memory; a B that never was is zero."""
    rank = context.rank_of(name)
    zero = {str(FactorName(layer, Factor.B)): torch.zeros(m, rank(layer))
            for layer, (m, _) in context.shapes.items()}
    return context.adapter(shared | zero | own)
