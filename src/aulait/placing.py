"""From settings and the loaded base to a place for every tier: set in the file, or planned for its machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from aulait import cut, model
from aulait.anatomy import anatomy
from aulait.compute import cost, machines
from aulait.compute import plan as planner
from aulait.compute.dial import WIRE_BYTES
from aulait.compute.plan import Assignment, Demand
from aulait.config import Settings
from aulait.errors import ConfigError, ModelError
from aulait.lora import Shapes
from aulait.model import Base
from aulait.registry import require
from aulait.rows import Encoder
from aulait.seeds import Seeds
from aulait.tiers import TierConfig
from aulait.train import Work, draws
from aulait.types import Adapter, Plan, Profile, Record

LOOKED_AT = 50  # clients whose batches are looked at to know how long a row is
EMBEDDER = {"parameters": 22_700_000, "width": 384}  # MiniLM; another embedder is taken to be as large


@dataclass(frozen=True)
class Place:
    """What the clients of a tier do.

    Attributes:
        plan: the work of each.
        why: one clause.
        profile: their machine; None where none is named.
        demand: the work of a full share as the planner saw it.
    """

    plan: Plan
    why: str
    profile: Profile | None
    demand: Demand


def places(
    settings: Settings, base: Base, shapes: Shapes, encode: Encoder, members: Mapping[str, Sequence[Sequence[Record]]],
    public: Sequence[str | Record], seeds: Seeds,
) -> dict[str, Place]:
    """Tier -> its place.

    Args:
        settings: the experiment.
        base: the loaded base.
        shapes: of the adapted layers.
        encode: records to tokens.
        members: tier -> the records of each of its clients.
        public: public texts.
        seeds: of the run.

    Raises:
        ConfigError: a machine can carry nothing, or not what the file says; all such tiers, one line each.
    """
    check_cut(settings, base)
    everyone = [records for clients in members.values() for records in clients]
    found: dict[str, Place] = {}
    problems = []
    for tier in settings.federation.tier:
        profile = tier.profile()
        plan = Plan(tier.name, "local" if tier.placement == "auto" else tier.placement, tier.rank or settings.adapter.rank,
                    tier.steps or settings.train.steps, tier.batch or settings.train.batch)
        demand = _demand(settings, base, shapes, plan, _row(settings, encode, base, everyone, public, plan, seeds), public, tier)
        if profile is None or not members.get(tier.name):
            found[tier.name] = Place(plan, "set in the experiment file", profile, demand)
            continue
        chosen = _auto(settings, demand, profile, plan) if tier.placement == "auto" else _written(settings, demand, profile, plan)
        if isinstance(chosen, str):
            problems.append(f"federation.tier '{tier.name}': {chosen}")
            continue
        plan = replace(plan, placement=chosen.placement, rank=chosen.rank, steps=chosen.steps, batch=chosen.batch)
        found[tier.name] = Place(plan, chosen.why, profile, demand)
    require(not problems, ConfigError, "\n".join(problems))
    return found


def any_demand(house: Any) -> Demand:
    """The work of a full share in the first tier; its base and row are those of every tier."""
    found: Demand = next(iter(house.places.values())).demand
    return found


def check_cut(settings: Settings, base: Base) -> None:
    """Raise ModelError when a tier is split and the base cannot be cut where the settings say."""
    if any(tier.placement == "split" for tier in settings.federation.tier):
        cut.check(base, settings.compute.cut)


def _auto(settings: Settings, demand: Demand, profile: Profile, plan: Plan) -> Assignment | str:
    ranks = planner.halvings(plan.rank) if settings.method.TRAITS.unequal_ranks else (plan.rank,)
    return planner.choose(demand, profile, settings.compute, ranks, plan.batch)


def _written(settings: Settings, demand: Demand, profile: Profile, plan: Plan) -> Assignment | str:
    """What the file says, if the machine's memory holds it; the dial is for "auto" only."""
    found = planner.WAYS[plan.placement](demand, profile, plan.rank, plan.steps, plan.batch)
    if planner.fits(found, profile):
        slow = settings.compute.round_s is not None and found.round_s > settings.compute.round_s
        more = f"; takes {found.round_s:,.3g} s, more than compute.round_s = {settings.compute.round_s:g}" if slow else ""
        return replace(found, why="set in the experiment file" + more)
    smaller = [other for rank in planner.halvings(plan.rank) for batch in planner.halvings(plan.batch)
               if planner.fits(other := planner.WAYS[plan.placement](demand, profile, rank, plan.steps, batch), profile)]
    nearest = max(smaller, key=lambda other: (other.batch, other.rank), default=None)
    advice = (f"rank = {nearest.rank} and batch = {nearest.batch}" if nearest is not None and plan.placement != "proxy"
              else "placement = 'auto', or a machine with more memory")
    return (f"placement = '{plan.placement}' takes {planner.size(found.memory_bytes)} at rank {plan.rank} and batch {plan.batch}, machine "
            f"'{profile.name}' has {planner.size(profile.memory_bytes or 0)}; nearest that fits: {advice}")


