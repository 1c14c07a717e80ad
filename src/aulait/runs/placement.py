"""From settings and the loaded base to the work of every tier's clients: set in the file, or
planned for their machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice

from aulait.core.errors import ConfigError, ModelError, require
from aulait.core.factors import Trainable
from aulait.core.lora import Shapes
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, Plan, Profile, Record
from aulait.federation import planner
from aulait.federation.config import WIRE_BYTES, CutPlace
from aulait.federation.planner import Assignment, Demand
from aulait.federation.tiers import TierConfig
from aulait.methods.contract import RunContext
from aulait.models.attention import is_attention
from aulait.models.loading import Base
from aulait.models.shape import model_shape
from aulait.resources import cost_model, profiles
from aulait.resources.capacity import EMBEDDER
from aulait.resources.cost_model import ModelShape
from aulait.runs.attendance import Attendance, expected_bytes
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import TierPlan
from aulait.synthesis.private_evolution import vote_bytes
from aulait.training import split_model
from aulait.training.batches import Encoder
from aulait.training.trainer import LocalTraining, draws

NO_SPLIT_DROPOUT = ("adapter.dropout is for training in one place: the server does not know the "
                    "record that decides what is left out")
_ALIKE = "client"  # the name of one that stands for all
LOOKED_AT = 50  # clients whose batches are looked at to know how long a row is


@dataclass(frozen=True)
class PlacementFacts:
    """What placing looks at, beside the tiers' own tables.

    Attributes:
        settings: the experiment.
        base: the loaded base.
        shapes: of the adapted layers.
        encode: records to tokens.
        members: tier -> the records of each of its clients.
        public: public texts.
        seeds: of the run.
        here: whether ``members`` are the clients' real records; they are not where those lie
            elsewhere.
    """

    settings: Settings
    base: Base
    shapes: Shapes
    encode: Encoder
    members: Mapping[str, Sequence[Sequence[Record]]]
    public: Sequence[str | Record]
    seeds: Seeds
    here: bool

    @cached_property
    def model_shape(self) -> ModelShape:
        """Of the base."""
        return model_shape(self.base)

    @cached_property
    def no_split(self) -> Callable[[CutPlace], str]:
        """Cut -> why no tier may be split there; empty if one may."""
        return cache(partial(_no_split, self.settings, self.base))


def tier_plans(facts: PlacementFacts) -> dict[str, TierPlan]:
    """Tier -> what its clients do.

    Raises:
        ConfigError: a machine can carry nothing, or not what the file says, or no round can end
            before the deadline; all such tiers, one line each.
    """
    settings = facts.settings
    _check_cut(settings, facts.base)
    found: dict[str, TierPlan] = {}
    problems, fastest_s = [], []
    for tier in settings.federation.tier:
        profile = tier.profile()
        cut = cut_of(settings, tier)
        plan = Plan(tier.name, "local" if tier.placement == "auto" else tier.placement,
                    tier.rank or settings.adapter.rank,
                    tier.steps or settings.train.steps, tier.batch or settings.train.batch,
                    cut if tier.placement == "split" and cut != "auto" else None)
        made = TierPlan(plan, "set in the experiment file", profile,
                        cache(partial(_demand, facts, plan, tier)))
        if profile is not None and facts.members.get(tier.name):
            chosen = (_auto if tier.placement == "auto" else _written)(settings, made.demand,
                profile, plan)
            if isinstance(chosen, str):
                problems.append(f"federation.tier '{tier.name}': {chosen}")
                continue
            plan = replace(plan, placement=chosen.placement, rank=chosen.rank, steps=chosen.steps,
                           batch=chosen.batch, cut=chosen.cut)
            made = replace(made, plan=plan, why=chosen.why)
            fastest_s += [chosen.round_s] if chosen.placement != "proxy" else []
        found[tier.name] = made
    problems += _too_slow(settings.compute.deadline_s, fastest_s)
    require(not problems, ConfigError, "\n".join(problems))
    return found


def _too_slow(deadline_s: float | None, rounds_s: Sequence[float]) -> list[str]:
    """A problem where no tier's round ends before the deadline."""
    if not rounds_s or deadline_s is None or deadline_s >= min(rounds_s):
        return []
    return [f"compute.deadline_s = {deadline_s:g} and no client answers so soon, the fastest tier "
            f"needs {min(rounds_s):,.3g} s; raise it, or let clients do less (fewer steps, a "
            "smaller rank)"]


def _check_cut(settings: Settings, base: Base) -> None:
    """Raise when a tier is split and the base cannot be cut where the settings say, or adapters
    have dropout."""
    split = [tier for tier in settings.federation.tier if tier.placement == "split"]
    require(not split or not settings.adapter.dropout, ConfigError,
            f"adapter.dropout = {settings.adapter.dropout:g} with a split tier found; "
            f"{NO_SPLIT_DROPOUT}; set adapter.dropout = 0, or another placement")
    for cut in dict.fromkeys(cut_of(settings, tier) for tier in split):
        split_model.check_cut(base, _tried(base, cut))


