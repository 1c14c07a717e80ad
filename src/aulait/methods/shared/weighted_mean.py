"""The mixed round that averaging methods share: local clients through the aggregator, proxies
beside it, one mean.

    d = ( w · [ sum_{k in S} clip(d_k, C) + N(0, z^2 C^2 I) ] + sum_j c_j g_j ) / ( w · |S|_planned
    + sum_j c_j )

S are the local clients, d_k their updates, j the proxies, g_j their updates on released synthetic
texts, c_j the number of clients of a cohort that proxy j stands for (with sampling, the expected
number) and w a public constant, the weight of a local client against a proxied one.
The denominator is public and fixed, weights are uniform. Everything done to the noised sum after
the aggregator (shrinkage, projection) and to the proxies is post-processing and costs no privacy.

Clients of lower rank are sent the leading columns and answer for those; every column is averaged
over those who own
it: the denominator above, counted column by column. Who owns what follows from ranks, which are
public.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018
(clip, fixed
denominator); the mixture after Wang, Gounley, Hanson, "CAFE AU LAIT", PASC 2025, in our reading of
its abstract.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import PrivacyError, require
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.types import ClientUpdate, Info, ReleasedSum, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.shared.server_optimizer import ServerConfig, apply
from aulait.methods.shared.traffic import Meter, planned, planned_traffic
from aulait.privacy import clipping, postprocessing
from aulait.privacy.aggregator import Release
from aulait.privacy.config import PrivacyConfig


class MixtureConfig(BaseModel):
    """Who counts how much in a round.

    Attributes:
        local_weight: w, the public weight of a local client's update against a proxied client's.
        weights: "uniform" over clients, or "size" by their number of records (only when privacy is
            off).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    local_weight: float = Field(1.0, gt=0)
    weights: Literal["uniform", "size"] = "uniform"


class AveragingConfig(MixtureConfig, ServerConfig):
    """Settings of a mixed round with a server optimiser."""


def mixed_round(
    config: AveragingConfig, context: RunContext, state: State, cohort: Cohort, server: Server,
    trainable: Trainable = Trainable.AB
) -> tuple[State, Info]:
    """Send the trained parameters to every site of the cohort, release, average, step.

    Args:
        config: weights and server optimiser.
        setting: ranks of the clients.
        state: the trained parameters by name, and the server optimiser's moments (names with a
            slash).
        cohort: who takes part and the public numbers of the release.
        server: gets the updates and releases the local ones' sum.
        trainable: factors that the sites train and answer for.

    Returns:
        The new state, and what can be told about the round.
    """
    theta, moments = trained(state), {name: t for name, t in state.tensors.items() if "/" in name}
    share = {name: t for name, t in theta.items()
             if FactorName.parse(name).factor in trainable.factors}
    mean_update, info = mixed_mean(config, context, cohort, server,
        requests(context, cohort, theta),
                              share, down=theta)
    after, kept = apply(config, theta, mean_update, moments)
    return State(cohort.round, after | kept), info


def requests(context: RunContext, cohort: Cohort, theta: Tensors) -> list[TrainRequest]:
    """The leading ranks of the parameters for every site of the cohort."""
    return [TrainRequest(name, cohort.round, lora.leading(theta, context.rank_of(name)),
                  {"lr": cohort.lr}) for name in cohort.everyone]


def mixed_mean(
    config: MixtureConfig, context: RunContext, cohort: Cohort, server: Server,
    sent: Sequence[TrainRequest], share: Tensors,
    *, template: Tensors | None = None, transform: Callable[[ClientUpdate], Tensors] | None = None,
    down: Tensors | None = None,
) -> tuple[Tensors, Info]:
    """The mean over clients and proxies, by the formula at the head of this file.

    Args:
        config: weights.
        setting: ranks of the clients.
        cohort: who takes part and the public numbers of the release.
        server: gets the updates and releases the local ones' sum.
        sent: the requests of all sites of the cohort.
        share: names and shapes of the share of a site that has all ranks.
        like: names and shapes of what is averaged; None: of ``share``. Names that end in ".W" are
            no factors.
        become: what a update adds to the sum, shaped as ``like``; None: its share, placed among the
            leading columns.
        down: names and shapes of what a site that has all ranks is sent; None: of ``share``.
    """
    ask, aggregator = server.ask, server.aggregator
    template = template or share
    transform = transform or (lambda update: lora.placed(update.tensors, share))
    expected_shapes = {name: lora.leading(share, context.rank_of(name)) for name in cohort.everyone}
    for_proxies = [request for request in sent if request.client in cohort.proxies]
    admitted, _ = (
        aggregator.admit(ask(for_proxies), share, expected_shapes) if for_proxies else ([], ())
    )
    public = [replace(update, tensors=transform(update)) for update in admitted]
    bound = clip_bound(aggregator.config, public)
    terms = [(cohort.proxies[update.client], update.tensors) for update in public]
    owned = {update.client: cohort.proxies[update.client] for update in public}
    info: Info = {"clip_bound": None if math.isinf(bound) else bound, "proxies": len(public)}
    meter = Meter(sent, cohort)
    if cohort.local or cohort.planned:
        released = aggregator.release(
            meter.up(ask(meter.local) if meter.local else []),
            Release.of_cohort(cohort, stage="train", bound=bound, template=template),
            weights=config.weights, expected_shapes=expected_shapes, transform=transform)
        terms.append((config.local_weight, denoise(aggregator.config, released, public)))
        clients = planned(cohort) if aggregator.private else released.counted
        owned |= {name: config.local_weight * weight for name, weight in clients.items()}
        info |= _told(released)
    mean_update = _divided(lora.weighted_sum(terms) if terms
                      else {n: torch.zeros_like(t) for n, t in template.items()}, context, owned)
    traffic = (
        planned_traffic(context, cohort, share, down or share) if aggregator.private
        else meter.told()
    )
    return mean_update, info | {"update_norm": clipping.norm(mean_update)} | traffic


