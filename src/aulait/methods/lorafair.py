"""LoRA-FAIR: FedIT's factors, with B corrected so that the product comes close to the mean of the
products.

what: A = mean A_k, B = mean B_k, then B + dB with dB = argmin ||sum p_k B_k A_k - (B + dB) A||^2 +
    lambda ||dB||^2 = (sum p_k B_k A_k A^T - B A A^T)(A A^T + lambda I)^-1.
source: Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
    Refinement", ICCV 2025, arXiv 2411.14961.
travels: up and down 4 · sum over layers r_k (M + N) bytes a client and round.
privacy: refused under client-level privacy: the correction needs the sum of single products.
Nearest: 'fedit'.
differs: the paper minimises a cosine dissimilarity by gradient descent; squared error has this
    closed form, without any dense matrix. Unequal ranks are nested columns, each averaged over
    those who own it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.per_client import FactorMean, Singles
from aulait.methods.shared.weighted_mean import MixtureConfig, requests, trained
from aulait.models.low_rank import Merge
from aulait.privacy import clipping
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="A and B averaged, then B corrected towards the mean of the products",
    source="Bian et al., LoRA-FAIR, ICCV 2025, arXiv 2411.14961",
    up="4 sum r_k (M + N)",
    down="4 sum r_k (M + N)",
    privacy="refused: the correction needs the sum of single products",
    differs="squared error in closed form instead of a cosine by gradient descent",
    unequal_ranks=True,
    exact="no",
    private=False,
    secure=False,
    instead="fedit",
)


class Config(MixtureConfig):
    """``[algorithm] name = "lorafair"``.

    Attributes:
        correction_decay: lambda, the weight of ||dB||^2.
    """

    correction_decay: float = Field(0.01, gt=0)


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds)))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the factors, average, correct."""
    theta = trained(state)
    sent = requests(context, cohort, theta)
    expected_shapes = {request.client: request.tensors for request in sent}
    singles = Singles(config, cohort, server, sent, expected_shapes, "lorafair",
                      TRAITS.instead)
    factors, products = FactorMean(theta), Merge(context.shapes)
    for weight, update in singles:
        factors.add(weight, update.tensors)
        # without the common scale
        products.add(weight, Adapter(lora.from_tensors(update.tensors, 1.0).factors, 1.0, 1))
    if singles.total == 0:
        return State(cohort.round, state.tensors), singles.told(update_norm=0.0)
    mean = factors.mean()
    for layer, product in products.layers.items():
        a, b = (factor.double() for factor in lora.factors_of(mean, layer))
        gram = a @ a.T
        missing = product.times(a.T.float()).double() / singles.total - b @ gram
        ridge = gram + config.correction_decay * torch.eye(len(gram), dtype=torch.float64)
        mean[str(FactorName(layer, Factor.B))] = (b + torch.linalg.solve(ridge, missing.T).T).float()
    return State(cohort.round,
                 mean), singles.told(update_norm=clipping.norm(lora.subtract(mean, theta)))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local LoRA steps from the sent factors; the share is A and B."""
    done = client_update.train(
        requests, sites, context, learner, lambda request,
        _: lora.from_tensors(request.tensors, context.alpha, context.rank), Trainable.AB)
    return [client_update.update(site, lora.to_tensors(after.adapter), after) for site,
            (_, after) in zip(sites, done, strict=True)]


def result(context: RunContext, state: State) -> Adapter:
    """The corrected factors."""
    return lora.from_tensors(trained(state), context.alpha, context.rank)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, name), client_update.factor_bytes(context, name)
