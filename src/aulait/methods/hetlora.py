"""HetLoRA: unequal ranks by zero padding, weights by the norm of the update, and clients that prune
themselves.

A = sum p_k pad(A_k), B = sum p_k pad(B_k) with p_k = S_k / sum S_j, S_k = ||B_k A_k||_F over all
layers together, with their scale. A client's loss holds lambda · sum over layers ||B[:, t:]||_F
||A[t:, :]||_F, t = floor(gamma r), and where that tail has shrunk during its steps the client goes
on with rank max(r_min, floor(gamma r)). The tail of rank r is one column for r <= 100 at gamma =
0.99, so each pruning removes one rank. All clients work at the scale alpha / R; in the formulas r_k
is the client's rank at that time.

Weights that depend on the norm of the update have no useful sensitivity, so client-level privacy is
refused; the unequal ranks of 'fedit' are nested columns with public weights.

what: zero padding, weights by the norm of the update, regularised tails, clients prune their own
    rank
source: Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models,
    EMNLP 2024, arXiv 2401.06432
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: refused: weights depend on the norms of single updates
differs: one norm over all layers; pruning by layer is ours
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.per_client import SingleReading, SingleUpdates
from aulait.methods.shared.server_optimizer import initial_state, server_step
from aulait.methods.shared.weighted_mean import AveragingConfig, factor_requests
from aulait.privacy import clipping
from aulait.training.trainer import Learner, Penalty

TRAITS = described(__name__, __doc__, Abilities(private=False, secure=False, instead="fedit"))


class HetLoRAConfig(AveragingConfig):
    """``[algorithm] name = "hetlora"``.

    Attributes:
        tail: lambda, the weight of the tail in a client's loss; 0 for none.
        keep: gamma in (0, 1), the part of the rank before the tail.
        rank_min: no client prunes itself below.
        prune: whether clients prune themselves.
        prune_by: "client" compares the tails of all layers together and shortens every layer, as
            the paper; "layer" compares and shortens each layer by itself.
    """

    tail: float = Field(1e-3, ge=0)
    keep: float = Field(0.99, gt=0, lt=1)
    rank_min: int = Field(1, ge=1)
    prune: bool = True
    prune_by: Literal["client", "layer"] = "client"


Config = HetLoRAConfig


def init(config: HetLoRAConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return initial_state(config, lora.to_tensors(context.initial()))


def step(config: HetLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send leading ranks, weigh what comes back by its norm, note who pruned itself."""
    theta = state.factors
    settings = {"lr": cohort.lr, "tail": config.tail, "keep": config.keep,
                "rank_min": config.rank_min, "prune": config.prune, "prune_by": config.prune_by}
    sent = []
    for request in factor_requests(context, cohort, theta):
        rank = ranks(config, context, state, request.client)
        own = lora.leading(request.tensors, rank.__getitem__)
        sent.append(TrainRequest(request.client, request.round, own, settings))
    shapes = {request.client: request.tensors for request in sent}
    pruned_shapes = {
        name: lora.leading(own, _pruned(config, own).__getitem__) for name, own in shapes.items()
    } if config.prune and config.prune_by == "client" else shapes
    updates = SingleUpdates(config, cohort, server, sent, SingleReading(
        "hetlora", TRAITS.instead, shapes, pruned_shapes))
    total = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in theta.items()}
    norms, pruned = 0.0, lora.under("pruned", state.tensors)
    for weight, update in updates:
        strength = weight * lora.norm(context.adapter(update.tensors))
        norms += strength
        for name, value in lora.placed(update.tensors, theta).items():
            total[name] += strength * value.double()
        fewer = _shortened(config, update.tensors, shapes[update.client])
        if bool(fewer.any()):
            pruned[update.client] = pruned.get(update.client, torch.zeros(1)) + fewer
    mean = {name: (value / norms).float() - theta[name] if norms else torch.zeros_like(theta[name])
            for name, value in total.items()}
    after = server_step(config, state, mean) | lora.tagged("pruned", pruned)
    return State(cohort.round, after), updates.metrics(clipping.norm(mean), pruned=len(pruned))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps with the tail in the loss; the update is A and B, shortened where the tail has
    shrunk."""
    settings = requests[0].settings
    keep = settings["keep"]
    penalty = Penalty(tail=settings["tail"], keep=keep) if settings["tail"] else None
    training = [replace(own, penalty=penalty) for own in client_update.local_training(
        requests, sites, context, client_update.sent_factors(context))]
    config = HetLoRAConfig(keep=keep, rank_min=settings["rank_min"])
    updates = []
    for site, (before, after) in zip(
            sites, client_update.train(requests, training, learner), strict=True):
        own = lora.to_tensors(after.adapter)
        tails, first = _tails(after.adapter, keep), _tails(before, keep)
        if settings["prune"] and settings["prune_by"] == "layer":
            shorter = _pruned(config, own) | {
                layer: context.rank for layer, tail in tails.items() if tail >= first[layer]}
            own = lora.placed(lora.leading(own, shorter.__getitem__), own)
        elif settings["prune"] and sum(tails.values()) < sum(first.values()):
            own = lora.leading(own, _pruned(config, own).__getitem__)
        updates.append(client_update.update_of(site, own, after))
    return updates


def result(context: RunContext, state: State) -> Adapter:
    """The merged factors."""
    return context.adapter(state.factors)


def travels(config: HetLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client before any pruning: an upper bound."""
    return client_update.factor_bytes(context, client), client_update.factor_bytes(context, client)


def ranks(config: HetLoRAConfig, context: RunContext, state: State, name: str) -> dict[str, int]:
    """Layer -> the rank a client has left."""
    layers = sorted(context.shapes)
    times = state.tensors.get(f"pruned/{name}", torch.zeros(1)).expand(len(layers))
    left = {}
    for layer, count in zip(layers, times.tolist(), strict=True):
        left[layer] = context.rank_of(name)(layer)
        for _ in range(int(count)):
            left[layer] = _shorter(config, left[layer])
    return left


def _shorter(config: HetLoRAConfig, rank: int) -> int:
    return min(rank, max(config.rank_min, int(config.keep * rank)))


def _pruned(config: HetLoRAConfig, factors: Tensors) -> dict[str, int]:
    """Layer -> rank after one pruning."""
    return {layer: _shorter(config, a_RN.shape[0])
            for layer, (a_RN, _) in lora.from_tensors(factors, 1.0).factors.items()}


def _shortened(config: HetLoRAConfig, tensors: Tensors, sent: Tensors) -> torch.Tensor:
    """How often a client has shortened itself in this round, by layer in the order of names, or one
    number for all: by the shapes it sent; where each layer goes by itself, by tails of zeros, which
    it sends once."""
    if config.prune_by == "client":
        return torch.tensor([float(any(tensors[name].shape != sent[name].shape for name in sent))])
    found = []
    for layer, (a_RN, b_MR) in lora.from_tensors(tensors, 1.0).factors.items():
        first = _pruned(config, sent)[layer]
        gone = first < len(a_RN) and not bool(a_RN[first:].any()) and not bool(
            b_MR[:, first:].any())
        found.append(float(config.prune and gone))
    return torch.tensor(found)


def _tails(adapter: Adapter, keep: float) -> dict[str, float]:
    """Layer -> ||B[:, t:]|| · ||A[t:, :]||, t = floor(gamma r)."""
    found = {}
    for layer, (a_RN, b_MR) in sorted(adapter.factors.items()):
        first = int(keep * a_RN.shape[0])
        found[layer] = float(a_RN[first:].norm() * b_MR[:, first:].norm())
    return found
