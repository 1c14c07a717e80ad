"""Clients that send what does harm, in simulations: what aggregation makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from aulait.core.seeds import Seeds
from aulait.core.types import ClientRequest, ClientUpdate, Site, VoteRequest
from aulait.federation.tiers import HostileConfig
from aulait.methods.contract import Ask


def hostile(names: Iterable[str], config: HostileConfig, seeds: Seeds) -> frozenset[str]:
    """Which clients are hostile: a share of them, by the run's seed."""
    ordered = sorted(names)
    count = math.floor(config.share * len(ordered) + 0.5)
    drawn = torch.randperm(len(ordered), generator=seeds.generator("hostile")).tolist()[:count]
    return frozenset(ordered[i] for i in drawn)


def flipped(site: Site) -> Site:
    """A site whose records have one another's answers; where nothing is asked, whose words stand in
    reverse."""
    own = site.train
    answers = [*own[1:], *own[:1]]
    return replace(site, train=[
        replace(record, text=" ".join(reversed(record.text.split()))) if record.prompt is None
        else replace(record, text=other.text)
        for record, other in zip(own, answers, strict=True)])


def poisoned(ask: Ask, bad: frozenset[str], config: HostileConfig) -> Ask:
    """Ask as ever; hostile clients send their update, or their votes, turned around or many times
    as long.

    Args:
        ask: gets updates.
        bad: the hostile clients.
        config: what they do.
    """
    factor = -config.factor if config.attack == "sign-flip" else config.factor

    def asking(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
        votes = any(isinstance(request, VoteRequest) for request in requests)
        for update in ask(requests):
            if update.client not in bad:
                yield update
            elif votes and config.attack == "sign-flip":  # for whatever it would not have chosen
                yield replace(update, tensors={
                    name: value.max() - value for name, value in update.tensors.items()})
            else:
                yield replace(update, tensors={
                    name: value * factor for name, value in update.tensors.items()})

    return asking