def trained(state: State) -> Tensors:
    """The trained parameters of a state, without the server optimiser's moments."""
    return lora.untagged(state.tensors)


def alive(context: RunContext, theta: Tensors, rank: int) -> Tensors:
    """The same product; columns below ``rank`` that are zero in A and in B, and so could never
    learn, begin anew with the common A."""
    after = dict(theta)
    common = lora.initial(context.shapes, context.rank, context.alpha, context.seeds)
    for layer, (first_RN, _) in common.factors.items():
        a_RN, b_MR = lora.factors_of(theta, layer)
        empty_R = ~a_RN.any(1) & ~b_MR.any(0) & (torch.arange(context.rank) < rank)
        name = str(FactorName(layer, Factor.A))
        after[name] = torch.where(empty_R[:, None], first_RN, a_RN)
    return after


def clip_bound(privacy: PrivacyConfig, public: Sequence[ClientUpdate]) -> float:
    """C: a number from the settings, or the median norm of the proxies' updates, which are public.

    Without privacy a bound of "proxies" means none.
    """
    if isinstance(privacy.clip, float | int):
        return float(privacy.clip) * privacy.clip_scale
    if privacy.off:
        return math.inf
    require(bool(public), PrivacyError,
            "privacy.clip = 'proxies' found no proxy to measure; set privacy.clip to a number")
    return max(statistics.median(clipping.norm(update.tensors)
        for update in public) * privacy.clip_scale, 1e-12)


def denoise(privacy: PrivacyConfig, released: ReleasedSum,
            public: Sequence[ClientUpdate]) -> Tensors:
    """The released sum after shrinkage and projection, as the settings say; without noise, the sum
    itself."""
    total = released.total
    if released.noise_std == 0:
        return total
    known = (
        postprocessing.basis([update.tensors for update in public], privacy.subspace)
        if privacy.subspace and public else None
    )
    if privacy.shrink != "none" or (known is not None and privacy.subspace_mode == "wiener"):
        total = postprocessing.shrink(total, released.noise_std, blocks=privacy.shrink == "blocks",
            basis=known)
    if known is not None and privacy.subspace_mode == "project":
        total = postprocessing.project(total, known)
    return total


def _divided(total: Tensors, context: RunContext, owned: Mapping[str, float]) -> Tensors:
    """Every column over the weight of those who own it; a column that nobody owns stays as it
    is."""
    groups: dict[int, float] = {}  # thousands of clients share a few mappings of ranks
    for client, weight in owned.items():
        key = id(context.ranks.get(client))
        groups[key] = groups.get(key, 0.0) + weight
    ranks = {id(context.ranks.get(client)): context.rank_of(client) for client in owned}
    mean = {}
    for name, value in total.items():
        if not FactorName.names_one(name):
            mean[name] = value / (sum(groups.values()) or 1.0)
            continue
        own = FactorName.parse(name)
        count_R = torch.zeros(value.shape[own.factor.rank_axis], dtype=torch.float64)
        for key, weight in groups.items():
            count_R[: ranks[key](own.layer)] += weight
        count = count_R.unsqueeze(1 - own.factor.rank_axis)
        mean[name] = torch.where(count > 0, value.double() / count.clamp(min=1e-300), 0.0).float()
    return mean


def _told(released: ReleasedSum) -> Info:
    """Post-processed facts: the noise, and the signal-to-noise ratio that the noised sum itself
    lets us estimate."""
    square = clipping.norm(released.total) ** 2
    noise = released.noise_std**2 * sum(t.numel() for t in released.total.values())
    ratio = math.sqrt(max(square - noise, 0.0) / noise) if noise > 0 else None
    return {"noise_std": released.noise_std, "signal_to_noise": ratio,
            "refused": len(released.refused),
            "refused_clients": [f"{client}: {reason}" for client, reason in released.refused],
            **released.info}
