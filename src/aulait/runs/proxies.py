"""Sites on the server: what they learn from, and how many clients each represents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from aulait.core.seeds import Seeds
from aulait.core.types import ClientRequest, ClientUpdate, Plan, Record, Site, Tensors
from aulait.methods.contract import AnyMethod, Ask, server_site
from aulait.privacy import clipping
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import Federation
from aulait.synthesis import private_evolution
from aulait.synthesis.population import Text, text_of

REFERENCES = 8


def proxies(settings: Settings, federation: Federation, seeds: Seeds,
            texts: Sequence[Sequence[Text]]) -> tuple[dict[str, Site], dict[str, float]]:
    """Sites on the server, and the number of clients each represents (0 for those that only
    calibrate the clip).

    Args:
        settings: the experiment.
        federation: whose proxied clients are represented.
        seeds: of the run.
        texts: the synthetic set, dealt to proxies.
    """
    tier, train = federation.proxy_tier, settings.train
    steps, batch = (tier.plan.steps, tier.plan.batch) if tier else (train.steps, train.batch)
    plan = Plan("proxy", "proxy", settings.adapter.rank, steps, batch)
    shards: list[Sequence[Text]] = list(texts)
    kind, each = "proxy", len(federation.roles["proxy"]) / max(1, len(shards))
    public = federation.corpus.public
    by_proxies = not settings.privacy.off and settings.privacy.clip == "proxies"
    if by_proxies and not shards and public:
        count = REFERENCES * settings.data.records_per_client
        shards = [*public_shards(public, REFERENCES, count, seeds)]
        kind, each = "reference", 0.0
    sites = {f"{kind}-{k:03d}": Site(f"{kind}-{k:03d}", plan, tuple(text.record for text in shard))
             for k, shard in enumerate(shards) if shard}
    return sites, dict.fromkeys(sites, each)


def server_sites(method: AnyMethod, rank: int) -> dict[str, Site]:
    """The site at the server that trains the server's half of the model, where the method has
    one."""
    name = server_site(method)
    return {name: Site(name, Plan("server", "local", rank, 1, 1), ())} if name else {}


def proxy_count(settings: Settings, federation: Federation) -> int:
    """Sites on the server among which texts are dealt."""
    return min(settings.synthesis.proxy_count, len(federation.roles["proxy"]))


def public_texts(settings: Settings, federation: Federation, seeds: Seeds) -> list[list[Text]]:
    """What proxies learn from where the settings give them public texts; nothing elsewhere."""
    count = proxy_count(settings, federation)
    if not count or settings.synthesis.proxies != "public":
        return []
    return public_shards(federation.corpus.public, count, settings.synthesis.texts, seeds)


def public_shards(public: Sequence[str | Record], count: int, texts: int,
                  seeds: Seeds) -> list[list[Text]]:
    """Public texts, or pairs, dealt like synthetic ones: ``texts`` of them to ``count`` proxies."""
    order = torch.randperm(len(public), generator=seeds.generator("public-shards"))[:texts]
    return private_evolution.shards([text_of(public[i], 0) for i in order.tolist()], count, seeds)


def scrambled(ask: Ask, seeds: Seeds) -> Ask:
    """The arm that replaces the proxies' updates by noise of the same norm."""

    def asking(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
        by_client: Mapping[str, ClientRequest] = {request.client: request for request in requests}
        for update in ask(requests):
            request = by_client.get(update.client)
            if request is not None and update.client.startswith("proxy-"):
                update = replace(update, tensors=_noise_like(update, request, seeds))
            yield update

    return asking


def _noise_like(update: ClientUpdate, request: ClientRequest, seeds: Seeds) -> Tensors:
    generator = seeds.generator("noise-arm", request.round, request.client)
    noise = {name: torch.randn(t.shape, generator=generator)
             for name, t in sorted(update.tensors.items())}
    scale = clipping.norm(update.tensors) / clipping.norm(noise)
    return {name: t * scale for name, t in noise.items()}
