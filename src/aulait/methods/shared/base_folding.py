"""Merges that are folded into the base weights: every site holds the same growing dense update G
beside the frozen weights.

The server sends each merge once, as stacked factors, to the sites that followed so far; a site that
missed a round is sent the whole of G. A site remembers G, so every round costs it one stack. In a
simulation the sites share one G in memory: what is equal is stored once.

State names: ``whole/<layer>`` is G (M, N), ``stack/<layer>.A`` and ``.B`` the last merge (float32),
``seen/<client>`` the last round a client answered with a valid update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from aulait.core import lora
from aulait.core.errors import WireError, require
from aulait.core.types import Adapter, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, State
from aulait.methods.shared import client_update

StackedFactors = Mapping[str, tuple[Tensor, Tensor]]  # layer -> (A, B) whose product is the merge


def merges_for(state: State, client: str) -> Tensors:
    """What a client must fold before the next round: nothing at first, the last merge, or the whole
    of G."""
    if state.round == 0:
        return {}
    seen = int(state.tensors.get(f"seen/{client}", torch.zeros(1)))
    tag = "stack" if seen == state.round else "whole"
    return lora.tagged(tag, lora.under(tag, state.tensors))


def after_merge(state: State, merge: StackedFactors, seen: Iterable[str]) -> Tensors:
    """The state's folding part after a merge: G plus the merge, which may leave layers out, and who
    is up to date."""
    after = {name: value for tag in ("seen", "whole")
             for name, value in lora.tagged(tag, lora.under(tag, state.tensors)).items()}
    for layer, (a_RN, b_MR) in merge.items():
        dense_update = b_MR @ a_RN
        before = state.tensors.get(f"whole/{layer}")
        after[f"whole/{layer}"] = dense_update if before is None else before + dense_update
        own = Adapter({layer: (a_RN.contiguous(), b_MR.contiguous())}, 1.0)
        after |= lora.tagged("stack", lora.to_tensors(own))
    return after | {f"seen/{name}": torch.tensor([state.round + 1.0]) for name in seen}


def dense_updates(requests: Sequence[TrainRequest], sites: Sequence[Site]) -> list[Tensors]:
    """G of every site before the round of its request, remembered from now on; equal ones are one
    object.

    Raises:
        WireError: a merge came to a site that does not hold what it adds to.
    """
    made: dict[tuple[int, ...], Tensors] = {}
    found = []
    for request, site in zip(requests, sites, strict=True):
        before = client_update.recall(site, request.round)
        news = {tag: lora.under(tag, request.tensors) for tag in ("whole", "stack")}
        ids = (id(value) for own in news.values() for value in own.values())
        key = (id(before) if before else 0, *ids)
        if key not in made:
            made[key] = _with_news(before, news, request)
        client_update.keep(site, request.round, made[key])
        found.append(made[key])
    return found


def _with_news(before: Tensors, news: Mapping[str, Tensors], request: TrainRequest) -> Tensors:
    """G after what the site was sent: the whole of it, one merge more, or nothing."""
    if news["whole"]:
        return news["whole"]
    if not news["stack"]:
        return before
    require(bool(before) or request.round == 2, WireError,
            f"client '{request.client}' was sent the merge of round {request.round - 1} and has "
            "none before it; send it the whole update")
    merged = lora.dense(lora.from_tensors(news["stack"], 1.0, 1))
    return {**before, **{layer: update + before[layer] if layer in before else update
                         for layer, update in merged.items()}}


def as_adapter(context: RunContext, state: State) -> Adapter:
    """G as an adapter: one factor is G itself, the other the identity of the smaller side."""
    factors = {}
    for layer, (m, n) in context.shapes.items():
        whole = state.tensors.get(f"whole/{layer}")
        dense_update = torch.zeros(m, n) if whole is None else whole
        factors[layer] = (dense_update, torch.eye(m)) if m <= n else (torch.eye(n), dense_update)
    return Adapter(factors, 1.0, 1)


def missed_bytes(config: BaseModel, context: RunContext, round: int, client: str) -> int:
    """Bytes down of a client that missed the round before: the whole of G, 4 · sum M N; nothing in
    the first round."""
    return 0 if round == 1 else 4 * sum(m * n for m, n in context.shapes.values())


def merge_bytes(context: RunContext, round: int, rank: Mapping[str, int]) -> int:
    """4 · sum over layers of R (M + N) for the merge of the round before; nothing in the first
    round."""
    if round == 1:
        return 0
    return 4 * sum(rank[layer] * (m + n) for layer, (m, n) in context.shapes.items())
