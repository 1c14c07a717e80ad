"""FedRot-LoRA: every client turns its factors towards the server's before they are averaged.

(B Q)(Q^T A) = B A for every orthogonal Q, so factors that mean the same may look different, and
their mean means less. After its steps a client finds the rotation Q that brings one of its factors
nearest to the one it was sent (orthogonal Procrustes: A_k A_s^T = U S V^T, Q = U V^T; with B
B_k^T B_s), A in odd rounds and B in even ones, goes part of the way, (1 - w) I + w Q brought back
to the nearest rotation, and answers with the turned factors. Its own product does not change. In
the first round nothing is turned: all started from one A, and B was zero.

The rotation follows from the client's own factors and from what everybody was sent, so what is
clipped, summed and noised is still one update of one client.

what: FedIT whose clients turn their factors towards the server's before they are averaged
source: Zhang et al., FedRot-LoRA, ICML 2026, arXiv 2602.23638
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of whole updates, each clipped to C; sensitivity C; a client turns only its own.
    Records: DP-SGD at the site, the turn is post-processing
differs: unequal ranks are nested columns, which a client turns among its own
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Factor
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.averaged_factors import init as init
from aulait.methods.shared.averaged_factors import result as result
from aulait.methods.shared.averaged_factors import travels as travels
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round, with_settings
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(units=("client", "record")))


class FedRotConfig(AveragingConfig):
    """``[algorithm] name = "fedrot"``.

    Attributes:
        rotation: w in [0, 1], how far a client turns: 0 not at all, which is FedIT; 1 all the way.
    """

    rotation: float = Field(0.5, ge=0, le=1)


Config = FedRotConfig


def step(config: FedRotConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """As FedIT, with w in the requests."""
    turning = with_settings(server, {"rotation": config.rotation})
    return mixed_round(config, context, state, cohort, turning)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps from the sent A and B, then the turn; the update is how they moved."""
    training = client_update.local_training(
        requests, sites, context, client_update.sent_factors(context))
    updates = []
    for request, site, (before, after) in zip(
            requests, sites, client_update.train(requests, training, learner), strict=True):
        turned = aligned(after.adapter, before, request.round, request.settings["rotation"])
        moved = lora.subtract(lora.to_tensors(turned), lora.to_tensors(before))
        updates.append(client_update.update_of(site, moved, after))
    return updates


def aligned(adapter: Adapter, towards: Adapter, round: int, weight: float) -> Adapter:
    """The same products, with the factor of this round turned towards another adapter's."""
    if round == 1 or weight == 0:
        return adapter
    factor = Factor.A if round % 2 else Factor.B
    factors = {}
    for layer, (a_RN, b_MR) in adapter.factors.items():
        own, other = (factor.of(pair).double() for pair in (
            (a_RN, b_MR), towards.factors[layer]))
        overlap_RR = own @ other.T if factor is Factor.A else own.T @ other
        turn_RR = _turn(overlap_RR, weight)
        factors[layer] = ((turn_RR.T @ a_RN.double()).float(), (b_MR.double() @ turn_RR).float())
    return adapter.holding(factors)


def _turn(overlap_RR: Tensor, weight: float) -> Tensor:
    """Part of the way to the rotation of largest trace with this overlap; none where it is zero."""
    one_RR = torch.eye(len(overlap_RR), dtype=torch.float64)
    if not bool(overlap_RR.any()):
        return one_RR
    left, _, right = torch.linalg.svd(overlap_RR)
    if torch.linalg.det(left @ right) < 0:  # a reflection is no turn: flip the weakest direction
        right = torch.cat([right[:-1], -right[-1:]])
    mixed_left, _, mixed_right = torch.linalg.svd((1 - weight) * one_RR + weight * left @ right)
    turn_RR: Tensor = mixed_left @ mixed_right
    return turn_RR