def cut_of(settings: Settings, tier: TierConfig) -> CutPlace:
    """Where the model of a tier is cut, if it is split."""
    return tier.cut or settings.compute.cut


def _tried(base: Base, cut: CutPlace) -> int:
    """The cut itself; where the planner chooses, the first of those that are possible."""
    return next(iter(split_model.possible_cuts(base)), 1) if cut == "auto" else cut


def _auto(settings: Settings, demand: Demand, profile: Profile, plan: Plan) -> Assignment | str:
    ranks = planner.halvings(plan.rank) if settings.method.TRAITS.unequal_ranks else (plan.rank,)
    return planner.choose_placement(demand, profile, settings.compute, ranks, plan.batch)


def _written(settings: Settings, demand: Demand, profile: Profile, plan: Plan) -> Assignment | str:
    """What the file says, if the machine's memory holds it; the dial is for "auto" only."""
    found = planner.at_best_cut(plan.placement, demand, profile, plan.rank, plan.steps, plan.batch)
    if planner.fits(found, profile):
        slow = settings.compute.round_s is not None and found.round_s > settings.compute.round_s
        more = (
            f"; takes {found.round_s:,.3g} s, more than compute.round_s = "
            f"{settings.compute.round_s:g}" if slow else ""
        )
        where = (f"; cut after {found.cut} blocks, where its round ends soonest"
                 if len(demand.ways(plan.placement)) > 1 else "")
        return replace(found, why="set in the experiment file" + where + more)
    ranks = planner.halvings(plan.rank) if settings.method.TRAITS.unequal_ranks else (plan.rank,)
    smaller = [other for rank in ranks for batch in planner.halvings(plan.batch)
               if planner.fits(other := planner.at_best_cut(plan.placement, demand, profile, rank,
                   plan.steps, batch), profile)]
    nearest = max(smaller, key=lambda other: (other.batch, other.rank), default=None)
    advice = (f"rank = {nearest.rank} and batch = {nearest.batch}" if nearest is not None
              and plan.placement != "proxy"
              else "placement = 'auto', or a machine with more memory")
    return (f"placement = '{plan.placement}' takes {planner.size_text(found.memory_bytes)} at rank "
            f"{plan.rank} and batch {plan.batch}, machine '{profile.name}' has "
            f"{planner.size_text(profile.memory_bytes or 0)}; nearest that fits: {advice}")


def _demand(facts: PlacementFacts, plan: Plan, tier: TierConfig) -> Demand:
    """The work of a full share of a tier."""
    settings, shapes = facts.settings, facts.shapes
    synthesis, cut = settings.synthesis, cut_of(settings, tier)
    no_split = facts.no_split(cut)
    cuts = () if no_split else split_model.possible_cuts(facts.base) if cut == "auto" else (cut,)
    learns = synthesis.proxies != "absent" and bool(facts.public)
    votes = (
        learns and synthesis.proxies in ("synthetic", "noise") and synthesis.selection != "random"
    )
    ranks = ranks_of(shapes, tier.attention_rank)
    # only a sampled round asks more than it plans for
    share = (1 + settings.compute.over_selection) * settings.federation.share
    crowd = sum(len(facts.members.get(other.name, ())) for other in settings.federation.tier
                if other.placement in ("split", "auto"))
    return Demand(
        model_shape=facts.model_shape, dtype=settings.model.dtype,
        trainable=settings.method.TRAITS.trains,
        ranks=ranks, steps=plan.steps,
        row=_row(facts, plan), travels=_travels(facts, shapes, ranks),
        front=_front(facts, shapes, ranks),
        vote=_vote(settings, synthesis.ballot(1, max(1, len(facts.public)))) if votes else None,
        cut=next(iter(cuts), None), cuts=cuts, wire_bytes=WIRE_BYTES[settings.compute.wire],
        server=profiles.find_profile(settings.compute.server),
        crowd=max(1, round(share * crowd)), rows_at_once=settings.train.rows_at_once,
        no_split=no_split, no_proxy="" if learns
        else "proxy needs public texts (data.public) and synthesis.proxies")


def _vote(settings: Settings, pool: int) -> tuple[cost_model.Cost, tuple[int, int]]:
    """The first round of votes, in which a client embeds its records; and bytes up and down."""
    capped, (_, width) = settings.data.records_per_client, EMBEDDER
    own = cost_model.embedding(*EMBEDDER, capped, settings.synthesis.max_tokens)
    return own + cost_model.voting(capped, pool, width), vote_bytes(pool, width)


