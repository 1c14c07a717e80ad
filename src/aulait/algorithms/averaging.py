"""The mixed round that averaging methods share: local clients through the door, proxies beside it, one mean.

    d = ( w · [ sum_{k in S} clip(d_k, C) + N(0, z^2 C^2 I) ] + sum_j c_j g_j ) / ( w · |S|_planned + sum_j c_j )

S are the local clients, d_k their updates, j the proxies, g_j their updates on released synthetic texts, c_j the
number of clients proxy j stands for and w a public constant, the weight of a local client against a proxied one.
The denominator is public and fixed, weights are uniform. Everything done to the noised sum after the door (shrinkage,
projection) and to the proxies is post-processing and costs no privacy.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018 (clip, fixed
denominator); the mixture after Wang, Gounley, Hanson, "CAFE AU LAIT", PASC 2025, in our reading of its abstract.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from aulait import lora
from aulait.algorithms.contract import Ask, State
from aulait.algorithms.server_optimizer import ServerConfig, apply
from aulait.cohort import Cohort
from aulait.errors import PrivacyError
from aulait.privacy import clip, subspace
from aulait.privacy.account import PrivacyConfig
from aulait.privacy.door import Door
from aulait.registry import require
from aulait.types import Info, Order, Released, Reply, Tensors, nbytes


class AveragingConfig(ServerConfig):
    """Settings of a mixed round.

    Attributes:
        local_weight: w, the public weight of a local client's update against a proxied client's.
        weights: "uniform" over clients, or "size" by their number of records (only when privacy is off).
    """

    local_weight: float = Field(1.0, gt=0)
    weights: Literal["uniform", "size"] = "uniform"


def mixed_round(
    config: AveragingConfig, state: State, cohort: Cohort, ask: Ask, door: Door
) -> tuple[State, Info]:
    """Send the trained parameters to every site of the cohort, release, average, step.

    Args:
        config: weights and server optimiser.
        state: the trained parameters by name, and the server optimiser's moments (names with a slash).
        cohort: who takes part and the public numbers of the release.
        ask: gets replies for orders.
        door: releases the local replies' sum.

    Returns:
        The new state, and what can be told about the round.
    """
    theta, moments = trained(state), {name: t for name, t in state.tensors.items() if "/" in name}
    orders = [Order(name, "train", cohort.round, theta, {"lr": cohort.lr}) for name in (*cohort.local, *cohort.proxies)]
    for_proxies = [order for order in orders if order.client in cohort.proxies]
    public, _ = door.admit(ask(for_proxies), theta) if for_proxies else ([], ())
    bound = clip_bound(door.config, public)
    local = ask([order for order in orders if order.client not in cohort.proxies]) if cohort.local else []
    terms: list[tuple[float, Tensors]] = [(cohort.proxies[reply.client], reply.share) for reply in public]
    info: Info = {"clip_bound": None if math.isinf(bound) else bound, "proxies": len(public)}
    if cohort.local or cohort.planned:
        released = door.release(
            local, stage="train", round=cohort.round, role=cohort.role, bound=bound, noise_multiplier=cohort.noise_multiplier,
            planned=cohort.planned, like=theta, sampling_rate=cohort.sampling_rate, weights=config.weights)
        total = denoise(door.config, released, public)
        # w · total, then the planned count enters the denominator below with the same w
        terms.append((config.local_weight, total))
        info |= _told(released)
        denominator = config.local_weight * released.planned + sum(cohort.proxies.values())
    else:
        denominator = sum(cohort.proxies.values())
    terms = terms or [(0.0, theta)]  # nobody trained, or every reply was refused: nothing changes
    update = lora.weighted_sum([(weight / (denominator or 1.0), tensors) for weight, tensors in terms])
    after, kept = apply(config, theta, update, moments)
    # Bytes of the planned cohort: who was drawn and who replied is private.
    down = max((nbytes(order.tensors) for order in orders), default=nbytes(theta))  # also when nobody was drawn
    info |= {"update_norm": clip.norm(update), "up_bytes": cohort.planned * nbytes(theta), "down_bytes": cohort.planned * down}
    return State(cohort.round, after | kept), info


def trained(state: State) -> Tensors:
    """The trained parameters of a state, without the server optimiser's moments."""
    return {name: t for name, t in state.tensors.items() if "/" not in name}


def clip_bound(privacy: PrivacyConfig, public: Sequence[Reply]) -> float:
    """C: a number from the settings, or the median norm of the proxies' updates, which are public.

    Without privacy a bound of "proxies" means none.
    """
    if isinstance(privacy.clip, float | int):
        return float(privacy.clip) * privacy.clip_scale
    if privacy.off:
        return math.inf
    require(bool(public), PrivacyError, "privacy.clip = 'proxies' found no proxy to measure; set privacy.clip to a number")
    return max(statistics.median(clip.norm(reply.share) for reply in public) * privacy.clip_scale, 1e-12)


def denoise(privacy: PrivacyConfig, released: Released, public: Sequence[Reply]) -> Tensors:
    """The released sum after shrinkage and projection, as the settings say; without noise, the sum itself."""
    total = released.total
    if released.noise_std == 0:
        return total
    known = subspace.basis([reply.share for reply in public], privacy.subspace) if privacy.subspace and public else None
    if privacy.shrink != "none" or (known is not None and privacy.subspace_mode == "wiener"):
        total = subspace.shrink(total, released.noise_std, blocks=privacy.shrink == "blocks", basis=known)
    if known is not None and privacy.subspace_mode == "project":
        total = subspace.project(total, known)
    return total


def _told(released: Released) -> Info:
    """Post-processed facts: the noise, and the signal-to-noise ratio that the noised sum itself lets us estimate."""
    square = clip.norm(released.total) ** 2
    noise = released.noise_std**2 * sum(t.numel() for t in released.total.values())
    ratio = math.sqrt(max(square - noise, 0.0) / noise) if noise > 0 else None
    return {"noise_std": released.noise_std, "signal_to_noise": ratio, "refused": len(released.refused), **released.info}
