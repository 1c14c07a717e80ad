"""Local-only training, the baseline of every personal method: each client trains an adapter by
itself.

Clients train their own adapters from the common start, round after round. Nothing is shared and
nothing travels, so nothing is charged. A personal adapter is as sensitive as the client's text.
Proxies have no client to serve. No paper of its own: it is the control that federated methods must
beat.

what: local-only: every client trains its own adapter, nothing is shared
source: the baseline of personal methods
travels: up nothing; down nothing
privacy: nothing is released
differs: proxies take no part
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.mixture import MixtureConfig
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(personal=True, splits=False))


class AloneConfig(MixtureConfig):
    """``[algorithm] name = "alone"``."""


Config = AloneConfig


def init(config: AloneConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(context.initial()))


def step(config: AloneConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Tell every client to go on by itself."""
    requests = [TrainRequest(name, cohort.round, {}, {"lr": cohort.lr}) for name in cohort.local]
    # The clients work while they are read; under privacy what they say is sealed and stays unread.
    updates = list(server.ask(requests)) if requests else []
    metrics: Info = {"up_bytes": 0, "down_bytes": 0, "proxies": 0, "refused": 0}
    losses = [] if server.aggregator.private else [
        update.info["train_loss"] for update in updates if "train_loss" in update.info]
    if losses:
        metrics["train_loss"] = sum(losses) / len(losses)
    return State(cohort.round, state.tensors), metrics


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps from the site's own adapter; the update is empty."""
    training = client_update.local_training(
        requests, sites, context, lambda request, site: _own(context, site, request.round))
    done = client_update.train(requests, training, learner)
    for request, site, (_, after) in zip(requests, sites, done, strict=True):
        client_update.keep(site, request.round, lora.to_tensors(after.adapter))
    return [client_update.update_of(site, {}, after)
            for site, (_, after) in zip(sites, done, strict=True)]


def result(context: RunContext, state: State) -> Adapter:
    """The common start, which predicts as the base does."""
    return context.adapter(state.factors)


def personal(config: AloneConfig, context: RunContext, state: State, sites: Sequence[Site],
             learner: Learner, final: bool) -> dict[str, Adapter]:
    """Each client's own adapter."""
    return {site.name: _own(context, site, state.round + 1) for site in sites}


def travels(config: AloneConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Nothing."""
    return 0, 0


def _own(context: RunContext, site: Site, round: int) -> Adapter:
    """What the site has before a round, or the common start at its ranks."""
    kept = client_update.recall(site, round)
    if not kept:
        first = lora.to_tensors(context.initial())
        kept = context.leading(first, site.name)
    return context.adapter(kept)
