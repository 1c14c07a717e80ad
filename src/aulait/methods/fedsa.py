"""FedSA-LoRA: A and B are trained, only A is shared; every client keeps a B of its own.

what: the server averages A, which learns what clients have in common; B stays at its client.
source: Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR
2025, arXiv 2410.01463.
travels: up and down 4 · sum over layers r_k N bytes a client and round; B never travels.
privacy: the sum over clients of the change of A, each clipped in L2 to C: sensitivity C. The
    personal B never leaves its site and is no part of what is released; a personal adapter is as
    sensitive as the client's text.
differs: the reference code lets all simulated clients write one B; here each site has its own. The
    shared result is the averaged A with B = 0, which predicts as the base does: what counts are the
    personal adapters. Unequal ranks are nested columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import start
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round, trained
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="A is averaged, B stays with its client",
    source="Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, ICLR "
           "2025, arXiv 2410.01463",
    up="4 sum r_k N",
    down="4 sum r_k N",
    privacy="sum of changes of A, each clipped to C; sensitivity C; B never leaves its site",
    differs="every site has a B of its own also in a simulation; unequal ranks are nested columns",
    unequal_ranks=True,
    exact="no",
    private=True,
    secure=True,
    personal=True,
)


class Config(AveragingConfig):
    """``[algorithm] name = "fedsa"``."""


def init(config: Config, context: RunContext) -> State:
    """A random."""
    theta = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds), Trainable.A)
    return State(0, theta | start(config, theta))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send A, average what comes back."""
    return mixed_round(config, context, state, cohort, server)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps from the sent A and the site's own B; the share is the change of A, B is
    remembered."""
    done = client_update.train(
        requests, sites, context, learner,
        lambda request, site: _joined(context, site.name, request.tensors,
                                    client_update.recall(site, request.round)), Trainable.AB)
    for request, site, (_, after) in zip(requests, sites, done, strict=True):
        client_update.keep(site, request.round, lora.to_tensors(after.adapter, Trainable.B))
    return client_update.changes(sites, done, Trainable.A)


def result(context: RunContext, state: State) -> Adapter:
    """The averaged A, with B zero: the base."""
    return _joined(context, "", trained(state), {})


def personal(
    config: Config, context: RunContext, state: State, sites: Sequence[Site], learner: Learner,
    final: bool
) -> dict[str, Adapter]:
    """The averaged A with each client's own B."""
    theta = trained(state)
    return {
        site.name: _joined(context, site.name, lora.leading(theta, context.rank_of(site.name)),
                           client_update.recall(site, state.round + 1))
        for site in sites
    }


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, name, Trainable.A), client_update.factor_bytes(
        context, name, Trainable.A)


def _joined(context: RunContext, name: str, shared: Tensors, own: Tensors) -> Adapter:
    """A from the server, B from memory; a B that never was is zero."""
    rank = context.rank_of(name)
    zero = {str(FactorName(layer, Factor.B)): torch.zeros(m, rank(layer))
            for layer, (m, _) in context.shapes.items()}
    return lora.from_tensors(shared | zero | own, context.alpha, context.rank)
