"""FLoRA: the clients' factors stacked, so that the product of the stacks is the mean of the
products; folded into the base.

what: A = [p_1 s_1 A_1; ...; p_K s_K A_K], B = [B_1, ..., B_K], W0 <- W0 + B A; every round begins
with fresh adapters.
source: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations", NeurIPS 2024, arXiv 2409.05976.
travels: up 4 · sum over layers r_k (M + N) bytes; down nothing in the first round, then 4 · sum
    (sum_j r_j) (M + N), j all sites of the round before, proxies among them; 4 · sum M N for a
    client that missed a round.
privacy: refused under client-level privacy: a stack shows every client's factors. Nearest: 'ffa',
exact as well.
differs: the scale s_k = alpha / r_k is folded into A, so any ranks may meet; a client that missed a
    round is sent the whole update. Fresh adapters are drawn from the run's seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import base_folding, client_update
from aulait.methods.shared.per_client import Singles
from aulait.methods.shared.weighted_mean import MixtureConfig
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="factors stacked and folded into the base, fresh adapters in every round",
    source="Wang et al., FLoRA, NeurIPS 2024, arXiv 2409.05976",
    up="4 sum r_k (M + N)",
    down="4 sum (sum_j r_j) (M + N) after the first round",
    privacy="refused: a stack shows every client's factors",
    differs="any scales may meet; a client that missed a round is sent the whole update",
    unequal_ranks=True,
    exact="yes",
    private=False,
    secure=False,
    instead="ffa",
)


class Config(MixtureConfig):
    """``[algorithm] name = "flora"``."""


def init(config: Config, context: RunContext) -> State:
    """Nothing folded yet."""
    return State(0, {})


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the last stack, ask for trained factors, stack them."""
    requests = [TrainRequest(name, cohort.round, base_folding.sent(state, name), {"lr": cohort.lr})
              for name in cohort.everyone]
    shape = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds))
    expected_shapes = {request.client: lora.leading(shape, context.rank_of(request.client))
                       for request in requests}
    singles = Singles(config, cohort, server, requests, expected_shapes, "flora",
                      TRAITS.instead)
    terms = [(weight, lora.from_tensors(update.tensors, context.alpha)) for weight,
             update in singles]
    stack = {layer: (torch.zeros(1, n), torch.zeros(m, 1)) for layer,
             (m, n) in context.shapes.items()}
    if singles.total > 0:
        for layer in context.shapes:
            a = torch.cat([weight / singles.total * term.scale(layer) * term.factors[layer][0]
                           for weight, term in terms])
            stack[layer] = (a, torch.cat([term.factors[layer][1] for _, term in terms], dim=1))
    norm = lora.norm(Adapter(stack, 1.0, 1))
    return State(cohort.round, base_folding.folded(state, stack, singles.clients)), singles.told(
        update_norm=norm)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Fold what was sent, train a fresh adapter on it; the share is A and B."""
    wholes: list[object] = [whole or None for whole in base_folding.received(requests, sites)]
    done = client_update.train(requests, sites, context, learner, lambda request,
                               site: _fresh(context, request.round, site.name), Trainable.AB, fold=wholes)
    return [client_update.update(site, lora.to_tensors(after.adapter), after) for site,
            (_, after) in zip(sites, done, strict=True)]


def result(context: RunContext, state: State) -> Adapter:
    """All that was folded."""
    return base_folding.as_adapter(context, state)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client that took part in the round before."""
    stacked = {layer: sum(context.rank_of(site)(layer) for site in sites)
               for layer in context.shapes}
    return client_update.factor_bytes(context, name), base_folding.stack_bytes(context, round,
        stacked)


def _fresh(context: RunContext, round: int, name: str) -> Adapter:
    """A random, B zero, at the client's ranks; a draw of its own for every client and round."""
    seeds = Seeds(context.seeds.integer("flora", round, name))
    first = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha, seeds))
    return lora.from_tensors(lora.leading(first, context.rank_of(name)), context.alpha)
