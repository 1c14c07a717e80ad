"""Dense updates averaged and decomposed, and to every client the best approximation at its own
rank: what FlexLoRA and its relatives share.

Without privacy the sum of the clients' scaled products is decomposed exactly. Under privacy the
changes of the factors that clients were sent are summed at the common scale, and the moved factors
are decomposed: post-processing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.shared import client_update
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.per_client import SingleReading, SingleUpdates
from aulait.methods.shared.weighted_mean import Averaging, mixed_mean, revived
from aulait.models.low_rank import Merge
from aulait.training.trainer import Learner


class SVDConfig(MixtureConfig):
    """Settings of methods that decompose the merge.

    Attributes:
        mass: "B" gives B all singular values and A orthonormal rows; "symmetric" gives their roots
            to both.
    """

    mass: Literal["B", "symmetric"] = "B"


def init(config: SVDConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(context.initial()))


def factor_requests(context: RunContext, state: State, cohort: Cohort) -> list[TrainRequest]:
    """To every site of the cohort the best approximation at its rank."""
    return [TrainRequest(name, cohort.round, _at_rank(context, name, state.factors),
                         {"lr": cohort.lr}) for name in cohort.everyone]


def open_round(config: SVDConfig, context: RunContext, state: State, cohort: Cohort,
               server: Server, partition: bool) -> tuple[State, Info]:
    """A round in which single updates are read: merge what comes back, decompose again.

    Args:
        config: weights, and which factor has the singular values.
        context: ranks of the clients.
        state: the factors.
        cohort: who takes part.
        server: gets the updates.
        partition: divide every column by the weight of those who own it; keeps all updates of a
            round in memory.
    """
    requests = factor_requests(context, state, cohort)
    sent = {request.client: request.tensors for request in requests}
    updates = SingleUpdates(config, cohort, server, requests,
                            SingleReading("flexlora", "fedit", sent))
    merge = Merge(context.shapes, planned_ranks=lambda layer: sum(context.rank_of(name)(layer)
                                                                  for name in sent))
    adapters = ((weight, moved(context, sent[update.client], update.tensors))
                for weight, update in updates)
    terms = _by_column(context, state.factors, list(adapters)) if partition else adapters
    for weight, adapter in terms:
        merge.add(weight, adapter)
    if updates.total == 0:
        return State(cohort.round, state.tensors), updates.metrics(0.0)
    after = decomposed(config, context, merge, 1.0 if partition else updates.total)
    norm = lora.norm(context.own_scale(after))
    return State(cohort.round, after), updates.metrics(norm)


def private_round(config: SVDConfig, context: RunContext, state: State, cohort: Cohort,
                  server: Server) -> tuple[State, Info]:
    """A round with one noised sum of the factors' changes instead of single updates; what follows
    it is post-processing."""
    theta = state.factors

    def at_common_scale(update: ClientUpdate) -> Tensors:
        """B at the scale alpha / R, so that columns of all sites can be added."""
        rank = context.rank_of(update.client)
        scaled = lora.changed_b(
            update.tensors,
            lambda layer, b_MR: b_MR * context.rescaled(context.rank, rank(layer)))
        return lora.placed(scaled, theta)

    mean, metrics = mixed_mean(config, context, cohort, server, Averaging(
        factor_requests(context, state, cohort), theta, transform=at_common_scale))
    merge = Merge(context.shapes)
    merge.add(1.0, context.own_scale({name: theta[name] + mean[name] for name in theta}))
    return State(cohort.round, decomposed(config, context, merge, 1.0)), metrics


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local LoRA steps at the site's own rank and scale; the update is the change of A and B."""
    training = client_update.local_training(
        requests, sites, context,
        lambda request, _: context.own_scale(request.tensors))
    return client_update.changes(sites, client_update.train(requests, training, learner))


def result(context: RunContext, state: State) -> Adapter:
    """The merged update at the largest rank."""
    return context.own_scale(state.factors)


def travels(config: SVDConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, client), client_update.factor_bytes(context, client)


def moved(context: RunContext, sent: Tensors, change: Tensors) -> Adapter:
    """What a site was sent and how that changed, at the site's scale."""
    return context.own_scale({key: sent[key] + change[key] for key in sent})


def decomposed(config: SVDConfig, context: RunContext, merge: Merge, total: float) -> Tensors:
    """The best rank-R factors of the merged sum over its total weight."""
    factors = lora.to_tensors(merge.truncated(context.rank, context.alpha, config.mass,
                                                context.scaling))
    return revived(context, lora.changed_b(factors, lambda _, b_MR: b_MR / total), context.rank)


def _at_rank(context: RunContext, name: str, theta: Tensors) -> Tensors:
    """The leading factors, with B at the client's scale alpha / r instead of alpha / R."""
    rank = context.rank_of(name)
    own = context.leading(theta, name)
    return lora.changed_b(
        own, lambda layer, b_MR: b_MR * context.rescaled(rank(layer), context.rank))


def _by_column(context: RunContext, theta: Tensors,
               terms: Sequence[tuple[float, Adapter]]) -> Iterator[tuple[float, Adapter]]:
    """The terms with every column of B divided by the weight of those who own the column; what
    nobody owns stays as it is."""
    weights: dict[str, Tensor] = {}
    for weight, adapter in terms:
        for layer, (a_RN, _) in adapter.factors.items():
            most = (
                max(other.factors[layer][0].shape[0] for _, other in terms) if layer not in weights
                else 0
            )
            weights.setdefault(layer, torch.zeros(most))[: a_RN.shape[0]] += weight
    for weight, adapter in terms:
        factors = {layer: (a, b / weights[layer][: a.shape[0]])
                   for layer, (a, b) in adapter.factors.items()}
        yield weight, adapter.holding(factors)
    rest = {}
    for layer, weight_R in weights.items():
        if len(weight_R) < context.rank:
            a_RN, b_MR = lora.factors_of(theta, layer)
            rest[layer] = (a_RN[len(weight_R) :], b_MR[:, len(weight_R) :])
    yield 1.0, Adapter(rest, context.alpha, context.rank, context.scaling)
