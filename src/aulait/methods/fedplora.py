"""Fed-PLoRA: an adapter of rank R is R modules of rank one; a client trains those it can carry and
folds the others into its base.

In every round a client of rank r draws r of the R columns of a layer, in an order of its own that
follows from the run's seed, its name and the round. It is sent all R, folds the scaled product of
the others into its frozen weights, and trains its own: so whatever its rank, it begins where the
federation is, where truncation (HetLoRA) or a decomposition (FlexLoRA) begins elsewhere. Every
column is averaged over those who trained it. At equal ranks this is FedIT.

Who trains which column is public, so the denominators are: under client-level privacy the planned
clients that own a column are counted, whoever answered. With sampling each counts with its part.

what: clients draw the columns that they train and fold the others into their base
source: Zhang, Hu, Xu, Heterogeneous Federated Fine-Tuning with Parallel One-Rank Adaptation, ICLR
    2026, arXiv 2602.16936
travels: up 4 sum r_k (M + N); down 4 sum R (M + N)
privacy: sum of changes of the drawn columns, each client's clipped to C; sensitivity C; the draw
    is public. Records: DP-SGD at the site
differs: the abstract and the introduction alone could be read, not the method's section nor the
    code; ours are: the draw by layer, from the run's seed, and the scale alpha / R for every client
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import FactorName
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.averaged_factors import init as init
from aulait.methods.shared.averaged_factors import result as result
from aulait.methods.shared.weighted_mean import (
    Averaging,
    AveragingConfig,
    RoundOutlet,
    merged,
    mixed_parts,
)
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(units=("client", "record"), folds=True))
REST = "rest"  # the tag of the columns that a client folds


class FedPLoRAConfig(AveragingConfig):
    """``[algorithm] name = "fedplora"``."""


Config = FedPLoRAConfig


def step(config: FedPLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send everybody all columns, its own apart; average each over those who trained it."""
    theta = state.factors
    own = {name: columns(context, cohort.round, name)
           for name in {*cohort.everyone, *cohort.population, ""}}
    sent = [TrainRequest(name, cohort.round, _parted(context, theta, own[name]),
                         {"lr": cohort.lr}) for name in cohort.everyone]
    mixed = mixed_parts(config, context, cohort, server, Averaging(
        sent, theta, transform=lambda update: _placed(update, theta, own[update.client]),
        columns=own.__getitem__,
        travels=lambda name: travels(config, context, cohort.round, name, ())))
    return merged(config, RoundOutlet(context, state, cohort, server), mixed)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Fold the columns of others, train one's own; the update is how these moved."""
    def start(request: TrainRequest, _: Site) -> Adapter:
        return context.adapter(lora.untagged(request.tensors))

    training = client_update.local_training(requests, sites, context, start)
    rests = [lora.under(REST, request.tensors) for request in requests]
    training = [replace(own, fold=lora.dense(context.adapter(rest)) if rest else None)
                for own, rest in zip(training, rests, strict=True)]
    return client_update.changes(sites, client_update.train(requests, training, learner))


def travels(config: FedPLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    whole = replace(context, ranks={})
    return client_update.factor_bytes(context, client), client_update.factor_bytes(whole, client)


def columns(context: RunContext, round: int, client: str) -> dict[str, list[int]]:
    """Layer -> the columns that a client trains in a round, ascending."""
    rank, found = context.rank_of(client), {}
    for layer in context.shapes:
        generator = context.seeds.generator(f"columns of {layer}", round, client)
        drawn = torch.randperm(context.rank, generator=generator)[: rank(layer)]
        found[layer] = sorted(drawn.tolist())
    return found


def _parted(context: RunContext, theta: Tensors, own: Mapping[str, Sequence[int]]) -> Tensors:
    """A client's own columns as factors, the others under a tag."""
    parts: Tensors = {}
    for name, value in theta.items():
        which = FactorName.parse(name)
        mine = list(own[which.layer])
        others = sorted(set(range(context.rank)) - set(mine))
        (axis,) = which.factor.rank_axes
        parts[name] = value.index_select(axis, torch.tensor(mine))
        if others:
            parts[f"{REST}/{name}"] = value.index_select(axis, torch.tensor(others))
    return parts


def _placed(update: ClientUpdate, theta: Tensors, own: Mapping[str, Sequence[int]]) -> Tensors:
    """A client's columns where they belong, among zeros."""
    return {name: _among_zeros(FactorName.parse(name), value, theta[name], own)
            for name, value in update.tensors.items()}


def _among_zeros(name: FactorName, value: Tensor, template: Tensor,
                 own: Mapping[str, Sequence[int]]) -> Tensor:
    (axis,) = name.factor.rank_axes
    return torch.zeros_like(template).index_copy_(axis, torch.tensor(own[name.layer]), value)
