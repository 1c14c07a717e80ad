"""What a run would ask of whom, from its settings and shapes: nothing is trained, and under privacy
no text of a client is looked at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aulait.core.files import JsonObject
from aulait.core.types import Record, Turn
from aulait.core.units import units
from aulait.data import config as data_settings
from aulait.data import sources
from aulait.federation.tiers import TierConfig
from aulait.methods.contract import PublicTextMethod
from aulait.methods.shared.client_update import factor_bytes
from aulait.models.layer_summary import summarise_layers
from aulait.privacy.plan import PrivacyPlan
from aulait.resources.capacity import EMBEDDER
from aulait.runs import size_law
from aulait.runs.advice import advise
from aulait.runs.noise_choices import noise_choices
from aulait.runs.prepared import PreparedRun
from aulait.runs.virtual_time.round_time import RoundCosts
from aulait.synthesis.private_evolution import vote_bytes
from aulait.training import split_model

PAIR = Record("the answer", "a question")
# made-up records, by format
EXAMPLES = {"text": Record("a text"), "pairs": PAIR,
            "chat": replace(PAIR, before=(Turn("user", "a first question"),
                                          Turn("assistant", "its answer")))}


def summarise_plan(run: PreparedRun) -> JsonObject:
    """The plan of a run as plain values: tiers, server, releases, epsilon by role, totals."""
    settings, federation = run.settings, run.federation
    costs, votes = RoundCosts.of(run), _vote_costs(run)
    used = {site.plan.tier for site in federation.sites.values()}
    tiers = [_tier(run, costs, votes, tier) for tier in settings.federation.tier
             if tier.name in used]
    totals = {f"{way}_bytes": sum(tier[f"{way}_bytes_run"] for tier in tiers)
              for way in ("down", "up")}
    return {
        "name": settings.run.name,
        "algorithm": settings.algorithm["name"],
        "model": settings.model.name,
        "parameters": run.models.base.parameters,
        "adapter": _adapter(run),
        "data": {"source": settings.data.source, "read_as": sources.read_as(
            settings.data.source, data_settings.asked(settings.data, settings.unit_rule.field))},
        "clients": len(federation.sites),
        "records": _records(run),
        "rounds": {"synthesis": settings.votings if federation.breeds else 0,
                   "train": settings.train.rounds},
        "stages": [{"stage": span.name, "rounds": span.last - span.first + 1}
                   for span in settings.stage_spans],
        "tiers": tiers,
        "server": _server(run, costs),
        "workers": _workers(run),
        "releases": _releases(run.privacy),
        "privacy": {**_privacy(run.privacy,
                               [role for role, names in federation.roles.items() if names]),
                    **_protected(run), "adaptive_clip": _adaptive_clip(run)},
        "schedule": _schedule(run, costs),
        "noise": _noise(run),
        "advice": advise(run).document(),
        "total": totals,
    }


def _adapter(run: PreparedRun) -> JsonObject:
    """What the adapter is, and on which layers."""
    own = run.settings.adapter
    return {"rank": own.rank, "alpha": own.alpha, "scaling": own.scaling, "dropout": own.dropout,
            **summarise_layers(run.models.base, run.context.shapes)}


def _records(run: PreparedRun) -> JsonObject:
    """What a row holds, in which form the base reads it, and a made-up record in that form: no
    client's text is shown."""
    encode, data = run.models.learner.encode, run.settings.data
    record = EXAMPLES[data.format if data.answers else "text"]
    coded = encode.coded(record)
    read = encode.form.tokenizer.decode
    return {
        "format": data.format,
        "form": encode.form.name if data.answers else "text",
        "example": str(read(coded.ids)),
        "learnt": [str(read(coded.ids[first:behind])) for first, behind in coded.spans],
    }


@dataclass(frozen=True)
class VoteCosts:
    """What voting takes one client.

    Attributes:
        round: bytes (up, down) of the largest round.
        run: bytes (up, down) of all rounds; the first vote is on the public texts there are.
        flop: of embedding its records, once in a run; None where the embedder's size is not known.
    """

    round: tuple[int, int]
    run: tuple[int, int]
    flop: int | None


