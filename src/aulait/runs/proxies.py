"""Sites on the server: what they learn from, and how many clients each stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from aulait.core.types import ClientRequest, ClientUpdate, Plan, Site, Tensors
from aulait.methods.contract import Ask, server_site
from aulait.privacy import clipping
from aulait.runs.setup import House
from aulait.synthesis import private_evolution
from aulait.synthesis.population import text_of
from aulait.synthesis.private_evolution import Text

REFERENCES = 8


def proxies(house: House, texts: Sequence[Sequence[Text]]) -> tuple[dict[str, Site],
        dict[str, float]]:
    """Sites on the server, and the number of clients each stands for (0 for those that only
    calibrate the clip)."""
    place = next((place for place in house.places.values() if place.plan.placement == "proxy"),
                 None)
    train = house.settings.train
    shards: list[Sequence[Text]] = list(texts)
    steps, batch = (place.plan.steps, place.plan.batch) if place else (train.steps, train.batch)
    plan = Plan("proxy", "proxy", house.context.rank, steps, batch)
    stands = len(house.roles["proxy"]) / max(1, len(shards))
    names = [f"proxy-{k:03d}" for k in range(len(shards))]
    weights = {name: stands for name in names}
    private = not house.settings.privacy.off
    if private and not shards and house.settings.privacy.clip == "proxies" and house.corpus.public:
        shards = [*public_shards(house, REFERENCES,
                                 REFERENCES * house.settings.data.records_per_client)]
        names = [f"reference-{k:03d}" for k in range(len(shards))]
        weights = {name: 0.0 for name in names}
    sites = {n: Site(n, plan, tuple(t.record for t in shard)) for n,
             shard in zip(names, shards, strict=True) if shard}
    return sites, {n: weights[n] for n in sites}


def server(house: House) -> dict[str, Site]:
    """The site at the server that trains the back of a model cut in two, where the method has
    one."""
    name = server_site(house.settings.method)
    return {name: Site(name, Plan("server", "local", house.context.rank, 1, 1), ())} if name else {}


def public_shards(house: House, count: int, texts: int) -> list[list[Text]]:
    """Public texts, or pairs, dealt like synthetic ones."""
    public = house.corpus.public
    request = torch.randperm(len(public), generator=house.seeds.generator("public-shards"))[
        :texts].tolist()
    return private_evolution.shards([text_of(public[i], 0) for i in request], count, house.seeds)


def noisy(ask: Ask, house: House) -> Ask:
    """The arm that replaces the proxies' updates by noise of the same norm."""

    def answer(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
        by_client = {request.client: request for request in requests}
        for update in ask(requests):
            request = by_client.get(update.client)
            yield replace(update,
                tensors=_scrambled(update, request, house)) if request and update.client.startswith(
                    "proxy-") else update

    return answer


def _scrambled(update: ClientUpdate, request: ClientRequest, house: House) -> Tensors:
    generator = house.seeds.generator("noise-arm", request.round, request.client)
    noise = {name: torch.randn(t.shape, generator=generator) for name,
             t in sorted(update.tensors.items())}
    scale = clipping.norm(update.tensors) / clipping.norm(noise)
    return {name: t * scale for name, t in noise.items()}
