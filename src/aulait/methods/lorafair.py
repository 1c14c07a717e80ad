"""LoRA-FAIR: FedIT's factors, with B corrected so that the product comes close to the mean of the
products.

A = mean A_k, B = mean B_k, then B + dB with dB = argmin ||sum p_k B_k A_k - (B + dB) A||^2 +
lambda g ||dB||^2 = (sum p_k B_k A_k A^T - B A A^T)(A A^T + lambda g I)^-1, where g = tr(A A^T) / R
is the mean square of a row of A, so that one lambda means the same for small and large factors. The
paper minimises a cosine dissimilarity by gradient descent; squared error has this closed form,
without any dense matrix. Unequal ranks are nested columns, each averaged over those who own it.

what: A and B averaged, then B corrected towards the mean of the products
source: Bian et al., LoRA-FAIR, ICCV 2025, arXiv 2411.14961
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: refused for clients: the correction needs the sum of single products. Records: DP-SGD at
    the site
differs: squared error in closed form instead of a cosine by gradient descent; lambda is relative to
    the factors
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Factor, FactorName
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.per_client import FactorMean, SingleReading, SingleUpdates
from aulait.methods.shared.weighted_mean import factor_requests
from aulait.models.low_rank import Merge
from aulait.privacy import clipping
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    private=False, secure=False, instead="fedit", units=("record",)))


class LoRAFairConfig(MixtureConfig):
    """``[algorithm] name = "lorafair"``.

    Attributes:
        correction_decay: lambda, the weight of ||dB||^2, relative to the mean square of A's rows.
    """

    correction_decay: float = Field(0.01, gt=0)


Config = LoRAFairConfig


def init(config: LoRAFairConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(context.initial()))


def step(config: LoRAFairConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the factors, average, correct."""
    theta = state.factors
    sent = factor_requests(context, cohort, theta)
    updates = SingleUpdates(config, cohort, server, sent, SingleReading(
        "lorafair", TRAITS.instead, {own.client: own.tensors for own in sent}))
    factors, products = FactorMean(theta), Merge(context.shapes)
    for weight, update in updates:
        factors.add(weight, update.tensors)
        # without the common scale
        products.add(weight, Adapter(lora.from_tensors(update.tensors, 1.0).factors, 1.0, 1))
    if updates.total == 0:
        return State(cohort.round, state.tensors), updates.metrics(0.0)
    mean = factors.mean()
    for layer, product in products.layers.items():
        a_RN, b_MR = (factor.double() for factor in lora.factors_of(mean, layer))
        gram_RR = a_RN @ a_RN.T
        missing_MR = product.times(a_RN.T.float()).double() / updates.total - b_MR @ gram_RR
        # where A is nothing there is nothing to correct
        ridge = config.correction_decay * max(float(gram_RR.diag().mean()), 1e-30)
        ridge_RR = gram_RR + ridge * torch.eye(len(gram_RR), dtype=torch.float64)
        corrected_MR = (b_MR + torch.linalg.solve(ridge_RR, missing_MR.T).T).float()
        mean[str(FactorName(layer, Factor.B))] = corrected_MR
    return State(cohort.round, mean), updates.metrics(clipping.norm(lora.subtract(mean, theta)))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local LoRA steps from the sent factors; the update is A and B."""
    training = client_update.local_training(
        requests, sites, context, client_update.sent_factors(context))
    return client_update.trained_factors(
        sites, client_update.train(requests, training, learner))


def result(context: RunContext, state: State) -> Adapter:
    """The corrected factors."""
    return context.adapter(state.factors)


def travels(config: LoRAFairConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, client), client_update.factor_bytes(context, client)
