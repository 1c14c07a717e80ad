"""What rounds take on the clients' machines and on the server, by the cost model; and the virtual
clock made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aulait.core import lora
from aulait.core.types import ClientRequest, Plan, Profile
from aulait.federation import planner
from aulait.federation.planner import Assignment
from aulait.methods.contract import Ask
from aulait.resources import cost_model, profiles
from aulait.resources.capacity import EMBEDDER
from aulait.runs.placement import Place, any_demand
from aulait.runs.setup import House
from aulait.runs.virtual_time.clock import Clock, Stint
from aulait.training import split_model, split_trainer
from aulait.training.trainer import LocalTraining


def travelled(house: House, name: str) -> tuple[int, int]:
    """Bytes up and down of one local client over all rounds, when everybody takes part in every
    one."""
    settings = house.settings
    each = [settings.method.travels(settings.method_config, house.context, round, name,
        _sites(house))
            for round in range(1, settings.train.rounds + 1)]
    return sum(up for up, _ in each), sum(down for _, down in each)


def _sites(house: House) -> tuple[str, ...]:
    return (*house.trainers, *(f"proxy-{k:03d}" for k in range(proxy_count(house))))


def exchanged(house: House, names: Sequence[str], round: int) -> tuple[int, int]:
    """Bytes up and down of split clients together in a round: their steps, whose draws are seeded,
    and their front's factors.

    The order of the result is (up, down); exact where everybody takes part.
    """
    settings, context = house.settings, house.context
    after, wire = settings.compute.cut, settings.compute.wire
    front = {layer: context.shapes[layer] for layer in split_model.client_layers(context.shapes, after)}
    start = lora.initial(context.shapes, context.rank, context.alpha, context.seeds)
    trainable = settings.method.TRAITS.trains
    works = [LocalTraining(start, house.sites[n].train, trainable, house.sites[n].plan.steps,
                  house.sites[n].plan.batch, 0.0,
                  context.seeds.integer("batches", round, n)) for n in names]
    steps = split_trainer.travelled(house.learner, works, after, wire)
    own = replace(context, shapes=front)
    factors = [settings.method.travels(settings.method_config, own, round, n, _sites(house))
               for n in names]
    return sum(up for up, _ in (*steps, *factors)), sum(down for _, down in (*steps, *factors))


def proxy_count(house: House) -> int:
    """Sites on the server that train."""
    synthesis = house.settings.synthesis
    stands = len(house.roles["proxy"]) if synthesis.proxies != "absent" else 0
    return min(synthesis.proxy_count, stands, synthesis.texts)


def takes(house: House, tier: str) -> Assignment:
    """What a training round takes a client of a tier (a proxied client: a round of votes); where no
    machine is named, on an A100."""
    place = house.places[tier]
    demand, plan, rounds = place.demand, place.plan, max(1, house.settings.train.rounds)
    if plan.placement == "local":
        member = next(name for name in house.trainers if house.sites[name].plan.tier == tier)
        up, down = travelled(house, member)
        demand = replace(demand, travels=lambda _: (round(up / rounds), round(down / rounds)))
    return planner.WAYS[plan.placement](demand, place.profile or profiles.profile("a100"),
        plan.rank, plan.steps, plan.batch)


def server(house: House) -> Profile:
    """The server's machine."""
    return profiles.find_profile(house.settings.compute.server)


def _timed(house: House) -> bool:
    """Whether tiers name machines, and time is virtual: a deployment takes the time it takes."""
    return (
        house.settings.engine.name == "inline" and any(place.profile
            for place in house.places.values())
    )


def proxies_s(house: House) -> float:
    """Seconds in which the server trains all proxies once."""
    count = proxy_count(house)
    if not count or not _timed(house):
        return 0.0
    return (
        count * proxy_plan(house).steps * cost_model.seconds(proxy_step(house), server(house),
            house.settings.model.dtype)
    )


def proxy_plan(house: House) -> Plan:
    """The work that a proxy does, which is that of the clients it stands for."""
    return next(place.plan for place in house.places.values() if place.plan.placement == "proxy")


def proxy_step(house: House) -> cost_model.Cost:
    """One step of a proxy, which has the adapter's full rank."""
    demand, rank = any_demand(house), house.settings.adapter.rank
    return cost_model.lora_step(demand.model_shape, demand.batch(proxy_plan(house).batch),
                                dict.fromkeys(house.shapes, rank), trainable=demand.trainable,
                          dtype=demand.dtype)


def backs_s(house: House, asked: Sequence[str]) -> float:
    """Seconds in which the server works through the backs of all split clients that are asked, tier
    by tier."""
    count: dict[str, int] = {}
    for name in asked:
        if house.sites[name].plan.placement == "split":
            tier = house.sites[name].plan.tier
            count[tier] = count.get(tier, 0) + 1
    places = [(house.places[tier], number) for tier, number in count.items()]
    return sum(place.plan.steps * planner.backs_s(place.demand, place.plan.rank, place.plan.batch,
        number) for place, number in places)


