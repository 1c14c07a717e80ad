"""FlexLoRA: mean of the dense updates, one SVD, and to every client the best approximation at its
own rank.

G = sum p_k (alpha / r_k) B_k A_k, G = U S V^T; client k is sent A = V[:, :r_k]^T, B = U[:, :r_k]
S[:r_k] (r_k / alpha). The reference code never trains at unequal ranks, takes the full SVD of the
dense sum and rebuilds the factors for every client of the population; here the SVD is factored
where that is cheaper, and only asked clients get factors. mass = "symmetric" is ours; partition =
true is the merge of 'raflora'.

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

from typing import Literal

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import ClientUpdate, Info, Tensors
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import svd_merge
from aulait.methods.shared.svd_merge import answer as answer
from aulait.methods.shared.svd_merge import init as init
from aulait.methods.shared.svd_merge import result as result
from aulait.methods.shared.svd_merge import travels as travels
from aulait.methods.shared.weighted_mean import Averaging, mixed_mean
from aulait.models.low_rank import Merge

TRAITS = described(__name__, __doc__, Abilities(secure=False, units=("client", "record")))


class FlexLoRAConfig(svd_merge.SVDConfig):
    """``[algorithm] name = "flexlora"``.

    Attributes:
        partition: divide every column by the weight of those who own it, as 'raflora' does. Keeps
            all updates of a round in memory.
        privacy_noise: what is summed under privacy: the changes of "factors", or of the dense
            "product".
    """

    partition: bool = False
    privacy_noise: Literal["factors", "product"] = "factors"


Config = FlexLoRAConfig


def step(config: FlexLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send every rank its best approximation, merge what comes back, decompose again."""
    if not server.aggregator.private:
        return svd_merge.open_round(config, context, state, cohort, server, config.partition)
    if config.privacy_noise == "factors":
        return svd_merge.private_round(config, context, state, cohort, server)
    return _product_round(config, context, state, cohort, server)


def noised_numbers(config: FlexLoRAConfig, context: RunContext) -> int:
    """Numbers of a release: of the factors, or of the dense products."""
    if config.privacy_noise == "product":
        return sum(m * n for m, n in context.shapes.values())
    return sum(Trainable.AB.entries(shape, context.rank) for shape in context.shapes.values())


def _product_round(config: FlexLoRAConfig, context: RunContext, state: State, cohort: Cohort,
                   server: Server) -> tuple[State, Info]:
    """One noised sum of the changes of the dense updates."""
    requests, theta = svd_merge.factor_requests(context, state, cohort), state.factors
    sent = {request.client: request.tensors for request in requests}

    def dense_change(update: ClientUpdate) -> Tensors:
        before = lora.dense(context.own_scale(sent[update.client]))
        after = lora.dense(svd_merge.moved(context, sent[update.client], update.tensors))
        return {f"{layer}.W": after[layer] - before[layer] for layer in after}

    template = {f"{layer}.W": torch.empty(shape) for layer, shape in context.shapes.items()}
    mean, metrics = mixed_mean(
        config, context, cohort, server,
        Averaging(requests, theta, template=template, transform=dense_change))
    merge = Merge(context.shapes)
    merge.add(1.0, context.own_scale(theta))
    for layer, (_, n) in context.shapes.items():
        merge.layers[layer].add(1.0, torch.eye(n), mean[f"{layer}.W"])
    return State(cohort.round, svd_merge.decomposed(config, context, merge, 1.0)), metrics
