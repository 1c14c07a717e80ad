"""What an order may ask of a site, looked at before the order is obeyed: whose, which stage, which
round, which numbers and shapes.

The limits of the site's file were held against the brief; here the order is held against the brief.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from aulait.core.factors import Factor, FactorName
from aulait.core.lora import Shapes
from aulait.core.types import ClientRequest
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site.policy import SitePolicy
from aulait.methods.contract import server_site

MOST_SETTINGS = 1000
MOST_CANDIDATES = 1_000_000
MOST_RATE = 100.0  # a learning rate above this is no learning rate


def fault(request: ClientRequest, brief: RunTerms, limits: SitePolicy, shapes: Shapes) -> str | None:
    """Why an order is refused, on one line that tells nothing of the site's records; None if it is
    in order."""
    if request.client != brief.client:
        return f"an order for '{request.client}' came to '{brief.client}'"
    if request.stage not in ("synthesis", "train"):
        return f"an order of stage '{request.stage[:40]}' found, expected 'synthesis' or 'train'"
    if request.stage == "synthesis" and not brief.votes:
        return "asked for a vote, and the brief says that this site does not vote"
    alone = brief.placement == "local" or (
        brief.placement == "split" and server_site(brief.method) is not None)
    if request.stage == "train" and not alone:
        return f"asked to train, and the brief says that this site is '{brief.placement}'"
    most = brief.rounds if request.stage == "train" else brief.synthesis_rounds
    if not 1 <= request.round <= most:
        return f"round {request.round} of {request.stage} found, the brief has {most}"
    return _numbers(request, brief, limits) or _tensors(request, shapes, brief.adapter.rank)


def _numbers(request: ClientRequest, brief: RunTerms, limits: SitePolicy) -> str | None:
    settings = request.settings
    if len(settings) > MOST_SETTINGS or not all(_plain(value) for value in settings.values()):
        return "an order with settings that are no plain finite values"
    for name, most in (("steps", limits.steps), ("batch", limits.batch), ("rank", limits.rank),
                       ("lr", MOST_RATE)):
        value = settings.get(name)
        if isinstance(value, int | float) and not 0 <= value <= most:
            return f"an order with {name} = {value:g}, allowed are at most {most:g}"
    if request.stage == "synthesis":
        neighbours = settings.get("neighbours")
        embeddings = request.tensors.get("embeddings")
        if embeddings is None or set(request.tensors) != {
            "embeddings"} or embeddings.ndim != 2 or len(embeddings) > MOST_CANDIDATES:
            return "a vote without one table of candidates"
        if not isinstance(neighbours, int) or not 1 <= neighbours <= max(1, len(embeddings)):
            return "a vote for more candidates than there are"
    return None


def _tensors(request: ClientRequest, shapes: Shapes, rank: int) -> str | None:
    """Factors must fit the layers, those to be trained the rank too; of other tensors the numbers
    must be finite."""
    for name, tensor in request.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"tensor '{name[:80]}' holds NaN or infinity"
        tag, _, bare = name.rpartition("/")
        if not FactorName.names_one(bare):
            continue
        factor = FactorName.parse(bare).factor
        layer = FactorName.parse(bare).layer
        if layer in shapes:
            m, n = shapes[layer]
            fits = tensor.ndim == 2 and (
                tensor.shape[1] == n if factor is Factor.A else tensor.shape[0] == m)
            if not fits:
                return (
                    f"tensor '{name[:80]}' of shape {tuple(tensor.shape)} does not fit a layer of "
                    f"({m}, {n})"
                )
            own = tensor.shape[factor.rank_axis]
            if not tag and own > rank:
                return f"tensor '{name[:80]}' of rank {own} found, the brief has {rank}"
    return None


def _plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, bool | str | None):
        return not isinstance(value, str) or len(value) <= 10_000
    if isinstance(value, int | float):
        return math.isfinite(value)
    if isinstance(value, list | tuple) and depth < 4:
        return len(value) <= 100_000 and all(_plain(item, depth + 1) for item in value)
    return (
        isinstance(value, dict) and depth < 4 and len(value) <= 100_000
        and all(_plain(item, depth + 1) for item in value.values())
    )
