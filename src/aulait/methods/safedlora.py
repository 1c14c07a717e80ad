"""SA-FedLoRA: a first stage that holds clients near the global adapter, then a rank that anneals
from round to round.

what: initiating stage (t <= T_init): loss + mu/2 ||theta - theta_s||^2 at the full rank; annealing
    stage: rank r(t) = r_min + (r_max - r_min) f(u), u = (t - T_init) / (T - T_init), f cosine,
        cubic or exponential; whenever the
    rank falls, the averaged product is cut by its exact SVD. A client works at min(r_k, r(t)).
source: Yang et al., "SA-FedLora: Adaptive Parameter Allocation for Efficient Federated Learning
    with LoRA Tuning", 2024, arXiv 2405.09394. Only the abstract was available: every formula here
    is our reading of it.
travels: up and down 4 · sum over layers min(r_k, r(t)) (M + N) bytes a client and round.
privacy: the sum over clients of the change of A and B, each clipped in L2 to C: sensitivity C; the
    schedule is public and the SVD post-processing.
differs: not a reproduction. Factors are averaged as in FedIT (the server optimiser is plain), and
    after the cut both factors carry the roots of the singular values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import (
    Adapter,
    ClientRequest,
    ClientUpdate,
    Info,
    Site,
    Tensors,
    TrainRequest,
)
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.weighted_mean import (
    AveragingConfig,
    MixtureConfig,
    alive,
    mixed_round,
    trained,
)
from aulait.models.low_rank import Merge
from aulait.training.trainer import Learner, Penalty

TRAITS = Traits(
    what="held near the global adapter at first, then at a rank that anneals from round to round",
    source="Yang et al., SA-FedLora, 2024, arXiv 2405.09394 (abstract only)",
    up="4 sum min(r_k, r(t)) (M + N)",
    down="4 sum min(r_k, r(t)) (M + N)",
    privacy="sum of changes of A and B, each clipped to C; sensitivity C; schedule public, SVD "
            "post-processing",
    differs="our reading of an abstract; no reproduction",
    unequal_ranks=True,
    exact="no",
    private=True,
    secure=True,
)


class Config(MixtureConfig):
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


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds)))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Cut to the rank of the round where it has fallen, then one averaged round at that rank."""
    rank = rank_at(config, context, cohort.round)
    theta = trained(state)
    if rank < rank_at(config, context, cohort.round - 1):
        theta = _cut(context, theta, rank)
    first = cohort.round <= _initiating(config, context)
    told = {"proximal": config.proximal if first else 0.0}

    def asking(requests: Sequence[ClientRequest]) -> Iterable[ClientUpdate]:
        return server.ask([TrainRequest(o.client, o.round, o.tensors, {**o.settings, **told})
                    for o in requests])

    small = replace(context, ranks=_capped(context, rank, cohort))
    averaging = AveragingConfig(local_weight=config.local_weight, weights=config.weights)
    after, info = mixed_round(averaging, small, State(state.round, theta), cohort,
                              replace(server, ask=asking))
    return after, info | {"rank": rank}


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps from the sent factors, held near them in the first stage; the share is the change
    of A and B."""
    proximal = requests[0].settings["proximal"]
    done = client_update.train(
        requests, sites, context, learner, lambda request,
        _: lora.from_tensors(request.tensors, context.alpha, context.rank), Trainable.AB,
        penalty=Penalty(proximal=proximal) if proximal else None)
    return client_update.changes(sites, done, Trainable.AB)


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors; columns beyond the rank of the last round are zero."""
    return lora.from_tensors(trained(state), context.alpha, context.rank)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    small = replace(context, ranks={name: _at_most(context, name, rank_at(config, context, round))})
    return client_update.factor_bytes(small, name), client_update.factor_bytes(small, name)


def rank_at(config: Config, context: RunContext, round: int) -> int:
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


def _initiating(config: Config, context: RunContext) -> int:
    return int(config.initiating * context.rounds + 0.5)


def _cut(context: RunContext, theta: Tensors, rank: int) -> Tensors:
    """The best factors of a rank, in the leading columns of zeros, at the common scale alpha /
    R."""
    merge = Merge(context.shapes)
    merge.add(1.0, Adapter(lora.from_tensors(theta, 1.0).factors, 1.0, 1))
    # alpha = rank: the scale of the result is 1
    best = merge.truncated(rank, float(rank), "symmetric")
    return alive(context, lora.placed(lora.to_tensors(best), theta), rank)


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
