"""The mixed round that averaging methods share: local clients through the aggregator, proxies
beside it, one mean.

    d = ( w · [ sum_{k in S} clip(d_k, C) + N(0, z^2 C^2 I) ] + sum_j c_j g_j )
        / ( w · |S|_planned + sum_j c_j )

S are the local clients, d_k their updates, j the proxies, g_j their updates on released synthetic
texts, c_j the number of clients of a cohort that proxy j stands for (with sampling, the expected
number) and w a public constant, the weight of a local client against a proxied one. The denominator
is public and fixed, weights are uniform. Where the unit of privacy is the record the noise is in
the d_k, which are not clipped again, and those who answered are counted. Everything done to the
noised sum after the aggregator (shrinkage, projection) and to the proxies is post-processing and
costs no privacy.

Clients of lower rank are sent the leading columns and answer for those; every column is averaged
over those who own it: the denominator above, counted column by column. Who owns what follows from
ranks, which are public.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018
(clip, fixed denominator); the mixture after Wang, Gounley, Hanson, "CAFE AU LAIT", PASC 2025, in
our reading of its abstract.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import PrivacyError, require
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.types import (
    ClientRequest,
    ClientUpdate,
    Info,
    ReleasedSum,
    Tensors,
    TrainRequest,
)
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.shared import line_search
from aulait.methods.shared.line_search import Means, Search
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.server_optimizer import ServerConfig, server_step
from aulait.methods.shared.traffic import (
    TrafficCount,
    planned_bytes,
    planned_clients,
    planned_traffic,
)
from aulait.privacy import clipping, postprocessing
from aulait.privacy.aggregator import Release
from aulait.privacy.config import PrivacyConfig


class AveragingConfig(MixtureConfig, ServerConfig):
    """Settings of a mixed round with a server optimiser."""


@dataclass(frozen=True)
class Mixed:
    """What a mixed round came to; all of it released or public.

    Attributes:
        mean: over clients and proxies, by the formula at the head of this file.
        means: of local clients and proxies apart; None where no local ones are planned.
        metrics: of the round.
    """

    mean: Tensors
    means: Means | None
    metrics: Info


@dataclass(frozen=True)
class Averaging:
    """What a round asks for and averages.

    Attributes:
        sent: the requests of all sites of the cohort.
        update: names and shapes of the update of a site that has all ranks.
        down: names and shapes of what such a site is sent; None: of ``update``.
        template: names and shapes of what is averaged; None: of ``update``. What is no factor is
            averaged over everyone, not column by column.
        transform: what an update adds to the sum, shaped as ``template``; None: its factors, placed
            among the leading columns.
        bounded: whether ``privacy.clip`` also bounds updates where privacy is off; False where the
            sites bound gradients by it.
        columns: client -> layer -> the columns that it answers for; None: its leading ones.
        travels: client -> bytes up and down, as they are planned under privacy; None: those of
            ``update`` and ``down`` at its ranks.
    """

    sent: Sequence[TrainRequest]
    update: Tensors
    down: Tensors | None = None
    template: Tensors | None = None
    transform: Callable[[ClientUpdate], Tensors] | None = None
    bounded: bool = True
    columns: Callable[[str], Mapping[str, Sequence[int]]] | None = None
    travels: Callable[[str], tuple[int, int]] | None = None


def mixed_round(
    config: AveragingConfig, context: RunContext, state: State, cohort: Cohort, server: Server,
    trainable: Trainable = Trainable.AB
) -> tuple[State, Info]:
    """Send the factors to every site of the cohort, let the sum of their changes be released,
    average, and let the server optimiser step.

    Args:
        config: weights and server optimiser.
        context: ranks of the clients.
        state: the factors, and the server optimiser's moments.
        cohort: who takes part and the public numbers of the release.
        server: gets the updates and releases the local ones' sum.
        trainable: factors that the sites train and answer for.

    Returns:
        The new state, and the round's metrics.
    """
    theta = state.factors
    update = {name: value for name, value in theta.items()
              if FactorName.parse(name).factor in trainable.factors}
    sent = factor_requests(context, cohort, theta)
    mixed = mixed_parts(config, context, cohort, server, Averaging(sent, update, down=theta))
    return merged(config, RoundOutlet(context, state, cohort, server), mixed)


@dataclass(frozen=True)
class RoundOutlet:
    """Where a round's mean goes.

    Attributes:
        context: ranks of the clients.
        state: before the round.
        cohort: of the round.
        server: asks the clients, where they search for the step.
        kept: client -> what it keeps of the run (``ClientRequest.kept``).
    """

    context: RunContext
    state: State
    cohort: Cohort
    server: Server
    kept: Callable[[str], Tensors] = lambda client: {}


def merged(config: AveragingConfig, into: RoundOutlet, mixed: Mixed) -> tuple[State, Info]:
    """The state after a round: by the server's optimiser, or by the step that the clients which
    train have searched.

    Args:
        config: of the server.
        into: the state and the round.
        mixed: the round's means.
    """
    if config.server != "search" or mixed.means is None:
        return (State(into.cohort.round, server_step(config, into.state, mixed.mean)),
                mixed.metrics)
    searched = line_search.search(
        Search(into.context, into.state, into.cohort, into.server, into.kept), mixed.means)
    traffic = {way: mixed.metrics[way] + searched.traffic[way] for way in searched.traffic
               if mixed.metrics.get(way) is not None}
    return searched.state, mixed.metrics | traffic | {"search": searched.told}


def with_settings(server: Server, more: Mapping[str, object]) -> Server:
    """The server, whose requests to train say these settings too."""
    def asking(requests: Sequence[ClientRequest]) -> Iterable[ClientUpdate]:
        return server.ask([replace(request, settings={**request.settings, **more})
                           for request in requests])

    return replace(server, ask=asking)


def factor_requests(context: RunContext, cohort: Cohort, theta: Tensors) -> list[TrainRequest]:
    """The leading ranks of the factors for every site of the cohort."""
    return [TrainRequest(name, cohort.round, context.leading(theta, name), {"lr": cohort.lr})
            for name in cohort.everyone]


def mixed_mean(config: MixtureConfig, context: RunContext, cohort: Cohort, server: Server,
               averaging: Averaging) -> tuple[Tensors, Info]:
    """The mean over clients and proxies, by the formula at the head of this file, and the round's
    metrics; arguments as ``mixed_parts``."""
    mixed = mixed_parts(config, context, cohort, server, averaging)
    return mixed.mean, mixed.metrics


def mixed_parts(config: MixtureConfig, context: RunContext, cohort: Cohort, server: Server,
                averaging: Averaging) -> Mixed:
    """The means over clients and proxies, together and apart, and the round's metrics.

    Args:
        config: weights.
        context: ranks of the clients.
        cohort: who takes part and the public numbers of the release.
        server: gets the updates and releases the local ones' sum.
        averaging: what is asked for and averaged.
    """
    ask, aggregator, update = server.ask, server.aggregator, averaging.update
    template = averaging.template or update
    transform = averaging.transform or (lambda own: lora.placed(own.tensors, update))
    expected_shapes = {name: context.leading(update, name) for name in cohort.everyone}
    for_proxies = [request for request in averaging.sent if request.client in cohort.proxies]
    admitted, _ = (
        aggregator.admit(ask(for_proxies), update, expected_shapes) if for_proxies else ([], ()))
    public = [replace(own, tensors=transform(own)) for own in admitted]
    bound = aggregator.adaptive_bound or (
        clip_bound(aggregator.config, public)
        if averaging.bounded or aggregator.private else math.inf)
    terms = [(cohort.proxies[own.client], own.tensors) for own in public]
    owned = {own.client: cohort.proxies[own.client] for own in public}
    metrics: Info = {"clip_bound": None if math.isinf(bound) else bound, "proxies": len(public)}
    traffic = TrafficCount(averaging.sent, cohort, expected_shapes)
    standing = {name: weight for name, weight in owned.items() if weight}
    columns = averaging.columns
    proxied = (_over_owners(lora.weighted_sum(terms), context, standing, columns)
               if standing else None)
    means = None
    if cohort.local or cohort.planned:
        released = aggregator.release(
            traffic.counted(ask(traffic.local) if traffic.local else []),
            Release.of_cohort(cohort, stage="train", bound=bound, template=template),
            weights=config.weights, expected_shapes=expected_shapes, transform=transform)
        own_sum = denoise(aggregator.config, released, public)
        if cohort.step is not None:
            own_sum = {name: cohort.step * value for name, value in own_sum.items()}
        terms.append((config.weight, own_sum))
        # with the unit "record" it is public who answered
        clients = planned_clients(cohort) if aggregator.planned_only else released.counted
        weight = config.weight * sum(clients.values())
        means = Means(_over_owners(own_sum, context, clients, columns),
                      released.noise_std / max(1, cohort.planned),
                      weight / max(weight + sum(standing.values()), 1e-300), proxied)
        owned |= {name: config.weight * weight for name, weight in clients.items()}
        metrics |= _release_metrics(released)
    total = lora.weighted_sum(terms) if terms else {
        name: torch.zeros_like(value) for name, value in template.items()}
    mean = _over_owners(total, context, owned, columns)
    moved = traffic.metrics()
    if aggregator.private:
        moved = (planned_traffic(context, cohort, update, averaging.down or update)
                 if averaging.travels is None else planned_bytes(cohort, averaging.travels))
    metrics |= {"update_norm": clipping.norm(mean)} | moved
    return Mixed(mean, means, metrics)


def revived(context: RunContext, theta: Tensors, rank: int) -> Tensors:
    """The same product; columns below ``rank`` that are zero in A and in B, and so could never
    learn, begin anew with the common A."""
    after = dict(theta)
    for layer, (first_RN, _) in context.initial().factors.items():
        a_RN, b_MR = lora.factors_of(theta, layer)
        empty_R = ~a_RN.any(1) & ~b_MR.any(0) & (torch.arange(context.rank) < rank)
        after[str(FactorName(layer, Factor.A))] = torch.where(empty_R[:, None], first_RN, a_RN)
    return after


def clip_bound(privacy: PrivacyConfig, public: Sequence[ClientUpdate]) -> float:
    """C: a number from the settings, or the median norm of the proxies' updates, which are public.

    Without privacy a bound of "proxies" means none.

    Raises:
        PrivacyError: the bound is to come from proxies, and there is none.
    """
    if privacy.known_clip is not None:
        return privacy.known_clip
    if privacy.off:
        return math.inf
    require(bool(public), PrivacyError,
            "privacy.clip = 'proxies' found no proxy to measure; set privacy.clip to a number")
    median = statistics.median(clipping.norm(own.tensors) for own in public)
    return max(median * privacy.clip_scale, 1e-12)


def denoise(privacy: PrivacyConfig, released: ReleasedSum,
            public: Sequence[ClientUpdate]) -> Tensors:
    """The released sum after shrinkage and projection, as the settings say; without noise, the sum
    itself."""
    total = released.total
    if released.noise_std == 0:
        return total
    known = None
    if privacy.subspace and public:
        known = postprocessing.basis([own.tensors for own in public], privacy.subspace)
    if privacy.shrink != "none" or (known is not None and privacy.subspace_mode == "wiener"):
        total = postprocessing.shrink(total, released.noise_std, blocks=privacy.shrink == "blocks",
                                      basis=known)
    if known is not None and privacy.subspace_mode == "project":
        total = postprocessing.project(total, known)
    return total


def _over_owners(total: Tensors, context: RunContext, owned: Mapping[str, float],
                 columns: Callable[[str], Mapping[str, Sequence[int]]] | None = None) -> Tensors:
    """Every column over the weight of those who own it; one that nobody owns does not change.

    Args:
        total: the weighted sum.
        context: ranks of the clients.
        owned: client or proxy -> its weight in the sum.
        columns: client -> layer -> the columns that it owns; None: its leading ones.
    """
    chosen = [] if columns is None else [(weight, columns(name)) for name, weight in owned.items()]
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
        count = lora.nobody(own.factor, value)
        for weight, some in chosen:
            for axis in own.factor.rank_axes:
                count.index_add_(axis, torch.tensor(some[own.layer]), torch.full_like(
                    count.narrow(axis, 0, len(some[own.layer])), weight))
        for key, weight in groups.items() if columns is None else ():
            lora.leading_part(own.factor, count, ranks[key](own.layer)).add_(weight)
        mean[name] = torch.where(count > 0, value.double() / count.clamp(min=1e-300), 0.0).float()
    return mean


def _release_metrics(released: ReleasedSum) -> Info:
    """The noise, and the signal-to-noise ratio that the noised sum itself lets us estimate: both
    are post-processing."""
    square = clipping.norm(released.total) ** 2
    noise = released.noise_std**2 * sum(value.numel() for value in released.total.values())
    ratio = math.sqrt(max(square - noise, 0.0) / noise) if noise > 0 else None
    return {"noise_std": released.noise_std, "signal_to_noise": ratio,
            "refused": len(released.refused),
            "refused_clients": [f"{client}: {reason}" for client, reason in released.refused],
            **released.info}
