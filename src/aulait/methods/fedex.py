"""FedEx-LoRA: FedIT's factors, and what they miss of the mean of the products goes into the base.

what: A = mean A_k, B = mean B_k, W0 <- W0 + s (mean(B_k A_k) - B A); clients go on from A and B on
the new base.
source: Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient
    Fine-Tuning of Foundation Models", ACL 2025, arXiv 2410.09432.
travels: up 4 · sum over layers r_k (M + N) bytes; down the same, and after the first round the
    residual as factors, 4 · sum (sum_j r_j + R) (M + N), j all sites of the round before; 4 · sum M
    N in its place for a client that missed one.
privacy: refused under client-level privacy: the residual needs the mean of single products (noise
    on products was measured with FlexLoRA, docs/decisions/0007). Nearest: 'ffa', exact as well, or
    'fedit'.
differs: the server keeps the total update G; a client's base holds G less the product it is sent, s
    B A at its ranks, which is the paper's residual at equal ranks and stays exact at unequal ones.
    The reference code transposes the residual, right for GPT-2 only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import base_folding, client_update
from aulait.methods.shared.per_client import FactorMean, Singles
from aulait.methods.shared.weighted_mean import MixtureConfig, requests
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="A and B averaged, the residual of the products folded into the base",
    source="Singhal, Ponkshe, Vepakomma, FedEx-LoRA, ACL 2025, arXiv 2410.09432",
    up="4 sum r_k (M + N)",
    down="4 sum r_k (M + N), then 4 sum (sum_j r_j + R + r_k) (M + N)",
    privacy="refused: the residual needs the mean of single products",
    differs="the residual travels as factors and is exact at unequal ranks",
    unequal_ranks=True,
    exact="yes",
    private=False,
    secure=False,
    instead="ffa",
)


class Config(MixtureConfig):
    """``[algorithm] name = "fedex"``."""


def init(config: Config, context: RunContext) -> State:
    """The common start, nothing folded yet."""
    return State(0, lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds)))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send factors and last residual, average the factors, stack the products."""
    theta = lora.untagged(state.tensors)
    factors = requests(context, cohort, theta)
    sent = [TrainRequest(o.client, o.round, o.tensors | base_folding.sent(state, o.client),
                  o.settings) for o in factors]
    expected_shapes = {request.client: request.tensors for request in factors}
    singles = Singles(config, cohort, server, sent, expected_shapes, "fedex",
                      TRAITS.instead)
    mean, terms = FactorMean(theta), []
    for weight, update in singles:
        mean.add(weight, update.tensors)
        terms.append((weight, update))
    after = mean.mean()
    stack = {layer: (torch.zeros(1, n), torch.zeros(m, 1)) for layer,
             (m, n) in context.shapes.items()}
    if singles.total > 0:
        stack = {layer: _moved(context, layer, theta,
            [(w / singles.total, update) for w, update in terms]) for layer in stack}
    norm = lora.norm(Adapter(stack, 1.0, 1))
    return State(cohort.round, after | base_folding.folded(state, stack,
        singles.clients)), singles.told(update_norm=norm)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Fold what was sent, train on from the sent factors; the share is A and B."""
    starts = [lora.from_tensors(_factors(request), context.alpha, context.rank)
              for request in requests]
    rest: dict[tuple[int, ...], Tensors] = {}  # sites of equal G and equal factors share one base
    folds: list[object] = []
    for start, whole in zip(starts, base_folding.received(requests, sites), strict=True):
        key = (id(whole), *(a.shape[0] for a, _ in start.factors.values()))
        if whole and key not in rest:
            rest[key] = lora.subtract(whole, lora.dense(start))
        folds.append(rest.get(key))
    done = client_update.train(
        requests, sites, context, learner, lambda request, _: lora.from_tensors(_factors(request),
            context.alpha, context.rank), Trainable.AB, fold=folds)
    return [client_update.update(site, lora.to_tensors(after.adapter), after) for site,
            (_, after) in zip(sites, done, strict=True)]


def result(context: RunContext, state: State) -> Adapter:
    """The total update."""
    return base_folding.as_adapter(context, state)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client that took part in the round before."""
    stacked = {layer: context.rank + sum(context.rank_of(site)(layer) for site in sites)
               for layer in context.shapes}
    factors = client_update.factor_bytes(context, name)
    return factors, factors + base_folding.stack_bytes(context, round, stacked)


def _factors(request: TrainRequest) -> Tensors:
    return lora.untagged(request.tensors)


def _moved(context: RunContext, layer: str, theta: Tensors,
           terms: Sequence[tuple[float, ClientUpdate]]) -> tuple[torch.Tensor, torch.Tensor]:
    """How the mean product moved, as factors: s sum p_k B_k A_k - s B diag(q) A, q_j the weight of
    those who own column j."""
    scale = context.alpha / context.rank
    a, b = lora.factors_of(theta, layer)
    updates = [(weight, lora.factors_of(update.tensors, layer)) for weight, update in terms]
    owned_R = torch.zeros(context.rank)
    for weight, (own_a, _) in updates:
        owned_R[: own_a.shape[0]] += weight
    stacked_a = [weight * scale * own_a for weight, (own_a, _) in updates]
    stacked_b = [own_b for _, (_, own_b) in updates]
    return torch.cat([*stacked_a, -scale * owned_R[:, None] * a]), torch.cat([*stacked_b, b], dim=1)
