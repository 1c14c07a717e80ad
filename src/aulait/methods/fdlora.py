"""FDLoRA: a personal and a global adapter at every client, inner and outer optimiser, and in the
end both fused.

Stage 1 (the first round) trains every client's personal adapter; their mean starts the global one.
Stage 2: K inner steps from the global adapter, the mean change is the pseudo-gradient of an outer
Nesterov step, and every H rounds the personal adapter becomes the client's trained copy. Stage 3
(AdaFusion): A = w1 A_p + w2 A_s, B = w1 B_p + w2 B_s with the w of least loss on a few records, by
a gradient-free optimiser at the client.

Changes are clipped in every round, the first included, whose upload seeds the mean. The personal
adapters and w stay at their sites and are as sensitive as the text. Where pseudocode and prose of
the paper differ, stage 2 trains the global adapter and copies when t % H == 0. Where the paper is
silent: momentum 0.9 of DiLoCo; fusion by Nelder-Mead within ±1.5 and L1 weight 0.05 of LoraHub, on
training records that are kept out of the steps. Unequal ranks are nested columns.

A steady stream of equal changes d moves the global adapter by server_lr / (1 - momentum) · d a
round. DiLoCo's rate 0.7 makes that 7 d, which suits hundreds of inner steps whose changes hardly
agree; after the few steps of a round here they agree, and 7 d diverges. The default 0.1 makes it d,
plain averaging; with K inner steps, K in the hundreds, raise server_lr towards 0.7.

what: personal and global adapters, outer Nesterov steps, both fused at the client in the end
source: Qi et al., FDLoRA, 2024, arXiv 2406.07925, Algorithm 1
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of changes of A and B, each clipped to C; sensitivity C; personal adapters never leave
differs: the pseudocode where it contradicts the prose; DiLoCo's momentum and LoraHub's constants
    where it is silent; an outer rate for few inner steps
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, ClientUpdate, Info, Record, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.fusion import FusionSearch, best_weights, fused
from aulait.methods.shared.server_optimizer import initial_state
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round, with_settings
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(personal=True, splits=False))


class FDLoRAConfig(AveragingConfig):
    """``[algorithm] name = "fdlora"``.

    Attributes:
        copy_every: H, rounds of stage 2 between two copies to the personal adapter; 0 keeps that of
            stage 1.
        personal_steps: optimiser steps of stage 1; None takes the steps of the client's plan.
        shots: training records kept out of the steps, on which w is chosen; a client with fewer
            than twice as many uses all.
        fusion_l1: weight of the mean of |w1| and |w2| in what is minimised.
        fusion_bound: w1 and w2 lie in ± this.
        fusion_tries: evaluations of the loss, at least 4.
    """

    server: Literal["plain", "momentum", "nesterov", "adagrad", "adam", "adamw",
                    "yogi"] = "nesterov"
    server_lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    copy_every: int = Field(5, ge=0)
    personal_steps: int | None = Field(None, ge=1)
    shots: int = Field(5, ge=1)
    fusion_l1: float = Field(0.05, ge=0)
    fusion_bound: float = Field(1.5, gt=0)
    fusion_tries: int = Field(40, ge=4)


Config = FDLoRAConfig


def init(config: FDLoRAConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return initial_state(config, lora.to_tensors(context.initial()))


def step(config: FDLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Round 1 is stage 1 and takes the plain mean (line 7); later rounds take the outer step (lines
    8 to 19)."""
    first = cohort.round == 1
    copies = first or (config.copy_every > 0 and (cohort.round - 1) % config.copy_every == 0)
    more = {"copy": copies, "shots": config.shots,
            "steps": config.personal_steps if first else None}

    outer = config.model_copy(update={"server": "plain", "server_lr": 1.0}) if first else config
    return mixed_round(outer, context, state, cohort, with_settings(server, more))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Inner steps from the sent adapter; the update is its change, a copy may become the personal
    adapter."""
    settings = requests[0].settings
    training = [
        replace(own, records=_parted(site, settings["shots"])[0],
                steps=settings["steps"] or own.steps)
        for own, site in zip(client_update.local_training(
            requests, sites, context, client_update.sent_factors(context)), sites, strict=True)]
    done = client_update.train(requests, training, learner)
    for request, site, (_, after) in zip(requests, sites, done, strict=True):
        before = client_update.recall(site, request.round)
        copied = settings["copy"] or not before
        client_update.keep(site, request.round,
                           lora.to_tensors(after.adapter) if copied else before)
    return client_update.changes(sites, done)


def result(context: RunContext, state: State) -> Adapter:
    """The global adapter."""
    return context.adapter(state.factors)


def personal(config: FDLoRAConfig, context: RunContext, state: State, sites: Sequence[Site],
             learner: Learner, final: bool) -> dict[str, Adapter]:
    """Stage 3 at the end: every client's fusion of personal and global adapter; nothing before
    that."""
    if not final:
        return {}
    search = FusionSearch(config.fusion_l1, config.fusion_bound, config.fusion_tries)
    found = {}
    for site in sites:
        shared = context.adapter(lora.leading(state.factors, context.rank_of(site.name)))
        kept = client_update.recall(site, state.round + 1)
        own = context.adapter(kept) if kept else shared
        _, shots = _parted(site, config.shots)
        found[site.name] = fused(own, shared, best_weights(learner, own, shared, shots, search))
    return found


def travels(config: FDLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, client), client_update.factor_bytes(context, client)


def _parted(site: Site, shots: int) -> tuple[Sequence[Record], Sequence[Record]]:
    """(records for the steps, records for the fusion)."""
    if len(site.train) < 2 * shots:
        return site.train, site.train
    return site.train[:-shots], site.train[-shots:]
