"""FlexLoRA: mean of the dense updates, one SVD, and to every client the best approximation at its
own rank.

G = sum p_k (alpha / r_k) B_k A_k, G = U S V^T; client k is sent A = V[:, :r_k]^T, B = U[:, :r_k]
S[:r_k] (r_k / alpha). The reference code never trains at unequal ranks, takes the full SVD of the
dense sum and rebuilds the factors for every client of the population; here the SVD is factored
where that is cheaper, and only asked clients get factors. mass = "symmetric" and partition are
ours; partition follows raFLoRA (arXiv 2602.13486) in our reading of its abstract.

Under privacy the changes of the factors that clients were sent are summed, all A and B together at
the common scale alpha / R, each clipped in L2 to C; the SVD afterwards is post-processing. So the
noised merge is the mean of factors in the basis of the last SVD, not the mean of products.
privacy_noise = "product" sums the dense changes instead, each clipped to C: sensitivity C, and
noise in M N coordinates a layer; worse in the one run measured (docs/decisions/0007).

what: dense updates averaged, then the best approximation at every client's rank by SVD
source: Bai et al., Federated Fine-tuning of LLMs under Heterogeneous Tasks and Client Resources,
    NeurIPS 2024, arXiv 2402.11505
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of changes of the factors, each clipped to C; sensitivity C; the SVD is
    post-processing. Records: DP-SGD at the site
differs: exact factored SVD, once a layer; under privacy the mean of factors in the SVD's basis
unequal ranks: yes
exact: yes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.per_client import SingleReading, SingleUpdates
from aulait.methods.shared.weighted_mean import Averaging, mixed_mean, revived
from aulait.models.low_rank import Merge
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(secure=False, units=("client", "record")))


class FlexLoRAConfig(MixtureConfig):
    """``[algorithm] name = "flexlora"``.

    Attributes:
        mass: "B" gives B all singular values and A orthonormal rows; "symmetric" gives their roots
            to both.
        partition: divide every column by the weight of those who own it (raFLoRA), against rank
            collapse: the energy of a column that few own otherwise shrinks in every round. Keeps
            all updates of a round in memory.
        privacy_noise: what is summed under privacy: the changes of "factors", or of the dense
            "product".
    """

    mass: Literal["B", "symmetric"] = "B"
    partition: bool = False
    privacy_noise: Literal["factors", "product"] = "factors"


Config = FlexLoRAConfig


def init(config: FlexLoRAConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(context.initial()))


def step(config: FlexLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send every rank its best approximation, merge what comes back, decompose again."""
    theta = state.factors
    sent = {name: _at_rank(context, name, theta) for name in cohort.everyone}
    requests = [TrainRequest(name, cohort.round, tensors, {"lr": cohort.lr})
                for name, tensors in sent.items()]
    if server.aggregator.private:
        private = _private_factors if config.privacy_noise == "factors" else _private_product
        merge, metrics = private(config, context, theta, cohort, server, requests)
        return State(cohort.round, _decomposed(config, context, merge, 1.0)), metrics
    updates = SingleUpdates(config, cohort, server, requests,
                            SingleReading("flexlora", "fedit", sent))
    merge = Merge(context.shapes, planned_ranks=lambda layer: sum(context.rank_of(name)(layer)
                                                                  for name in sent))
    adapters = ((weight, _adapter(context, sent[update.client], update.tensors))
                for weight, update in updates)
    terms = _by_column(context, theta, list(adapters)) if config.partition else adapters
    for weight, adapter in terms:
        merge.add(weight, adapter)
    if updates.total == 0:
        return State(cohort.round, state.tensors), updates.metrics(0.0)
    after = _decomposed(config, context, merge, 1.0 if config.partition else updates.total)
    norm = lora.norm(context.own_scale(after))
    return State(cohort.round, after), updates.metrics(norm)


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


def noised_numbers(config: FlexLoRAConfig, context: RunContext) -> int:
    """Numbers of a release: of the factors, or of the dense products."""
    if config.privacy_noise == "product":
        return sum(m * n for m, n in context.shapes.values())
    return sum(Trainable.AB.entries(shape, context.rank) for shape in context.shapes.values())


def travels(config: FlexLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, client), client_update.factor_bytes(context, client)


def _at_rank(context: RunContext, name: str, theta: Tensors) -> Tensors:
    """The leading factors, with B at the client's scale alpha / r instead of alpha / R."""
    rank = context.rank_of(name)
    own = context.leading(theta, name)
    return lora.changed_b(
        own, lambda layer, b_MR: b_MR * context.rescaled(rank(layer), context.rank))


def _adapter(context: RunContext, sent: Tensors, change: Tensors) -> Adapter:
    """What a site was sent and how that changed, at the site's scale."""
    return context.own_scale({key: sent[key] + change[key] for key in sent})


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


def _decomposed(config: FlexLoRAConfig, context: RunContext, merge: Merge, total: float) -> Tensors:
    """The best rank-R factors of the merged sum over its total weight."""
    factors = lora.to_tensors(merge.truncated(context.rank, context.alpha, config.mass,
                                                context.scaling))
    return revived(context, lora.changed_b(factors, lambda _, b_MR: b_MR / total), context.rank)


def _private_factors(
    config: FlexLoRAConfig, context: RunContext, theta: Tensors, cohort: Cohort, server: Server,
    requests: Sequence[TrainRequest]
) -> tuple[Merge, Info]:
    """One noised sum of the factors' changes instead of single updates; what follows it is
    post-processing."""
    def at_common_scale(update: ClientUpdate) -> Tensors:
        """B at the scale alpha / R, so that columns of all sites can be added."""
        rank = context.rank_of(update.client)
        scaled = lora.changed_b(
            update.tensors,
            lambda layer, b_MR: b_MR * context.rescaled(context.rank, rank(layer)))
        return lora.placed(scaled, theta)

    mean, metrics = mixed_mean(config, context, cohort, server,
                               Averaging(requests, theta, transform=at_common_scale))
    merge = Merge(context.shapes)
    moved = {name: theta[name] + mean[name] for name in theta}
    merge.add(1.0, context.own_scale(moved))
    return merge, metrics


def _private_product(
    config: FlexLoRAConfig, context: RunContext, theta: Tensors, cohort: Cohort, server: Server,
    requests: Sequence[TrainRequest]
) -> tuple[Merge, Info]:
    """One noised sum of the changes of the dense updates."""
    sent = {request.client: request.tensors for request in requests}

    def dense_change(update: ClientUpdate) -> Tensors:
        before = lora.dense(context.own_scale(sent[update.client]))
        after = lora.dense(_adapter(context, sent[update.client], update.tensors))
        return {f"{layer}.W": after[layer] - before[layer] for layer in after}

    template = {f"{layer}.W": torch.empty(shape) for layer, shape in context.shapes.items()}
    mean, metrics = mixed_mean(
        config, context, cohort, server,
        Averaging(requests, theta, template=template, transform=dense_change))
    merge = Merge(context.shapes)
    merge.add(1.0, context.own_scale(theta))
    for layer, (_, n) in context.shapes.items():
        merge.layers[layer].add(1.0, torch.eye(n), mean[f"{layer}.W"])
    return merge, metrics
