"""What a run would ask of whom, from its settings and shapes: nothing is trained, and under privacy
no text of a client is looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aulait.federation.tiers import TierConfig
from aulait.methods.shared.client_update import factor_bytes
from aulait.privacy.plan import PrivacyPlan
from aulait.resources.capacity import EMBEDDER
from aulait.runs.experiment_file import Settings
from aulait.runs.setup import House
from aulait.runs.virtual_time import round_time
from aulait.training import split_model


def outlook(house: House) -> dict[str, Any]:
    """The plan of a house as plain values: tiers, server, releases, epsilon by role, totals."""
    width, embedder_parameters = _embedder(house)
    there = {site.plan.tier for site in house.sites.values()}
    tiers = [_tier(house, tier, width, embedder_parameters)
             for tier in house.settings.federation.tier if tier.name in there]
    totals = {f"{way}_bytes": _sum([tier[f"{way}_bytes_run"] for tier in tiers])
              for way in ("down", "up")}
    train, synthesis = house.settings.train, house.settings.synthesis
    return {
        "name": house.settings.run.name,
        "algorithm": house.settings.algorithm["name"],
        "model": house.settings.model.name,
        "parameters": house.base.parameters,
        "clients": len(house.sites),
        "rounds": {"synthesis": synthesis.rounds if house.voting else 0, "train": train.rounds},
        "tiers": tiers,
        "server": _server(house),
        "releases": _releases(house.privacy_plan),
        "privacy": _privacy(house.privacy_plan,
                            [role for role, names in house.roles.items() if names]),
        "total": totals,
    }


def _embedder(house: House) -> tuple[int, int | None]:
    """Width D and parameters of the embedder; only an unknown one is loaded, and only when somebody
    votes."""
    if house.settings.synthesis.embedder == "minilm" or not house.voters:
        return EMBEDDER[1], EMBEDDER[0]
    return house.embedder().width, None


def _tier(house: House, tier: TierConfig, width: int, embedder_parameters: int | None) -> dict[str,
        Any]:
    """What one client of a tier does, sends and receives, and what that takes on its machine."""
    settings, place = house.settings, house.places[tier.name]
    members = sorted(site.name for site in house.sites.values() if site.plan.tier == tier.name)
    plan, trains, votes = place.plan, bool(members) and place.plan.placement != "proxy", bool(
        {*members} & {*house.voters})
    up, down = _trained_bytes(house, members) if trains else (0, 0)
    pool, rounds, voted = (
        settings.synthesis.pool, settings.train.rounds, settings.synthesis.rounds if votes else 0
    )
    first = min(pool, len(house.corpus.public))  # the first vote is on public texts
    candidates = first + (voted - 1) * pool if voted else 0
    part = settings.federation.rate if settings.federation.sampling != "all" else 1.0
    each = max(1, len(members) * rounds)
    return {
        "name": tier.name,
        "clients": len(members),
        "placement": plan.placement,
        "machine": tier.machine,
        "why": place.why,
        "rank": plan.rank if trains else None,
        "steps": plan.steps if trains else None,
        "batch": plan.batch if trains else None,
        "trainable": _trainable(house, members[0]) if trains else 0,
        "train_down_bytes_round": round(down / each),
        "train_up_bytes_round": round(up / each),
        "vote_down_bytes_round": 4 * pool * width if votes else 0,
        "vote_up_bytes_round": 4 * pool if votes else 0,
        "down_bytes_run": round(part * down + len(members) * candidates * 4 * width),
        "up_bytes_run": round(part * up + len(members) * candidates * 4),
        "flop_vote_estimate": _vote_flop(settings, embedder_parameters) if votes else 0,
        **_machine(house, tier.name, trains),
    }


def _trainable(house: House, name: str) -> int:
    """Numbers that a client trains on its own machine: of a split one, those before the cut."""
    context = house.context
    if house.sites[name].plan.placement == "split":
        front = split_model.client_layers(context.shapes, house.settings.compute.cut)
        context = replace(context, shapes={layer: context.shapes[layer] for layer in front})
    return factor_bytes(context, name, house.settings.method.TRAITS.trains) // 4


def _machine(house: House, tier: str, trains: bool) -> dict[str, Any]:
    """Arithmetic of a round, and seconds, memory and energy on the tier's machine; None where no
    machine is named."""
    place = house.places[tier]
    found = round_time.takes(house, tier)
    named = place.profile is not None
    return {
        "flop_round_estimate": round(found.flop) if trains else 0,
        "compute_s_round": found.compute_s if named else None,
        "transfer_s_round": found.transfer_s if named else None,
        "memory_bytes": round(found.memory_bytes) if trains or named else None,
        "machine_memory_bytes": place.profile.memory_bytes if place.profile else None,
        "energy_j_round": found.energy_j if named else None,
    }


def _trained_bytes(house: House, members: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of all clients of a tier over all rounds, when everybody takes part in
    every one."""
    if house.sites[members[0]].plan.placement == "local":  # bytes follow from ranks alone
        up, down = round_time.travelled(house, members[0])
        return len(members) * up, len(members) * down
    found = [round_time.exchanged(house, members, round)
             for round in range(1, house.settings.train.rounds + 1)]
    return sum(up for up, _ in found), sum(down for _, down in found)


def _vote_flop(settings: Settings, parameters: int | None) -> int | None:
    """Embedding a client's records, once in a run."""
    return (
        None if parameters is None else 2 * parameters * settings.data.records_per_client
        * settings.synthesis.max_tokens
    )


def _server(house: House) -> dict[str, Any]:
    """The proxies' training on the server."""
    count = round_time.proxy_count(house)
    return {
        "proxies": count,
        "stand_for": len(house.roles["proxy"]) if count else 0,
        "texts": house.settings.synthesis.texts if house.voting else 0,
        "flop_round_estimate": round(count * round_time.proxy_plan(house).steps
            * round_time.proxy_step(house).flop) if count else 0,
        "machine": house.settings.compute.server,
    }


def _releases(plan: PrivacyPlan) -> list[dict[str, Any]]:
    """The planned releases: how many, how much noise."""
    return [
        {
            "stage": release.stage,
            "releases": release.rounds,
            "noise_multiplier": release.noise_multiplier,
            "sensitivity": release.sensitivity,
            "sigma": release.sigma,
        }
        for release in plan.releases
    ]


def _privacy(plan: PrivacyPlan, roles: Sequence[str]) -> dict[str, Any]:
    """Epsilon that every role will have spent after the last round; null is infinite."""
    epsilon = {role: None if math.isinf(plan.epsilon[role]) else plan.epsilon[role]
               for role in roles}
    return {"off": plan.config.off, "relation": plan.config.relation, "delta": plan.config.delta,
            "epsilon": epsilon}


def _sum(values: Sequence[int | None]) -> int | None:
    return None if any(value is None for value in values) else sum(value or 0 for value in values)
