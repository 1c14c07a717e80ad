"""``aulait plan``: what a run would ask of whom, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aulait.cli import terminal
from aulait.cli.run import Json, Set, malformed

MINILM_WIDTH, MINILM_PARAMETERS = 384, 22_700_000


def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The experiment, a TOML file.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """See placement, work, bytes, FLOPs and epsilon of every tier. Nothing is trained.

    Bytes are exact for a full cohort; FLOPs are estimates and upper bounds (texts as long as the context).
    """
    from aulait import assemble, config

    with terminal.work(as_json):
        house = assemble.assemble(config.read(file, overrides or []), assemble.Workshop())
        malformed(house.corpus.malformed)
        found = outlook(house)
    if as_json:
        terminal.document(found)
    else:
        _print(found)


def outlook(house: Any) -> dict[str, Any]:
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


def _embedder(house: Any) -> tuple[int, int | None]:
    """Width D and parameters of the embedder; only an unknown one is loaded, and only when somebody votes."""
    if house.settings.synthesis.embedder == "minilm" or not house.voters:
        return MINILM_WIDTH, MINILM_PARAMETERS
    return house.embedder().width, None


def trainable(house: Any) -> int:
    """Numbers that a client trains: B alone for ffa, else A and B."""
    rank, both = house.setting.rank, house.settings.algorithm["name"] != "ffa"
    return sum(rank * (m + (n if both else 0)) for m, n in house.shapes.values())


def _tier(house: Any, tier: Any, width: int, embedder_parameters: int | None) -> dict[str, Any]:
    """What one client of a tier does, sends and receives."""
    settings = house.settings
    plans = [site.plan for site in house.sites.values() if site.plan.tier == tier.name]
    placement = plans[0].placement if plans else tier.placement
    rank, steps, batch = (getattr(plans[0], key) if plans else None for key in ("rank", "steps", "batch"))
    trains, votes = placement == "local", (placement == "proxy" or settings.synthesis.voters == "all") and bool(house.voters)
    known = settings.algorithm["name"] in ("ffa", "fedit")
    adapter_bytes = (4 * trainable(house) if known else None) if trains else 0
    pool, rounds, voted = settings.synthesis.pool, settings.train.rounds, settings.synthesis.rounds if votes else 0
    first = min(pool, len(house.corpus.public))  # the first vote is on public texts
    candidates = first + (voted - 1) * pool if voted else 0
    taken = rounds * (settings.federation.rate if settings.federation.sampling == "poisson" else 1.0) if trains else 0.0

    def whole(vote_bytes: int) -> float | None:
        return None if adapter_bytes is None else len(plans) * (taken * adapter_bytes + candidates * vote_bytes)

    return {
        "name": tier.name, "clients": len(plans), "placement": placement, "why": "set in the experiment file",
        "rank": rank if trains else None, "steps": steps if trains else None, "batch": batch if trains else None,
        "trainable": trainable(house) if trains else 0,
        "train_down_bytes_round": adapter_bytes, "train_up_bytes_round": adapter_bytes,
        "vote_down_bytes_round": 4 * pool * width if votes else 0, "vote_up_bytes_round": 4 * pool if votes else 0,
        "down_bytes_run": whole(4 * width), "up_bytes_run": whole(4),
        "flop_round_estimate": _train_flop(house, steps or 0, batch or 0) if trains else 0,
        "flop_vote_estimate": _vote_flop(settings, embedder_parameters) if votes else 0,
    }


def _train_flop(house: Any, steps: int, batch: int) -> int:
    """Forward 2 P a token, and 2 P for the gradient that passes back through the frozen chain."""
    return int(4 * house.base.parameters * steps * batch * house.settings.model.context)


def _vote_flop(settings: Any, parameters: int | None) -> int | None:
    """Embedding a client's records, once in a run."""
    return None if parameters is None else 2 * parameters * settings.data.records_per_client * settings.synthesis.max_tokens


def _server(house: Any) -> dict[str, Any]:
    """The proxies' training on the server."""
    synthesis, train = house.settings.synthesis, house.settings.train
    stands = len(house.roles["proxy"]) if synthesis.proxies != "absent" else 0
    tier = next((t for t in house.settings.federation.tier if t.placement == "proxy"), None)
    steps, batch = (tier and tier.steps) or train.steps, (tier and tier.batch) or train.batch
    count = min(synthesis.proxy_count, stands, synthesis.texts)
    return {"proxies": count, "stand_for": stands, "texts": synthesis.texts if house.voting else 0,
            "flop_round_estimate": count * _train_flop(house, steps, batch)}