def _vote_costs(run: PreparedRun) -> VoteCosts:
    """Only an unknown embedder is loaded, and only when somebody votes."""
    config, (parameters, width) = run.settings.synthesis, EMBEDDER
    flop: int | None = (
        2 * parameters * run.settings.data.records_per_client * config.max_tokens)
    if config.embedder != "minilm" and run.federation.voters:
        width, flop = run.models.embedder().width, None
    public = len(run.federation.corpus.public)
    candidates = sum(config.ballot(round, public) for round in range(1, run.settings.votings + 1))
    return VoteCosts(vote_bytes(config.largest_ballot, width), vote_bytes(candidates, width), flop)


def _tier(run: PreparedRun, costs: RoundCosts, votes: VoteCosts,
          tier: TierConfig) -> JsonObject:
    """What one client of a tier does, sends and receives, and what that takes on its machine."""
    own, sites = run.federation.tiers[tier.name], run.federation.sites.values()
    members = sorted(site.name for site in sites if site.plan.tier == tier.name)
    trains = bool(members) and own.plan.placement != "proxy"
    voting = bool({*members} & {*run.federation.voters})
    up, down = _trained_bytes(run, costs, members) if trains else (0, 0)
    (vote_up, vote_down), (votes_up, votes_down) = (
        (votes.round, votes.run) if voting else ((0, 0), (0, 0)))
    share = run.settings.federation.part(len(run.federation.trainers))
    each = max(1, len(members) * run.settings.train.rounds)
    return {
        "name": tier.name,
        "clients": len(members),
        "placement": own.plan.placement,
        "machine": tier.machine,
        "why": own.why,
        "rank": own.plan.rank if trains else None,
        "cut": own.plan.cut if trains else None,
        "steps": own.plan.steps if trains else None,
        "batch": own.plan.batch if trains else None,
        "trainable": _trainable(run, members[0]) if trains else 0,
        "train_down_bytes_round": round(down / each),
        "train_up_bytes_round": round(up / each),
        "basis_bytes": _once(run, members[0]) if trains else 0,
        "vote_down_bytes_round": vote_down,
        "vote_up_bytes_round": vote_up,
        "vote_down_bytes_run": len(members) * votes_down,
        "vote_up_bytes_run": len(members) * votes_up,
        "down_bytes_run": round(share * down + len(members) * votes_down),
        "up_bytes_run": round(share * up + len(members) * votes_up),
        "flop_vote_estimate": votes.flop if voting else 0,
        **_machine(costs, tier.name, trains),
    }


def _trainable(run: PreparedRun, name: str) -> int:
    """Numbers that a client trains on its own machine: of a split one, those before the cut."""
    context = run.context
    cut = run.federation.sites[name].plan.cut
    if cut is not None:
        client_half = split_model.client_layers(context.shapes, cut)
        shapes = {layer: context.shapes[layer] for layer in client_half}
        context = replace(context, shapes=shapes)
    return factor_bytes(context, name, run.settings.method.TRAITS.trains) // 4


def _once(run: PreparedRun, name: str) -> int:
    """Bytes that a client is sent once in the run, beside its rounds."""
    settings = run.settings
    method, config = settings.method, settings.method_config
    return (method.kept_bytes(config, run.context, name)
            if isinstance(method, PublicTextMethod) else 0)


def _machine(costs: RoundCosts, tier: str, trains: bool) -> JsonObject:
    """Arithmetic of a round, and seconds, memory and energy on the tier's machine; None where no
    machine is named."""
    profile, found = costs.federation.tiers[tier].profile, costs.assignment(tier)
    named = profile is not None
    return {
        "flop_round_estimate": round(found.flop) if trains else 0,
        "compute_s_round": found.compute_s if named else None,
        "transfer_s_round": found.transfer_s if named else None,
        "memory_bytes": round(found.memory_bytes) if trains or named else None,
        "machine_memory_bytes": profile.memory_bytes if profile else None,
        "energy_j_round": found.energy_j if named else None,
    }


