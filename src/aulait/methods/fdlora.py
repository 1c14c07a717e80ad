"""FDLoRA: a personal and a global adapter at every client, inner and outer optimiser, and in the
end both fused.

what: stage 1 (first round) trains every client's personal adapter, their mean starts the global
    one; stage 2: K inner steps from the global adapter, the mean change is the pseudo-gradient of
    an outer Nesterov step, and every H rounds the personal adapter becomes the client's trained
    copy; stage 3 (AdaFusion): A = w1 A_p + w2 A_s, B = w1 B_p + w2 B_s with the w of least loss on
    a few records, by a gradient-free optimiser at the client.
source: Qi et al., "FDLoRA: Personalized Federated Learning of Large Language Model via Dual LoRA
    Tuning", 2024, arXiv 2406.07925, Algorithm 1.
travels: up and down 4 · sum over layers r_k (M + N) bytes a client and round, stage 1 included: its
upload seeds the mean.
privacy: the sum over clients of the change of A and B, each clipped in L2 to C: sensitivity C, in
    every round including the first. The personal adapters and w stay at their sites and are as
    sensitive as the text.
differs: the pseudocode is followed where it contradicts the prose (stage 2 trains the global
    adapter; t % H == 0). Where the paper is silent: outer rate 0.7 and momentum 0.9 of DiLoCo;
    fusion by Nelder-Mead within ±1.5 and L1 weight 0.05 of LoraHub, on training records that are
    kept out of the steps. Unequal ranks are nested columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientRequest, ClientUpdate, Info, Record, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.fusion import best_weights, fused
from aulait.methods.shared.server_optimizer import start
from aulait.methods.shared.weighted_mean import AveragingConfig, mixed_round, trained
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="personal and global adapters, outer Nesterov steps, both fused at the client in the end",
    source="Qi et al., FDLoRA, 2024, arXiv 2406.07925, Algorithm 1",
    up="4 sum r_k (M + N)",
    down="4 sum r_k (M + N)",
    privacy="sum of changes of A and B, each clipped to C; sensitivity C; personal adapters never "
            "leave",
    differs="the pseudocode where it contradicts the prose; DiLoCo's and LoraHub's constants where "
            "it is silent",
    unequal_ranks=True,
    exact="no",
    private=True,
    secure=True,
    personal=True,
    splits=False,
)


class Config(AveragingConfig):
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
    server_lr: float = Field(0.7, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    copy_every: int = Field(5, ge=0)
    personal_steps: int | None = Field(None, ge=1)
    shots: int = Field(5, ge=1)
    fusion_l1: float = Field(0.05, ge=0)
    fusion_bound: float = Field(1.5, gt=0)
    fusion_tries: int = Field(40, ge=4)


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    theta = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds))
    return State(0, theta | start(config, theta))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Round 1 is stage 1 and takes the plain mean (line 7); later rounds take the outer step (lines
    8 to 19)."""
    first = cohort.round == 1
    copies = first or (config.copy_every > 0 and (cohort.round - 1) % config.copy_every == 0)
    told = {"copy": copies, "shots": config.shots, "steps": config.personal_steps if first
            else None}

    def asking(requests: Sequence[ClientRequest]) -> Iterable[ClientUpdate]:
        return server.ask([TrainRequest(o.client, o.round, o.tensors, {**o.settings, **told})
                    for o in requests])

    outer = config.model_copy(update={"server": "plain", "server_lr": 1.0}) if first else config
    return mixed_round(outer, context, state, cohort, replace(server, ask=asking))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Inner steps from the sent adapter; the share is its change, a copy may become the personal
    adapter."""
    told = requests[0].settings
    done = client_update.train(
        requests, sites, context, learner, lambda request,
        _: lora.from_tensors(request.tensors, context.alpha, context.rank), Trainable.AB,
        records=[_parted(site, told["shots"])[0] for site in sites],
        steps=[told["steps"] or site.plan.steps for site in sites])
    for request, site, (_, after) in zip(requests, sites, done, strict=True):
        before = client_update.recall(site, request.round)
        client_update.keep(site, request.round, lora.to_tensors(after.adapter)
                           if told["copy"] or not before else before)
    return client_update.changes(sites, done, Trainable.AB)


def result(context: RunContext, state: State) -> Adapter:
    """The global adapter."""
    return lora.from_tensors(trained(state), context.alpha, context.rank)


def personal(
    config: Config, context: RunContext, state: State, sites: Sequence[Site], learner: Learner,
    final: bool
) -> dict[str, Adapter]:
    """Stage 3 at the end: every client's fusion of personal and global adapter; nothing before
    that."""
    if not final:
        return {}
    found = {}
    for site in sites:
        shared = lora.from_tensors(lora.leading(trained(state), context.rank_of(site.name)),
                                   context.alpha, context.rank)
        kept = client_update.recall(site, state.round + 1)
        own = lora.from_tensors(kept, context.alpha, context.rank) if kept else shared
        shots = _parted(site, config.shots)[1]
        weights = best_weights(learner, own, shared, shots, config.fusion_l1, config.fusion_bound,
                               config.fusion_tries)
        found[site.name] = fused(own, shared, weights)
    return found


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, name), client_update.factor_bytes(context, name)


def _parted(site: Site, shots: int) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """(records for the steps, records for the fusion)."""
    if len(site.train) < 2 * shots:
        return site.train, site.train
    return site.train[:-shots], site.train[-shots:]