def _releases(house: Any) -> list[dict[str, Any]]:
    """The planned releases: how many, how much noise."""
    from aulait.algorithms.evolution import vote_bound

    privacy, noise = house.settings.privacy, house.noise
    factor = 2.0 if privacy.relation == "replace" else 1.0
    update_bound = float(privacy.clip) * privacy.clip_scale if privacy.clip != "proxies" else None
    planned = (("synthesis", noise.vote_releases, noise.votes, vote_bound(house.settings.data.records_per_client)),
               ("train", noise.update_releases, noise.updates, update_bound))
    return [
        {"stage": stage, "releases": count, "noise_multiplier": z, "sensitivity": None if bound is None else factor * bound,
         "sigma": None if bound is None else z * factor * bound}
        for stage, count, z, bound in planned if count
    ]


def _privacy(house: Any) -> dict[str, Any]:
    """Epsilon that every role will have spent after the last round; null is infinite."""
    from aulait.privacy.account import Event, epsilon

    settings, noise = house.settings, house.noise
    promised = {"off": settings.privacy.off, "relation": settings.privacy.relation, "delta": settings.privacy.delta}
    roles = [role for role, names in house.roles.items() if names]
    if settings.privacy.off:
        return {**promised, "epsilon": dict.fromkeys(roles)}
    rate = settings.federation.rate if settings.federation.sampling == "poisson" else 1.0
    votes = [Event(noise.votes)] * noise.vote_releases if noise.vote_releases else []
    updates = [Event(noise.updates, rate)] * noise.update_releases if noise.update_releases else []
    events = {"proxy": votes, "local": updates + (votes if settings.synthesis.voters == "all" else []), "split": updates}
    spent: dict[str, float | None] = {role: epsilon(events[role], settings.privacy.delta) for role in roles}
    if settings.synthesis.votes == "exact" and house.voters:
        spent["proxy"] = None
    return {**promised, "epsilon": spent}


def _sum(values: Sequence[float | None]) -> float | None:
    return None if any(value is None for value in values) else math.fsum(value or 0.0 for value in values)


def _print(found: dict[str, Any]) -> None:
    from aulait.report import numbers as n

    def work(value: Any) -> str:
        return "not known" if value is None else f"{n.significant(value / 1e9)} GFLOP"

    def size(value: Any) -> str:
        return "not known" if value is None else n.size(value)

    rounds = found["rounds"]
    heading = (f"{found['name']}: {found['algorithm']} on {found['model']} ({found['parameters'] / 1e6:,.1f} M parameters), "
               f"{n.counted(found['clients'], 'client')}, {rounds['synthesis']} + {rounds['train']} rounds")
    rows = [(t["name"], t["clients"], t["placement"], t["why"], t["rank"] or "", t["steps"] or "", t["batch"] or "", n.count(t["trainable"]))
            for t in found["tiers"]]
    terminal.table(heading, ("tier", "clients", "placement", "why", "rank", "steps", "batch", "trainable"), rows, right=(1, 4, 5, 6, 7))
    terminal.say()
    cost = [(t["name"], size(t["vote_down_bytes_round"]), size(t["vote_up_bytes_round"]), size(t["train_down_bytes_round"]),
             size(t["train_up_bytes_round"]), size(t["down_bytes_run"]), size(t["up_bytes_run"])) for t in found["tiers"]]
    terminal.table("bytes: of a client in a round, and of all clients in the whole run",
                   ("tier", "vote down", "vote up", "training down", "training up", "run down", "run up"), cost, right=range(1, 7))
    terminal.say()
    server = found["server"]
    flop = [(t["name"], work(t["flop_round_estimate"]), work(t["flop_vote_estimate"])) for t in found["tiers"]]
    flop.append((f"server ({n.counted(server['proxies'], 'proxy')[:-1] + 'ies' if server['proxies'] != 1 else '1 proxy'})",
                 work(server["flop_round_estimate"]), ""))
    terminal.table("FLOPs, estimated, at most: of a client (or the server) in a training round; embedding, once in a run",
                   ("tier", "training round", "embedding"), flop, right=(1, 2))
    terminal.say()
    _print_privacy(found)


def _print_privacy(found: dict[str, Any]) -> None:
    from aulait.report import numbers as n

    privacy = found["privacy"]
    if privacy["off"]:
        terminal.say("privacy  off: epsilon is infinite")
        return
    rows = [(r["stage"], r["releases"], n.significant(r["noise_multiplier"], 4),
             n.significant(r["sigma"], 4) if r["sigma"] is not None else "noise multiplier × median norm of the proxies' updates")
            for r in found["releases"]]
    terminal.table(f"releases (delta {privacy['delta']:g}, {privacy['relation']})", ("stage", "releases", "noise multiplier", "sigma"), rows,
                   right=(1, 2))
    terminal.say()
    terminal.table("epsilon of a client after the whole run", ("role", "epsilon"),
                   [(role, terminal.epsilon(value)) for role, value in privacy["epsilon"].items()], right=(1,))