def _travels(facts: PlacementFacts, shapes: Shapes,
             ranks: planner.RanksByLargest) -> Callable[[int], tuple[int, int]]:
    """Rank -> bytes (up, down) of a client's factors in a round by the method's own formula, all
    clients alike and none of them lost."""
    settings = facts.settings
    clients = max(1, sum(len(own) for own in facts.members.values()))
    here, other = settings.federation.again(clients)

    @cache
    def travels(rank: int) -> tuple[int, int]:
        own = {layer: value for layer, value in ranks(rank).items() if layer in shapes}
        rounds, adapter = settings.train.rounds, settings.adapter
        context = RunContext(shapes, adapter.rank, adapter.alpha, facts.seeds, rounds,
                             {_ALIKE: own}, adapter.scaling)
        before = Attendance(here, {layer: other * (clients - 1) * value
                                   for layer, value in own.items()}, (_ALIKE,))
        # the second round stands for all: in the first some methods send less
        round = min(2, max(1, rounds))
        return expected_bytes(settings.method, settings.method_config, context, round, _ALIKE,
                              before)

    return travels


def _front(facts: PlacementFacts, shapes: Shapes,
           ranks: planner.RanksByLargest) -> Callable[[int, int], tuple[int, int]]:
    """(rank, cut) -> bytes (up, down) of the factors in front of the cut."""

    @cache
    def of_cut(cut: int) -> Callable[[int], tuple[int, int]]:
        half = split_model.client_layers(shapes, cut)
        return _travels(facts, {layer: shapes[layer] for layer in half}, ranks)

    return lambda rank, cut: of_cut(cut)(rank)


def _no_split(settings: Settings, base: Base, cut: CutPlace) -> str:
    """Why no tier may be split there; empty if one may."""
    if not settings.privacy.off:
        return "split is refused under privacy (activations of single records leave the site)"
    if settings.adapter.dropout:
        return NO_SPLIT_DROPOUT
    if settings.data.pooled or not settings.method.TRAITS.splits:
        return (
            f"algorithm '{settings.algorithm['name']}' has no split clients"
            if not settings.data.pooled else "data.pooled has no sites"
        )
    try:
        split_model.check_cut(base, _tried(base, cut))
    except ModelError as error:
        return str(error)
    return ""


def ranks_of(shapes: Shapes, attention_rank: int | None) -> Callable[[int], Mapping[str, int]]:
    """A tier's rank -> layer -> rank."""

    def ranks(rank: int) -> Mapping[str, int]:
        return {layer: attention_rank or rank if is_attention(layer) else rank
                for layer in shapes}

    return ranks


def _row(facts: PlacementFacts, plan: Plan) -> tuple[int, int, int]:
    """(tokens, source tokens, scored positions) of one padded record: as set, of public texts under
    privacy, else of the clients' own."""
    settings, seq2seq = facts.settings, facts.settings.model.kind == "seq2seq"
    longest = min(settings.compute.tokens or settings.model.context, settings.model.context)
    texts: list[list[Record]] = []
    if settings.compute.tokens is None and settings.privacy.off and facts.here:
        everyone = (records for clients in facts.members.values() for records in clients if records)
        texts = [list(records) for records in islice(everyone, LOOKED_AT)]
    elif settings.compute.tokens is None:
        some = [text if isinstance(text, Record) else Record(text)
                for text in islice(facts.public, 8 * plan.batch)]
        texts = [some] if some and not (seq2seq and some[0].prompt is None) else []
    if not texts:
        return longest, longest if seq2seq else 0, longest
    found = [step for number, records in enumerate(texts)
             for step in widths(settings, facts.encode, records, plan,
                                facts.seeds.integer("widths", number))]
    tokens, source, scored = (math.ceil(statistics.fmean(column))
                              for column in zip(*found, strict=True))
    return tokens, source, scored


def widths(settings: Settings, encode: Encoder, records: Sequence[Record], plan: Plan,
           seed: int) -> list[tuple[int, int, float]]:
    """(longest row, longest source, scored positions of a row) of every step that a site draws with
    a seed."""
    coded = [encode(record) for record in records]
    work = LocalTraining(Adapter({}, 1.0), tuple(records), Trainable.B, plan.steps, plan.batch, 0.0,
                         seed)
    return [padded([coded[i] for i in step], settings.model.kind)
            for step in draws(work, [len(ids) for ids, _ in coded])]


def padded(rows: Sequence[tuple[list[int], int]], kind: str) -> tuple[int, int, float]:
    """(longest row, longest source, mean scored positions of a row) of encoded records in one
    pass."""
    if kind == "seq2seq":
        return (max(len(ids) - n for ids, n in rows), max(n for _, n in rows),
                statistics.fmean(len(ids) - n for ids, n in rows))
    return max(len(ids) for ids, _ in rows), 0, statistics.fmean(
        len(ids) - max(n, 1) for ids, n in rows)
