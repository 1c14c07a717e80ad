"""FLoRA: the clients' factors stacked, so that the product of the stacks is the mean of the
products; folded into the base weights.

A = [p_1 s_1 A_1; ...; p_K s_K A_K], B = [B_1, ..., B_K], W0 <- W0 + B A. The scale s_k =
alpha / r_k is folded into A, so any ranks may meet. Every round begins with fresh adapters, drawn
from the run's seed.

Down travel the stacks of all sites j of the round before, proxies among them; a client that missed
a round is sent the whole update, 4 · sum M N bytes. A stack shows every client's factors, so
client-level privacy is refused; 'ffa' is exact as well.

what: factors stacked and folded into the base, fresh adapters in every round
source: Wang et al., FLoRA, NeurIPS 2024, arXiv 2409.05976
travels: up 4 sum r_k (M + N); down 4 sum (sum_j r_j) (M + N) after the first round
privacy: refused for clients: a stack shows every client's factors. Records: DP-SGD at the site
differs: any scales may meet; a client that missed a round is sent the whole update
unequal ranks: yes
exact: yes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import base_folding, client_update
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.per_client import SingleReading, SingleUpdates
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    private=False, secure=False, instead="ffa", units=("record",), folds=True))


class FLoRAConfig(MixtureConfig):
    """``[algorithm] name = "flora"``."""


Config = FLoRAConfig


def init(config: FLoRAConfig, context: RunContext) -> State:
    """Nothing folded yet."""
    return State(0, {})


def step(config: FLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the last merge, ask for trained factors, stack them."""
    sent = [TrainRequest(name, cohort.round, base_folding.merges_for(state, name),
                         {"lr": cohort.lr}) for name in cohort.everyone]
    full = lora.to_tensors(context.initial())
    shapes = {name: context.leading(full, name) for name in cohort.everyone}
    updates = SingleUpdates(config, cohort, server, sent,
                            SingleReading("flora", TRAITS.instead, shapes))
    terms = [(weight, context.own_scale(update.tensors))
             for weight, update in updates]
    merge = {layer: (torch.zeros(1, n), torch.zeros(m, 1))
             for layer, (m, n) in context.shapes.items()}
    if updates.total > 0:
        for layer in context.shapes:
            a_RN = torch.cat([weight / updates.total * own.scale(layer) * own.factors[layer][0]
                              for weight, own in terms])
            b_MR = torch.cat([own.factors[layer][1] for _, own in terms], dim=1)
            merge[layer] = (a_RN, b_MR)
    norm = lora.norm(Adapter(merge, 1.0, 1))
    after = base_folding.after_merge(state, merge, updates.clients)
    return State(cohort.round, after), updates.metrics(norm)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Fold what was sent, train a fresh adapter on it; the update is A and B."""
    wholes = base_folding.dense_updates(requests, sites)
    training = client_update.local_training(
        requests, sites, context,
        lambda request, site: _fresh(context, request.round, site.name))
    training = [replace(own, fold=whole or None)
                for own, whole in zip(training, wholes, strict=True)]
    return client_update.trained_factors(
        sites, client_update.train(requests, training, learner))


def result(context: RunContext, state: State) -> Adapter:
    """All that was folded."""
    return base_folding.as_adapter(context, state)


def travels(config: FLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client that took part in the round before."""
    stacked = {layer: sum(context.rank_of(site)(layer) for site in sites)
               for layer in context.shapes}
    return (client_update.factor_bytes(context, client),
            base_folding.merge_bytes(context, round, stacked))


def _fresh(context: RunContext, round: int, name: str) -> Adapter:
    """A random, B zero, at the client's ranks; a draw of its own for every client and round."""
    seeds = Seeds(context.seeds.integer("flora", round, name))
    first = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha, seeds))
    return context.own_scale(context.leading(first, name))
