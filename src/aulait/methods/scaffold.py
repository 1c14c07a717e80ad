"""SCAFFOLD on LoRA factors: every local step is corrected by how the client's own steps differ
from everybody's.

The paper keeps a control variate c at the server and c_k at every client, moves a step by
-lr (g - c_k + c), and renews c_k <- c_k - c + (x - y_k) / (K lr) (option II), x the factors sent
and y_k those after K steps. Here v = -K c and v_k = -K c_k are kept: the change of a round per unit
of learning rate, of everybody and of the client. After every step, whoever made it, lr (v - v_k) /
K is added; then v_k <- v_k - v + (y_k - x) / lr. With local SGD and equal K this is the paper's
step to the letter; with AdamW the correction acts on steps, not on gradients.

The server needs nothing beside the changes y_k - x: v <- v + (|S| / N) (mean (y_k - x) / lr - v),
with the public planned part |S| / N of the clients. So only the changes travel up, where the paper
sends as much again, and only they are clipped, summed and noised. v_k never leaves its client, is
as sensitive as its text, and is not clipped. A round in which nothing moved leaves v as it is.

what: local steps corrected by control variates, of the server and of every client
source: Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378
travels: up 4 sum r_k (M + N); down 8 sum r_k (M + N)
privacy: sum of changes of A and B, each clipped to C; sensitivity C; control variates follow from
    the released mean, or stay at their client
differs: control variates per round and learning rate, so that only changes travel up; the
    correction is added to a step, whatever optimiser made it; unequal ranks are nested columns
unequal ranks: yes
exact: no
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
from aulait.methods.shared import client_update
from aulait.methods.shared.averaged_factors import result as result
from aulait.methods.shared.server_optimizer import initial_state
from aulait.methods.shared.weighted_mean import (
    Averaging,
    AveragingConfig,
    RoundOutlet,
    factor_requests,
    merged,
    mixed_parts,
)
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(splits=False))
CONTROL = "control"  # the tag of v


class SCAFFOLDConfig(AveragingConfig):
    """``[algorithm] name = "scaffold"``."""


Config = SCAFFOLDConfig


def init(config: SCAFFOLDConfig, context: RunContext) -> State:
    """The common start: A random, B zero; no control variate yet."""
    theta = lora.to_tensors(context.initial())
    first = initial_state(config, theta)
    zero = {name: torch.zeros_like(value) for name, value in theta.items()}
    return State(0, first.tensors | lora.tagged(CONTROL, zero))


def step(config: SCAFFOLDConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send factors and control variate; average how the factors moved, which moves both."""
    theta, control = state.factors, lora.under(CONTROL, state.tensors)
    sent = [replace(own, tensors=own.tensors | lora.tagged(
        CONTROL, context.leading(control, own.client)))
        for own in factor_requests(context, cohort, theta)]
    mixed = mixed_parts(config, context, cohort, server, Averaging(
        sent, theta, travels=lambda name: travels(config, context, cohort.round, name, ())))
    after, info = merged(config, RoundOutlet(context, state, cohort, server), mixed)
    if any(bool(change.any()) for change in mixed.mean.values()):
        part = min(1.0, cohort.planned / len(cohort.population)) if cohort.population else 1.0
        control = {name: value + part * (mixed.mean[name] / cohort.lr - value)
                   for name, value in control.items()}
    return State(after.round, after.tensors | lora.tagged(CONTROL, control)), info


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Corrected local steps; the update is how A and B moved, and the client's control variate is
    remembered."""
    def start(request: TrainRequest, _: Site) -> Adapter:
        return context.adapter(lora.untagged(request.tensors))

    training = client_update.local_training(requests, sites, context, start)
    shared = [lora.under(CONTROL, request.tensors) for request in requests]
    own = [client_update.recall(site, request.round) or
           {name: torch.zeros_like(value) for name, value in everyone.items()}
           for request, site, everyone in zip(requests, sites, shared, strict=True)]
    training = [replace(work, drift=_drift(everyone, mine, work.lr / work.steps))
                for work, everyone, mine in zip(training, shared, own, strict=True)]
    updates = client_update.changes(sites, client_update.train(requests, training, learner))
    for request, site, update, everyone, mine in zip(
            requests, sites, updates, shared, own, strict=True):
        lr = request.settings["lr"]
        client_update.keep(site, request.round, {
            name: mine[name] - everyone[name] + change / lr
            for name, change in update.tensors.items()})
    return updates


def travels(config: SCAFFOLDConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    own = client_update.factor_bytes(context, client)
    return own, 2 * own


def _drift(everyone: Tensors, mine: Tensors, per_step: float) -> Tensors | None:
    """What is added after every step; None where it is nothing, as in a first round."""
    found = {name: per_step * (value - mine[name]) for name, value in everyone.items()}
    return found if any(bool(value.any()) for value in found.values()) else None
