"""SA-FedLoRA: a first stage that holds clients near the global adapter, then a rank that anneals
from round to round.

Initiating stage (t <= T_init): loss + mu/2 ||theta - theta_s||^2 at the full rank. Annealing stage:
rank r(t) = r_min + (r_max - r_min) f(u), u = (t - T_init) / (T - T_init), f cosine, cubic or
exponential; whenever the rank falls, the averaged product is cut by its exact SVD, after which both
factors carry the roots of the singular values. A client works at min(r_k, r(t)). Factors are
averaged as in FedIT, with a plain server optimiser. Only the abstract was available: every formula
here is our reading of it.

what: held near the global adapter at first, then at a rank that anneals from round to round
source: Yang et al., SA-FedLora, 2024, arXiv 2405.09394 (abstract only)
travels: up 4 sum min(r_k, r(t)) (M + N); down 4 sum min(r_k, r(t)) (M + N)
privacy: sum of changes of A and B, each clipped to C; sensitivity C; schedule public, SVD
    post-processing
differs: our reading of an abstract; no reproduction
unequal ranks: yes
exact: no
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import (
    Adapter,
    ClientUpdate,
    Info,
    Site,
    Tensors,
    TrainRequest,
)
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.weighted_mean import (
    AveragingConfig,
    mixed_round,
    revived,
    with_settings,
)
from aulait.models.low_rank import Merge
from aulait.training.trainer import Learner, Penalty

TRAITS = described(__name__, __doc__, Abilities())


class SAFedLoRAConfig(MixtureConfig):
    """``[algorithm] name = "safedlora"``.

    Attributes:
        initiating: part of the rounds that belong to the first stage.
        proximal: mu, the pull towards the global adapter in the first stage.
        rank_min: r_min; None takes a quarter of the adapter's rank, at least 1.
        schedule: f: "cosine", "cubic" (1 - u)^3 or "exponential" c^u with c = r_min / r_max.
    """

    initiating: float = Field(0.3, ge=0, le=1)
    proximal: float = Field(0.1, ge=0)
    rank_min: int | None = Field(None, ge=1)
    schedule: Literal["cosine", "cubic", "exponential"] = "cosine"


Config = SAFedLoRAConfig


def init(config: SAFedLoRAConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(context.initial()))


def step(config: SAFedLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Cut to the rank of the round where it has fallen, then one averaged round at that rank."""
    rank = rank_at(config, context, cohort.round)
    theta = state.factors
    if rank < rank_at(config, context, cohort.round - 1):
        theta = _cut(context, theta, rank)
    first = cohort.round <= _initiating(config, context)
    more = {"proximal": config.proximal if first else 0.0}

    small = replace(context, ranks=_capped(context, rank, cohort))
    averaging = AveragingConfig(local_weight=config.local_weight, weights=config.weights)
    after, info = mixed_round(averaging, small, State(state.round, theta), cohort,
                              with_settings(server, more))
    return after, info | {"rank": rank}


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps from the sent factors, held near them in the first stage; the update is the
    change of A and B."""
    proximal = requests[0].settings["proximal"]
    penalty = Penalty(proximal=proximal) if proximal else None
    training = [replace(own, penalty=penalty) for own in client_update.local_training(
        requests, sites, context, client_update.sent_factors(context))]
    return client_update.changes(sites, client_update.train(requests, training, learner))


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors; columns beyond the rank of the last round are zero."""
    return context.adapter(state.factors)


def travels(config: SAFedLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    rank = rank_at(config, context, round)
    small = replace(context, ranks={client: _at_most(context, client, rank)})
    own = client_update.factor_bytes(small, client)
    return own, own


def rank_at(config: SAFedLoRAConfig, context: RunContext, round: int) -> int:
    """r(t): the largest rank of a round, counted from 1."""
    most, before = context.rank, _initiating(config, context)
    least = min(most, config.rank_min or max(1, most // 4))
    if round <= before or context.rounds <= before:
        return most
    u = min(1.0, (round - before) / (context.rounds - before))
    shape: dict[str, Callable[[], float]] = {
        "cosine": lambda: least + (most - least) * (1 + math.cos(math.pi * u)) / 2,
        "cubic": lambda: least + (most - least) * (1 - u) ** 3,
        "exponential": lambda: most * (least / most) ** u,
    }
    return max(least, int(shape[config.schedule]() + 0.5))


def _initiating(config: SAFedLoRAConfig, context: RunContext) -> int:
    return int(config.initiating * context.rounds + 0.5)


def _cut(context: RunContext, theta: Tensors, rank: int) -> Tensors:
    """The best factors of a rank, in the leading columns of zeros, at the common scale alpha /
    R."""
    merge = Merge(context.shapes)
    merge.add(1.0, Adapter(lora.from_tensors(theta, 1.0).factors, 1.0, 1))
    # alpha = rank: the scale of the result is 1
    best = merge.truncated(rank, float(rank), "symmetric")
    return revived(context, lora.placed(lora.to_tensors(best), theta), rank)


def _capped(context: RunContext, rank: int, cohort: Cohort) -> dict[str, dict[str, int]]:
    """Client -> layer -> min(r_k, r(t)); clients of equal ranks share a mapping."""
    made: dict[int, dict[str, int]] = {}
    names = (*cohort.everyone, *cohort.population, "")
    for name in names:
        made.setdefault(id(context.ranks.get(name)), _at_most(context, name, rank))
    return {name: made[id(context.ranks.get(name))] for name in names}


def _at_most(context: RunContext, name: str, rank: int) -> dict[str, int]:
    own = context.rank_of(name)
    return {layer: min(own(layer), rank) for layer in context.shapes}
