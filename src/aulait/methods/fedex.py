"""FedEx-LoRA: FedIT's factors, and what they miss of the mean of the products goes into the base.

A = mean A_k, B = mean B_k, W0 <- W0 + s (mean(B_k A_k) - B A); clients go on from A and B on the
new base. The server keeps the total update G; a client's base holds G less the product it is sent,
s B A at its ranks, which is the paper's residual at equal ranks and stays exact at unequal ones.
The reference code transposes the residual, right for GPT-2 only.

After the first round the residual comes down as factors, of rank sum_j r_j + R over all sites j of
the round before; a client that missed one is sent 4 · sum M N bytes in its place. The mean of
single products is not offered under client-level privacy (noise on products was measured with
FlexLoRA, docs/decisions/0007); 'ffa' is exact as well.

what: A and B averaged, the residual of the products folded into the base
source: Singhal, Ponkshe, Vepakomma, FedEx-LoRA, ACL 2025, arXiv 2410.09432
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N), then 4 sum (sum_j r_j + R + r_k) (M + N)
privacy: refused for clients: the residual needs the mean of single products. Records: DP-SGD at the
    site
differs: the residual travels as factors and is exact at unequal ranks
unequal ranks: yes
exact: yes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import base_folding, client_update
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.per_client import FactorMean, SingleReading, SingleUpdates
from aulait.methods.shared.weighted_mean import factor_requests
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    private=False, secure=False, instead="ffa", units=("record",), folds=True))


class FedExConfig(MixtureConfig):
    """``[algorithm] name = "fedex"``."""


Config = FedExConfig


def init(config: FedExConfig, context: RunContext) -> State:
    """The common start, nothing folded yet."""
    return State(0, lora.to_tensors(context.initial()))


def step(config: FedExConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the factors and the last residual, average the factors, stack the products."""
    theta = state.factors
    factors = factor_requests(context, cohort, theta)
    sent = [replace(own, tensors=own.tensors | base_folding.merges_for(state, own.client))
            for own in factors]
    updates = SingleUpdates(config, cohort, server, sent, SingleReading(
        "fedex", TRAITS.instead, {own.client: own.tensors for own in factors}))
    mean, terms = FactorMean(theta), []
    for weight, update in updates:
        mean.add(weight, update.tensors)
        terms.append((weight, update))
    merge = {layer: (torch.zeros(1, n), torch.zeros(m, 1))
             for layer, (m, n) in context.shapes.items()}
    if updates.total > 0:
        parts = [(weight / updates.total, update) for weight, update in terms]
        merge = {layer: _moved(context, layer, theta, parts) for layer in merge}
    norm = lora.norm(Adapter(merge, 1.0, 1))
    after = mean.mean() | base_folding.after_merge(state, merge, updates.clients)
    return State(cohort.round, after), updates.metrics(norm)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Fold what was sent, train on from the sent factors; the update is A and B."""
    starts = [context.adapter(lora.untagged(request.tensors)) for request in requests]
    rest: dict[tuple[int, ...], Tensors] = {}  # sites of equal G and equal factors share one base
    folds: list[Tensors | None] = []
    wholes = base_folding.dense_updates(requests, sites)
    for start, whole in zip(starts, wholes, strict=True):
        key = (id(whole), *(a.shape[0] for a, _ in start.factors.values()))
        if whole and key not in rest:
            rest[key] = lora.subtract(whole, lora.dense(start))
        folds.append(rest.get(key))
    training = client_update.local_training(
        requests, sites, context,
        lambda request, _: context.adapter(lora.untagged(request.tensors)))
    training = [replace(own, fold=fold) for own, fold in zip(training, folds, strict=True)]
    return client_update.trained_factors(
        sites, client_update.train(requests, training, learner))


def result(context: RunContext, state: State) -> Adapter:
    """The total update."""
    return base_folding.as_adapter(context, state)


def travels(config: FedExConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client that took part in the round before."""
    stacked = {layer: context.rank + sum(context.rank_of(site)(layer) for site in sites)
               for layer in context.shapes}
    factors = client_update.factor_bytes(context, client)
    return factors, factors + base_folding.merge_bytes(context, round, stacked)


def missed_bytes(config: FedExConfig, context: RunContext, round: int, client: str) -> int:
    """Bytes down of a client that missed the round before: the factors, and the whole update."""
    return (client_update.factor_bytes(context, client)
            + base_folding.missed_bytes(config, context, round, client))


def _moved(context: RunContext, layer: str, theta: Tensors,
           terms: Sequence[tuple[float, ClientUpdate]]) -> tuple[torch.Tensor, torch.Tensor]:
    """How the mean product moved, as factors: s sum p_k B_k A_k - s B diag(q) A, q_j the weight of
    those who own column j."""
    scale = context.scale
    a, b = lora.factors_of(theta, layer)
    updates = [(weight, lora.factors_of(update.tensors, layer)) for weight, update in terms]
    owned_R = torch.zeros(context.rank)
    for weight, (own_a, _) in updates:
        owned_R[: own_a.shape[0]] += weight
    stacked_a = [weight * scale * own_a for weight, (own_a, _) in updates]
    stacked_b = [own_b for _, (_, own_b) in updates]
    return torch.cat([*stacked_a, -scale * owned_R[:, None] * a]), torch.cat([*stacked_b, b], dim=1)
