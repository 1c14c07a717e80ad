"""Rounds in which every client trains a fresh adapter on a base that has all earlier merges folded
into it: what FLoRA and its relatives share.

A client folds what it was sent (``base_folding``), draws A from the run's seed, its name and the
round, and trains from B = 0. What is made of the trained factors is the method's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import WireError, require
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, ClientUpdate, Site, TrainRequest
from aulait.methods.contract import RunContext, State
from aulait.methods.shared import base_folding, client_update
from aulait.methods.shared.base_folding import StackedFactors
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.per_client import SingleReading, SingleUpdates
from aulait.training.trainer import Learner

Scale = Literal["common", "own"]
Terms = Sequence[tuple[float, Adapter]]
LAYERS = "layers"  # setting of a request: the layers that get an adapter


class FreshConfig(MixtureConfig):
    """Settings of methods with fresh adapters.

    Attributes:
        scale: what multiplies B A of a client: "common" is alpha / R for everyone, as in the
            papers' code, where every client has the scale 2; "own" is alpha / r_k, so that clients
            of low rank take larger steps.
    """

    scale: Scale = "common"


def requests(config: FreshConfig, context: RunContext, state: State, cohort: Cohort,
             layers: Sequence[str] | None = None) -> list[TrainRequest]:
    """The last merge for every site of the cohort; ``layers`` are those that get adapters, None for
    all of them."""
    chosen = {} if layers is None else {LAYERS: list(layers)}
    return [TrainRequest(name, cohort.round, base_folding.merges_for(state, name),
                         {"lr": cohort.lr, "scale": config.scale} | chosen)
            for name in cohort.everyone]


def on_layers(context: RunContext, layers: Sequence[str] | None) -> RunContext:
    """The context of some of the layers alone; of all of them where None are named.

    Raises:
        WireError: one of them is not among the adapted ones.
    """
    if layers is None:
        return context
    strange = [str(layer)[:80] for layer in layers if layer not in context.shapes]
    found = f"layer '{strange[0]}'" if strange else "no layer"
    require(bool(layers) and not strange, WireError,
            f"an adapter is asked for on {found}, expected some of those that the run adapts")
    return replace(context, shapes={layer: context.shapes[layer] for layer in layers})


def reading(method: str, instead: str, context: RunContext, cohort: Cohort) -> SingleReading:
    """Names and shapes of the updates of a cohort."""
    full = lora.to_tensors(context.initial())
    return SingleReading(method, instead,
                         {name: context.leading(full, name) for name in cohort.everyone})


def terms(config: FreshConfig, context: RunContext, updates: SingleUpdates) -> Terms:
    """The trained adapters with their unnormalised weights."""
    scaled = context.adapter if config.scale == "common" else context.own_scale
    return [(weight, scaled(update.tensors)) for weight, update in updates]


def stacked(context: RunContext, found: Terms, total: float) -> StackedFactors:
    """Factors whose product is the mean of the adapters' dense updates: [p_1 s_1 A_1; ...] and
    [B_1, ...]; zeros where there is none.

    Args:
        context: the layers.
        found: adapters with their weights.
        total: of these weights.
    """
    if total <= 0:
        return {layer: (torch.zeros(1, n), torch.zeros(m, 1))
                for layer, (m, n) in context.shapes.items()}
    return {layer: (
        torch.cat([weight / total * own.scale(layer) * own.factors[layer][0]
                   for weight, own in found]),
        torch.cat([own.factors[layer][1] for _, own in found], dim=1))
        for layer in context.shapes}


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Fold what was sent, train a fresh adapter on it; the update is A and B."""
    wholes = base_folding.dense_updates(requests, sites)
    training = client_update.local_training(
        requests, sites, context, lambda request, site: _fresh(context, request, site.name))
    training = [replace(own, fold=whole or None)
                for own, whole in zip(training, wholes, strict=True)]
    return client_update.trained_factors(
        sites, client_update.train(requests, training, learner))


def result(context: RunContext, state: State) -> Adapter:
    """All that was folded."""
    return base_folding.as_adapter(context, state)


def _fresh(context: RunContext, request: TrainRequest, name: str) -> Adapter:
    """A random, B zero, at the client's ranks; a draw of its own for every client and round."""
    seeds = Seeds(context.seeds.integer("flora", request.round, name))
    shapes = on_layers(context, request.settings.get(LAYERS)).shapes
    first = lora.to_tensors(lora.initial(shapes, context.rank, context.alpha, seeds))
    own = context.leading(first, name)
    return (context.adapter if request.settings["scale"] == "common" else context.own_scale)(own)