def breeding_s(house: House, round: int) -> float:
    """Seconds in which the server writes the texts of a round of stage 1 and embeds the
    candidates."""
    if not house.voting or not _timed(house):
        return 0.0
    return sum(cost_model.seconds(work, server(house), dtype) for work,
               dtype in breeding(house, round))


def breeding(house: House, round: int) -> list[tuple[cost_model.Cost, str]]:
    """(work, precision) of a round of stage 1 at the server: candidates embedded, texts written (by
    the base; of others not known)."""
    config, demand = house.settings.synthesis, any_demand(house)
    found = [(cost_model.embedding(*EMBEDDER, config.pool, config.max_tokens), "float32")]
    if config.generator == "base":
        rows, prompt = config.generate.batch, int(config.generate.max_tokens
            * sum(config.generate.keep) / 2)
        one = cost_model.generation(demand.model_shape, rows, prompt,
                                    config.generate.max_tokens - prompt, demand.dtype)
        found.append((one * (_written(house, round) / rows), demand.dtype))
    return found


def _written(house: House, round: int) -> int:
    """Texts that the generator writes in a round of stage 1: children, variations for looking
    ahead, in the last the final set."""
    config = house.settings.synthesis
    last = config.texts if round == config.rounds and config.expansion in ("vary", "write") else 0
    return config.candidates * config.variations + config.lookahead * config.pool + last


def clock(house: House, stage: str, round: int = 1) -> Clock | None:
    """Virtual time of a stage; None where no tier names a machine. In the first round of votes a
    client embeds its records."""
    if not _timed(house):
        return None
    tiers = {tier.name: tier for tier in house.settings.federation.tier}
    names = house.trainers if stage == "train" else house.voters
    stints: dict[str, Stint] = {}
    for name in names:
        tier = house.sites[name].plan.tier
        if tier not in stints:
            found = takes(house, tier) if stage == "train" else _vote(house, tier, round)
            stints[tier] = _stint(house.places[tier], found, tiers[tier])
    return Clock({name: stints[house.sites[name].plan.tier] for name in names}, house.seeds,
                 house.settings.compute.deadline_s)


def _vote(house: House, tier: str, round: int) -> Assignment:
    """A round of votes of a client, local ones included; records are embedded in the first."""
    place, config = house.places[tier], house.settings.synthesis
    assert place.profile is not None
    assert place.demand.vote is not None
    _, bytes_ = place.demand.vote
    counting = cost_model.voting(house.settings.data.records_per_client, config.pool, EMBEDDER[1])
    demand = place.demand if round == 1 else replace(place.demand, vote=(counting, bytes_))
    return planner.proxy(demand, place.profile, place.plan.rank, place.plan.steps, place.plan.batch)


def _stint(place: Place, found: Assignment, tier: Any) -> Stint:
    assert place.profile is not None
    joules = profiles.joules_per_byte(tier.machine, tier.link) or 0.0
    return Stint(tier.name, found.compute_s, found.transfer_s, found.energy_j, place.profile.idle_w,
                 (found.up_bytes + found.down_bytes) * joules, tier.availability, tier.dropout,
                 tier.spread)


def punctual(ask: Ask, silent: frozenset[str]) -> Ask:
    """Ask, and hear only those who answer in time."""

    def heard(requests: Sequence[ClientRequest]) -> Any:
        due = [request for request in requests if request.client not in silent]
        return ask(due) if due else iter(())

    return heard


def amounts(told: Mapping[str, Any]) -> dict[str, float]:
    """What a round of virtual time adds to a run's totals, by names that ``result`` reads."""
    added = {"clock|total_s": told["round_s"], "clock|energy_j": told["energy_j"]}
    for tier, own in told["tiers"].items():
        added |= {f"clock|{tier}|{key}": value for key, value in own.items()}
    return added


def result(totals: Mapping[str, float]) -> dict[str, Any] | None:
    """Virtual time of a whole run: {total_s, energy_j, idle_share, tiers}; None where there was
    none."""
    if "clock|total_s" not in totals:
        return None
    tiers: dict[str, dict[str, float]] = {}
    for name, value in totals.items():
        kind, _, rest = name.partition("|")
        tier, bar, key = rest.rpartition("|")
        if kind == "clock" and bar:
            tiers.setdefault(tier, {})[key] = value
    busy, idle = (sum(own[key] for own in tiers.values()) for key in ("busy_s", "idle_s"))
    return {"total_s": totals["clock|total_s"], "energy_j": totals["clock|energy_j"],
            "idle_share": idle / (busy + idle) if busy + idle else 0.0, "tiers": tiers}