def _demand(
    settings: Settings, base: Base, shapes: Shapes, plan: Plan, row: tuple[int, int, int], public: Sequence[str | Record], tier: TierConfig
) -> Demand:
    """The work of a full share."""
    synthesis, trains = settings.synthesis, settings.method.TRAITS.trains
    no_split = _no_split(settings, base)
    depth = settings.compute.cut
    front = set() if no_split else set(cut.front(shapes, depth))
    no_proxy = "" if public and synthesis.proxies != "absent" else "proxy needs public texts (data.public) and synthesis.proxies"
    pool = min(synthesis.pool, max(1, len(public)))
    capped = settings.data.records_per_client
    own = cost.embedding(EMBEDDER["parameters"], EMBEDDER["width"], capped, synthesis.max_tokens)
    vote = (own + cost.voting(capped, pool, EMBEDDER["width"]), (4 * pool, 4 * pool * EMBEDDER["width"]))
    ranks = ranks_of(shapes, tier.attention_rank)

    def numbers(rank: int, layers: set[str] | None, part: str) -> int:
        own_ranks = ranks(rank)
        return sum(own_ranks[n] * (("B" in part) * m + ("A" in part) * k) for n, (m, k) in shapes.items() if layers is None or n in layers)

    return Demand(
        anatomy=anatomy(base), dtype=settings.model.dtype, part=trains, ranks=ranks, steps=plan.steps, row=row,
        travels=lambda rank: (4 * numbers(rank, None, trains), 4 * numbers(rank, None, "AB")),
        front=lambda rank: (4 * numbers(rank, front, trains), 4 * numbers(rank, front, "AB")),
        vote=vote, cut=None if no_split else depth, wire_bytes=WIRE_BYTES[settings.compute.wire],
        server=machines.find(settings.compute.server), no_split=no_split, no_proxy=no_proxy)


def _no_split(settings: Settings, base: Base) -> str:
    """Why no tier may be split; empty if one may."""
    if not settings.privacy.off:
        return "split is refused under privacy (activations of single records leave the site)"
    if settings.data.pooled or not settings.method.TRAITS.splits:
        return f"algorithm '{settings.algorithm['name']}' has no split clients" if not settings.data.pooled else "data.pooled has no sites"
    try:
        cut.check(base, settings.compute.cut)
    except ModelError as error:
        return str(error)
    return ""


def ranks_of(shapes: Shapes, attention_rank: int | None) -> Callable[[int], Mapping[str, int]]:
    """A tier's rank -> layer -> rank."""

    def ranks(rank: int) -> Mapping[str, int]:
        return {layer: attention_rank or rank if layer.rpartition(".")[2] in model.ATTENTION else rank for layer in shapes}

    return ranks


def _row(
    settings: Settings, encode: Encoder, base: Base, clients: Sequence[Sequence[Record]], public: Sequence[str | Record], plan: Plan,
    seeds: Seeds,
) -> tuple[int, int, int]:
    """(tokens, source tokens, scored positions) of one padded record: as set, of public texts under privacy, else of the clients' own."""
    if settings.compute.tokens is not None:
        tokens = min(settings.compute.tokens, settings.model.context)
        return (tokens, tokens, tokens) if settings.model.kind == "seq2seq" else (tokens, 0, tokens)
    if settings.privacy.off:
        texts: list[Any] = [records for records in islice((c for c in clients if c), LOOKED_AT)]
    else:
        texts = [[Record(text) if isinstance(text, str) else text for text in islice(public, 8 * plan.batch)]] if public else []
    if not texts:
        return (settings.model.context, settings.model.context if settings.model.kind == "seq2seq" else 0, settings.model.context)
    found = [step for number, records in enumerate(texts)
             for step in widths(settings, encode, records, plan, seeds.integer("widths", number))]
    means = [statistics.fmean(column) for column in zip(*found, strict=True)]
    return math.ceil(means[0]), math.ceil(means[1]), math.ceil(means[2])


def widths(settings: Settings, encode: Encoder, records: Sequence[Record], plan: Plan, seed: int) -> list[tuple[int, int, float]]:
    """(longest row, longest source, scored positions of a row) of every step that a site draws with a seed."""
    coded = [encode(record) for record in records]
    work = Work(Adapter({}, 1.0), tuple(records), "B", plan.steps, plan.batch, 0.0, seed)
    found = []
    for step in draws(work, [len(ids) for ids, _ in coded]):
        some = [coded[i] for i in step]
        seq2seq = settings.model.kind == "seq2seq"
        scored = statistics.fmean(len(ids) - (length if seq2seq else max(length, 1)) for ids, length in some)
        if seq2seq:
            found.append((max(len(ids) - length for ids, length in some), max(length for _, length in some), scored))
        else:
            found.append((max(len(ids) for ids, _ in some), 0, scored))
    return found