def _trained_bytes(run: PreparedRun, costs: RoundCosts, members: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of all clients of a tier over all rounds, as if everybody took part in
    every one."""
    if run.federation.sites[members[0]].plan.placement == "local":  # follow from ranks alone
        up, down = costs.travelled(members[0])
        return len(members) * up, len(members) * down
    found = [costs.exchanged(run.models.learner, members, round)
             for round in range(1, run.settings.train.rounds + 1)]
    return sum(up for up, _ in found), sum(down for _, down in found)


def _server(run: PreparedRun, costs: RoundCosts) -> JsonObject:
    """The proxies' training on the server."""
    count = costs.proxy_count
    flop = count * costs.proxy_plan.steps * costs.proxy_step.flop if count else 0
    return {
        "proxies": count,
        "stand_for": len(run.federation.roles["proxy"]) if count else 0,
        "texts": run.settings.synthesis.texts if run.federation.breeds else 0,
        "flop_round_estimate": round(flop),
        "machine": run.settings.compute.server,
    }


def _workers(run: PreparedRun) -> JsonObject:
    """The processes that train sites, and the memory of their bases; with Ray the run's own process
    holds one more."""
    engine, base = run.settings.engine, run.models.base
    bases = engine.workers + (engine.name == "ray")
    return {"count": engine.workers, "ray": engine.name == "ray", "threads": engine.threads,
            "base_bytes": base.weight_bytes, "bases_bytes": bases * base.weight_bytes}


def _releases(plan: PrivacyPlan) -> list[JsonObject]:
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


def _privacy(plan: PrivacyPlan, roles: Sequence[str]) -> JsonObject:
    """Epsilon that every role will have spent after the last round; null is infinite."""
    epsilon = {role: None if math.isinf(plan.epsilon[role]) else plan.epsilon[role]
               for role in roles}
    return {"off": plan.config.off, "relation": plan.config.relation, "delta": plan.config.delta,
            "epsilon": epsilon}


def _adaptive_clip(run: PreparedRun) -> JsonObject | None:
    """What a bound that follows the norms of updates does and costs; None where it does not."""
    rule = run.privacy.config.adaptive
    release = next((r for r in run.privacy.releases if r.stage == "train"), None)
    if rule is None or release is None:
        return None
    clients = release.sampling_rate / release.cohorts * len(run.federation.trainers)
    z, relation = release.noise_multiplier, run.privacy.config.relation
    return {**vars(rule), "clients": clients, "update_noise_multiplier": rule.update_noise(z),
            "count_noise": rule.count_noise(z, relation),
            "in_words": rule.in_words(z, relation, clients)}


def _schedule(run: PreparedRun, costs: RoundCosts) -> JsonObject | None:
    """The asynchronous schedule of the run, which is known before it; None where clients work in
    rounds."""
    config = run.settings.federation
    if not config.asynchronous or not run.federation.trainers:
        return None
    buffers = costs.buffers()
    ages = [age for own in buffers for age in own.filling.values()]
    taken = Counter(name for own in buffers for name in own.filling)
    size = config.drawn(len(run.federation.trainers))
    return {"buffers": len(buffers), "buffer": size, "at_work": config.at_work or size,
            "staleness": sum(ages) / max(1, len(ages)), "stalest": max(ages, default=0),
            "contributions": max(taken.values(), default=0),
            "virtual_s": sum(own.outcome.round_s for own in buffers)}


def _noise(run: PreparedRun) -> JsonObject | None:
    """Noise beside signal of the whole run, and what it means; None without noise."""
    found = size_law.noise_ratio(run)
    if found is None:
        return None
    choices = noise_choices(run)
    return {"trained_numbers": found.numbers, "clients": found.clients, "mu": found.mu,
            "ratio": found.ratio,
            "affordable_numbers": found.affordable(run.settings.privacy.target_ratio),
            "target_ratio": run.settings.privacy.target_ratio,
            "in_words": size_law.law_in_words(run),
            "choices": None if choices is None else choices.document()}


def _protected(run: PreparedRun) -> JsonObject:
    """The unit, and how many units training and votes use: altogether, and of the client with the
    fewest and with the most. None without privacy."""
    config = run.privacy.config
    told = {"unit": None if config.off else config.unit, "unit_field": config.unit_field}
    if config.off:
        return told | {"units": None}
    if config.unit == "client":
        return told | {"units": {"total": len(run.federation.sites), "least": 1, "most": 1}}
    counts = [len(units(site.train)) for site in run.federation.sites.values()]
    return told | {"units": {"total": sum(counts), "least": min(counts), "most": max(counts)}}
