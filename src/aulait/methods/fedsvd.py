"""FedSVD: FFA-LoRA whose frozen A is made anew by the server, from the SVD of B A after a release.

In a round A is frozen and the same for everyone, B is trained and averaged, as in FFA-LoRA: the
mean is exact and noise enters linearly. Then the server takes B A = U S V^T and goes on with
A = V^T and B = U S, the same product. A's rows are orthonormal from then on and ordered by what the
update uses most, so a step of B counts alike in every direction.

Since B A has its rows in the span of A's rows, so has V^T: the SVD turns A within the space that
the first A spans and never leaves it. What FFA-LoRA cannot express, FedSVD cannot either; it is a
better conditioned way to the same adapters. Where B has lower rank than A, the free rows of A are
completed within that space to orthonormal ones, with B zero.

Moments of a server optimiser would live in columns that are turned every round, so the server is
plain. The decomposition of a noised release is post-processing.

what: B is trained and averaged on a frozen A, which the server renews by the SVD of their product
source: Lee et al., FedSVD, NeurIPS 2025, arXiv 2505.12805
travels: up 4 sum r_k M; down 4 sum r_k (M + N)
privacy: sum of changes of B, each clipped to C; sensitivity C; noise enters linearly, the SVD is
    post-processing. Records: DP-SGD at the site
differs: free rows of A are completed within A's span; uniform weights by default; unequal ranks
    are nested columns, the leading singular values to everyone
unequal ranks: yes
exact: at equal ranks
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.types import ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.averaged_factors import result as result
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    trains=Trainable.B, units=("client", "record")))


class FedSVDConfig(MixtureConfig):
    """``[algorithm] name = "fedsvd"``.

    Attributes:
        svd_every: rounds from one decomposition to the next; 0 for none, which is FFA-LoRA.
    """

    svd_every: int = Field(1, ge=0)


Config = FedSVDConfig


def init(config: FedSVDConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(context.initial()))


def step(config: FedSVDConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send A and B, average how B moved, decompose."""
    averaging = AveragingConfig(local_weight=config.local_weight, weights=config.weights)
    after, info = mixed_round(averaging, context, state, cohort, server, Trainable.B)
    if config.svd_every and cohort.round % config.svd_every == 0:
        after = State(after.round, decomposed(context, after.factors))
    return after, info


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps on B alone; the update is the change of B."""
    training = client_update.local_training(
        requests, sites, context, client_update.sent_factors(context), Trainable.B)
    done = client_update.train(requests, training, learner)
    return client_update.changes(sites, done, Trainable.B)


def travels(config: FedSVDConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return (client_update.factor_bytes(context, client, Trainable.B),
            client_update.factor_bytes(context, client))


def decomposed(context: RunContext, theta: Tensors) -> Tensors:
    """The same products: A with orthonormal rows, B with the singular values; a layer whose B is
    zero stays as it is."""
    after = dict(theta)
    for layer in context.shapes:
        a_RN, b_MR = lora.factors_of(theta, layer)
        if bool(b_MR.any()):
            a, b = _decomposed(a_RN.double(), b_MR.double())
            after[str(FactorName(layer, Factor.A))] = a.float()
            after[str(FactorName(layer, Factor.B))] = b.float()
    return after


def _decomposed(a_RN: Tensor, b_MR: Tensor) -> tuple[Tensor, Tensor]:
    """By two small decompositions: A = L Q with orthonormal Q, B L = U S W^T, so A' = W^T Q."""
    basis_NP, lower_PR = torch.linalg.qr(a_RN.T)
    left, values, right = torch.linalg.svd(b_MR @ lower_PR.T)  # the whole W: free rows too
    sides = right @ basis_NP.T
    sign = 1.0 - 2.0 * (sides.gather(1, sides.abs().argmax(1, keepdim=True)) < 0).double()
    kept = len(values)
    b = torch.zeros(len(b_MR), len(right), dtype=torch.float64)
    b[:, :kept] = left[:, :kept] * values * sign[:kept].T
    return lora.pad(sides * sign, b, len(a_RN))
