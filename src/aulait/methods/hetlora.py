"""HetLoRA: unequal ranks by zero padding, weights by the norm of the update, and clients that prune
themselves.

what: A = sum p_k pad(A_k), B = sum p_k pad(B_k) with p_k = S_k / sum S_j, S_k = ||B_k A_k||_F; a
    client's loss holds lambda · sum over layers ||B[:, t:]||_F ||A[t:, :]||_F, t = floor(gamma r),
    and where that tail has shrunk during its steps the client goes on with rank max(r_min,
    floor(gamma r)).
source: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
    EMNLP 2024, arXiv 2401.06432.
travels: up and down 4 · sum over layers r_k (M + N) bytes a client and round, r_k the client's rank
at that time.
privacy: refused under client-level privacy: weights that depend on the norm of the update have no
    useful sensitivity. The nearest method is 'fedit', whose unequal ranks are nested columns with
    public weights.
differs: the norm of S_k is taken over all layers together, with their scale. The tail of rank r is
    one column for r <= 100 at gamma = 0.99, so each pruning removes one rank. All clients work at
    the scale alpha / R.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.per_client import Singles
from aulait.methods.shared.server_optimizer import apply, start
from aulait.methods.shared.weighted_mean import AveragingConfig, requests, trained
from aulait.privacy import clipping
from aulait.training.trainer import Learner, Penalty

TRAITS = Traits(
    what="zero padding, weights by the norm of the update, regularised tails, clients prune their "
         "own rank",
    source="Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation "
           "Models, EMNLP 2024, arXiv 2401.06432",
    up="4 sum r_k (M + N)",
    down="4 sum r_k (M + N)",
    privacy="refused: weights depend on the norms of single updates",
    differs="one norm over all layers",
    unequal_ranks=True,
    exact="no",
    private=False,
    secure=False,
    instead="fedit",
)


class Config(AveragingConfig):
    """``[algorithm] name = "hetlora"``.

    Attributes:
        tail: lambda, the weight of the tail in a client's loss; 0 for none.
        keep: gamma in (0, 1), the part of the rank before the tail.
        rank_min: no client prunes itself below.
        prune: whether clients prune themselves.
    """

    tail: float = Field(1e-3, ge=0)
    keep: float = Field(0.99, gt=0, lt=1)
    rank_min: int = Field(1, ge=1)
    prune: bool = True


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    theta = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds))
    return State(0, theta | start(config, theta))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send leading ranks, weigh what comes back by its norm, note who pruned itself."""
    theta = trained(state)
    told = {"lr": cohort.lr, "tail": config.tail, "keep": config.keep, "rank_min": config.rank_min,
            "prune": config.prune}
    sent = []
    for request in requests(context, cohort, theta):
        rank = ranks(config, context, state, request.client)
        sent.append(TrainRequest(request.client, request.round,
                          lora.leading(request.tensors, rank.__getitem__), told))
    expected_shapes = {request.client: request.tensors for request in sent}
    pruned = (
        {name: lora.leading(form, _pruned(config, form).__getitem__) for name,
         form in expected_shapes.items()} if config.prune else expected_shapes
    )
    singles = Singles(config, cohort, server, sent, expected_shapes, "hetlora",
                      TRAITS.instead, pruned)
    total = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in theta.items()}
    norms, counts = 0.0, {name: t for name, t in state.tensors.items()
                          if name.startswith("pruned/")}
    for weight, update in singles:
        adapter = lora.from_tensors(update.tensors, context.alpha, context.rank)
        strength = weight * lora.norm(adapter)
        norms += strength
        for name, value in lora.placed(update.tensors, theta).items():
            total[name] += strength * value.double()
        if _smaller(update.tensors, expected_shapes[update.client]):
            counts[f"pruned/{update.client}"] = (
                counts.get(f"pruned/{update.client}", torch.zeros(1)) + 1
            )
    moments = {name: t for name, t in state.tensors.items()
               if "/" in name and not name.startswith("pruned/")}
    mean_update = {name: (t / norms).float() - theta[name] if norms
                   else torch.zeros_like(theta[name])
              for name, t in total.items()}
    after, kept = apply(config, theta, mean_update, moments)
    return State(cohort.round,
        after | kept | counts), singles.told(update_norm=clipping.norm(mean_update),
            pruned=len(counts))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps with the tail in the loss; the share is A and B, shortened where the tail has
    shrunk."""
    told = requests[0].settings
    penalty = Penalty(tail=told["tail"], keep=told["keep"]) if told["tail"] else None
    done = client_update.train(
        requests, sites, context, learner, lambda request,
        _: lora.from_tensors(request.tensors, context.alpha, context.rank), Trainable.AB,
        penalty=penalty)
    config = Config(keep=told["keep"], rank_min=told["rank_min"])
    updates = []
    for site, (before, after) in zip(sites, done, strict=True):
        share = lora.to_tensors(after.adapter)
        if told["prune"] and _tail(share, told["keep"]) < _tail(lora.to_tensors(before),
                told["keep"]):
            share = lora.leading(share, _pruned(config, share).__getitem__)
        updates.append(client_update.update(site, share, after))
    return updates


def result(context: RunContext, state: State) -> Adapter:
    """The merged factors."""
    return lora.from_tensors(trained(state), context.alpha, context.rank)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client before any pruning: an upper bound."""
    return client_update.factor_bytes(context, name), client_update.factor_bytes(context, name)


def ranks(config: Config, context: RunContext, state: State, name: str) -> dict[str, int]:
    """Layer -> the rank a client has left."""
    times = int(state.tensors.get(f"pruned/{name}", torch.zeros(1)))
    left = {layer: context.rank_of(name)(layer) for layer in context.shapes}
    for _ in range(times):
        left = {layer: _shorter(config, rank) for layer, rank in left.items()}
    return left


def _shorter(config: Config, rank: int) -> int:
    return min(rank, max(config.rank_min, int(config.keep * rank)))


def _pruned(config: Config, factors: Tensors) -> dict[str, int]:
    """Layer -> rank after one pruning."""
    return {layer: _shorter(config, a_RN.shape[0])
            for layer, (a_RN, _) in lora.from_tensors(factors, 1.0).factors.items()}


def _smaller(share: Tensors, form: Tensors) -> bool:
    return any(share[name].shape != form[name].shape for name in form)


def _tail(factors: Tensors, keep: float) -> float:
    """sum over layers of ||B[:, t:]|| · ||A[t:, :]||, t = floor(gamma r)."""
    total = 0.0
    for a_RN, b_MR in lora.from_tensors(factors, 1.0).factors.values():
        first = int(keep * a_RN.shape[0])
        total += float(a_RN[first:].norm() * b_MR[:, first:].norm())
    return total
