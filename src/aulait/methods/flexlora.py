"""FlexLoRA: mean of the dense updates, one SVD, and to every client the best approximation at its
own rank.

what: G = sum p_k (alpha / r_k) B_k A_k, G = U S V^T; client k is sent A = V[:, :r_k]^T, B = U[:,
:r_k] S[:r_k] (r_k / alpha).
source: Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
    Client Resources", NeurIPS 2024, arXiv 2402.11505; rank-partitioned weights after raFLoRA, arXiv
    2602.13486, in our reading of its abstract.
travels: up and down 4 · sum over layers r_k (M + N) bytes a client and round.
privacy: the sum over clients of the change of the factors they were sent, all A and B together at
    the common scale alpha / R, each clipped in L2 to C: sensitivity C; the SVD afterwards is
    post-processing. So the noised merge is the mean of factors in the basis of the last SVD, not
    the mean of products. privacy_noise = "product" sums the dense changes instead, each clipped to
    C: sensitivity C, and noise in M N coordinates a layer; worse in the one run measured
        (docs/decisions/0007).
differs: the reference code never trains at unequal ranks and takes the full SVD of the dense sum
    and rebuilds the factors for every client of the population; here the SVD is factored where that
    is cheaper, and only asked clients get factors. mass = "symmetric" and partition are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.per_client import Singles
from aulait.methods.shared.weighted_mean import MixtureConfig, alive, mixed_mean, trained
from aulait.models.low_rank import Merge
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="dense updates averaged, then the best approximation at every client's rank by SVD",
    source="Bai et al., Federated Fine-tuning of LLMs under Heterogeneous Tasks and Client "
           "Resources, NeurIPS 2024, arXiv 2402.11505",
    up="4 sum r_k (M + N)",
    down="4 sum r_k (M + N)",
    privacy="sum of changes of the factors, each clipped to C; sensitivity C; the SVD is "
            "post-processing",
    differs="exact factored SVD, once a layer; under privacy the mean of factors in the SVD's basis",
    unequal_ranks=True,
    exact="yes",
    private=True,
    secure=False,
)


class Config(MixtureConfig):
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


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds)))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send every rank its best approximation, merge what comes back, decompose again."""
    theta = trained(state)
    sent = {name: _at_rank(context, name, theta) for name in cohort.everyone}
    requests = [TrainRequest(name, cohort.round, tensors, {"lr": cohort.lr}) for name,
              tensors in sent.items()]
    if server.aggregator.private:
        return _private(config, context, state, cohort, server, requests, sent)
    singles = Singles(config, cohort, server, requests, sent, "flexlora", "fedit")
    merge = Merge(context.shapes, planned_ranks=lambda layer: sum(context.rank_of(name)(layer)
        for name in sent))
    trained_at = ((weight, _adapter(context, sent[update.client], update.tensors)) for weight,
                  update in singles)
    for weight, adapter in _by_column(context, theta,
            list(trained_at)) if config.partition else trained_at:
        merge.add(weight, adapter)
    if singles.total == 0:
        return State(cohort.round, state.tensors), singles.told(update_norm=0.0)
    after = _decomposed(config, context, merge, 1.0 if config.partition else singles.total)
    return State(cohort.round,
        after), singles.told(update_norm=lora.norm(lora.from_tensors(after, context.alpha)))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local LoRA steps at the site's own rank and scale; the share is the change of A and B."""
    done = client_update.train(requests, sites, context, learner, lambda request,
                               _: lora.from_tensors(request.tensors, context.alpha), Trainable.AB)
    return client_update.changes(sites, done, Trainable.AB)


def result(context: RunContext, state: State) -> Adapter:
    """The merged update at the largest rank."""
    return lora.from_tensors(trained(state), context.alpha)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, name), client_update.factor_bytes(context, name)


def _at_rank(context: RunContext, name: str, theta: Tensors) -> Tensors:
    """The leading factors, with B at the client's scale alpha / r instead of alpha / R."""
    rank = context.rank_of(name)
    own = lora.leading(theta, rank)
    return lora.changed_b(own, lambda layer, b_MR: b_MR * (rank(layer) / context.rank))


def _adapter(context: RunContext, sent: Tensors, change: Tensors) -> Adapter:
    """What a site was sent and how that changed, at the site's scale."""
    return lora.from_tensors({key: sent[key] + change[key] for key in sent}, context.alpha)


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
        factors = {layer: (a, b / weights[layer][: a.shape[0]]) for layer,
                   (a, b) in adapter.factors.items()}
        yield weight, Adapter(factors, adapter.alpha, adapter.rank)
    rest = {}
    for layer, weight_R in weights.items():
        if len(weight_R) < context.rank:
            a_RN, b_MR = lora.factors_of(theta, layer)
            rest[layer] = (a_RN[len(weight_R) :], b_MR[:, len(weight_R) :])
    yield 1.0, Adapter(rest, context.alpha, context.rank)


def _decomposed(config: Config, context: RunContext, merge: Merge, total: float) -> Tensors:
    """The best rank-R factors of the merged sum over its total weight."""
    factors = lora.to_tensors(merge.truncated(context.rank, context.alpha, config.mass))
    return alive(context, lora.changed_b(factors, lambda _, b_MR: b_MR / total), context.rank)


def _private(
    config: Config, context: RunContext, state: State, cohort: Cohort, server: Server,
    requests: Sequence[TrainRequest],
    sent: Mapping[str, Tensors]
) -> tuple[State, Info]:
    """One noised sum instead of single updates; what follows it is post-processing."""
    theta = trained(state)
    merge = Merge(context.shapes)
    if config.privacy_noise == "factors":
        # B at the scale alpha / R, so that columns of all sites can be added
        def common(update: ClientUpdate) -> Tensors:
            rank = context.rank_of(update.client)
            return lora.placed(lora.changed_b(
                update.tensors, lambda layer, b_MR: b_MR * (context.rank / rank(layer))), theta)

        mean_update, info = mixed_mean(config, context, cohort, server, requests, theta,
            transform=common)
        merge.add(1.0, lora.from_tensors({key: theta[key] + mean_update[key] for key in theta},
            context.alpha))
    else:
        def moved(update: ClientUpdate) -> Tensors:
            before = lora.dense(lora.from_tensors(sent[update.client], context.alpha))
            after = lora.dense(_adapter(context, sent[update.client], update.tensors))
            return {f"{layer}.W": after[layer] - before[layer] for layer in after}

        template = {f"{layer}.W": torch.empty(shape) for layer, shape in context.shapes.items()}
        mean_update, info = mixed_mean(config, context, cohort, server, requests, theta,
            template=template,
                                  transform=moved)
        merge.add(1.0, lora.from_tensors(theta, context.alpha))
        for layer, (_, n) in context.shapes.items():
            merge.layers[layer].add(1.0, torch.eye(n), mean_update[f"{layer}.W"])
    return State(cohort.round, _decomposed(config, context, merge, 1.0)), info
