"""What a run would ask of whom, from its settings and shapes alone: nothing is trained, no text is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aulait.algorithms.client import factor_bytes
from aulait.algorithms.evolution import vote_bound
from aulait.assemble import House
from aulait.config import Settings, TierConfig
from aulait.privacy.account import Event, epsilon

MINILM_WIDTH, MINILM_PARAMETERS = 384, 22_700_000


def outlook(house: House) -> dict[str, Any]:
    """The plan of a house as plain values: tiers, server, releases, epsilon by role, totals."""
    width, embedder_parameters = _embedder(house)
    tiers = [_tier(house, tier, width, embedder_parameters) for tier in house.settings.federation.tier]
    tiers = [tier for tier in tiers if tier["clients"]]
    totals = {f"{way}_bytes": _sum([tier[f"{way}_bytes_run"] for tier in tiers]) for way in ("down", "up")}
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
        "releases": _releases(house),
        "privacy": _privacy(house),
        "total": totals,
    }


def _embedder(house: House) -> tuple[int, int | None]:
    """Width D and parameters of the embedder; only an unknown one is loaded, and only when somebody votes."""
    if house.settings.synthesis.embedder == "minilm" or not house.voters:
        return MINILM_WIDTH, MINILM_PARAMETERS
    return house.embedder().width, None


def travelled(house: House, name: str) -> tuple[int, int]:
    """Bytes up and down of one client over all rounds, when everybody takes part in every one."""
    settings = house.settings
    proxies = [f"proxy-{k:03d}" for k in range(_server(house)["proxies"])]
    sites = (*house.roles["local"], *proxies)
    each = [settings.method.travels(settings.method_config, house.setting, round, name, sites)
            for round in range(1, settings.train.rounds + 1)]
    return sum(up for up, _ in each), sum(down for _, down in each)


def _tier(house: House, tier: TierConfig, width: int, embedder_parameters: int | None) -> dict[str, Any]:
    """What one client of a tier does, sends and receives."""
    settings = house.settings
    plans = [site.plan for site in house.sites.values() if site.plan.tier == tier.name]
    placement = plans[0].placement if plans else tier.placement
    rank, steps, batch = (getattr(plans[0], key) if plans else None for key in ("rank", "steps", "batch"))
    trains, votes = placement == "local", any(house.sites[n].plan.tier == tier.name for n in house.voters)
    members = sorted(site.name for site in house.sites.values() if site.plan.tier == tier.name)
    numbers = factor_bytes(house.setting, members[0], settings.method.TRAITS.trains) // 4 if trains else 0
    up, down = travelled(house, members[0]) if trains else (0, 0)
    pool, rounds, voted = settings.synthesis.pool, settings.train.rounds, settings.synthesis.rounds if votes else 0
    first = min(pool, len(house.corpus.public))  # the first vote is on public texts
    candidates = first + (voted - 1) * pool if voted else 0
    part = settings.federation.rate if settings.federation.sampling == "poisson" else 1.0

    def whole(train_bytes: int, vote_bytes: int) -> int:
        return round(len(plans) * (part * train_bytes + candidates * vote_bytes))

    return {
        "name": tier.name,
        "clients": len(plans),
        "placement": placement,
        "why": "set in the experiment file",
        "rank": rank if trains else None,
        "steps": steps if trains else None,
        "batch": batch if trains else None,
        "trainable": numbers,
        "train_down_bytes_round": round(down / max(1, rounds)),
        "train_up_bytes_round": round(up / max(1, rounds)),
        "vote_down_bytes_round": 4 * pool * width if votes else 0,
        "vote_up_bytes_round": 4 * pool if votes else 0,
        "down_bytes_run": whole(down, 4 * width),
        "up_bytes_run": whole(up, 4),
        "flop_round_estimate": _train_flop(house, steps or 0, batch or 0) if trains else 0,
        "flop_vote_estimate": _vote_flop(settings, embedder_parameters) if votes else 0,
    }


def _train_flop(house: House, steps: int, batch: int) -> int:
    """Forward 2 P a token, and 2 P for the gradient that passes back through the frozen chain."""
    return int(4 * house.base.parameters * steps * batch * house.settings.model.context)


def _vote_flop(settings: Settings, parameters: int | None) -> int | None:
    """Embedding a client's records, once in a run."""
    return None if parameters is None else 2 * parameters * settings.data.records_per_client * settings.synthesis.max_tokens


def _server(house: House) -> dict[str, Any]:
    """The proxies' training on the server."""
    synthesis, train = house.settings.synthesis, house.settings.train
    stands = len(house.roles["proxy"]) if synthesis.proxies != "absent" else 0
    tier = next((t for t in house.settings.federation.tier if t.placement == "proxy"), None)
    steps, batch = (tier and tier.steps) or train.steps, (tier and tier.batch) or train.batch
    count = min(synthesis.proxy_count, stands, synthesis.texts)
    return {
        "proxies": count,
        "stand_for": stands,
        "texts": synthesis.texts if house.voting else 0,
        "flop_round_estimate": count * _train_flop(house, steps, batch),
    }


def _releases(house: House) -> list[dict[str, Any]]:
    """The planned releases: how many, how much noise."""
    privacy, noise = house.settings.privacy, house.noise
    factor = 2.0 if privacy.relation == "replace" else 1.0
    update_bound = float(privacy.clip) * privacy.clip_scale if privacy.clip != "proxies" else None
    planned = (
        ("synthesis", noise.vote_releases, noise.votes, vote_bound(house.settings.data.records_per_client)),
        ("train", noise.update_releases, noise.updates, update_bound),
    )
    return [
        {
            "stage": stage,
            "releases": count,
            "noise_multiplier": z,
            "sensitivity": None if bound is None else factor * bound,
            "sigma": None if bound is None else z * factor * bound,
        }
        for stage, count, z, bound in planned
        if count
    ]


def _privacy(house: House) -> dict[str, Any]:
    """Epsilon that every role will have spent after the last round; null is infinite."""
    settings, noise = house.settings, house.noise
    promised = {"off": settings.privacy.off, "relation": settings.privacy.relation, "delta": settings.privacy.delta}
    roles = [role for role, names in house.roles.items() if names]
    if settings.privacy.off:
        return {**promised, "epsilon": dict.fromkeys(roles)}
    rate = settings.federation.rate if settings.federation.sampling == "poisson" else 1.0
    votes = [Event(noise.votes)] * noise.vote_releases if noise.vote_releases else []
    updates = [Event(noise.updates, rate)] * noise.update_releases if noise.update_releases else []
    events = {
        "proxy": votes,
        "local": updates + (votes if settings.synthesis.voters == "all" else []),
        "split": updates,
    }
    assert settings.privacy.delta is not None
    spent: dict[str, float | None] = {role: epsilon(events[role], settings.privacy.delta) for role in roles}
    if settings.synthesis.votes == "exact" and house.voters:
        spent["proxy"] = None
    return {**promised, "epsilon": spent}


def _sum(values: Sequence[int | None]) -> int | None:
    return None if any(value is None for value in values) else sum(value or 0 for value in values)
