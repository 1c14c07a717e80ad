"""Local-only training, the baseline of every personal method: each client trains an adapter by
itself.

what: clients train their own adapters from the common start round after round; nothing is shared,
nothing travels.
source: the control that federated methods must beat; no paper of its own.
travels: nothing, up or down.
privacy: nothing is released, so nothing is charged. A personal adapter is as sensitive as the
client's text.
differs: proxies have no client to serve and take no part.
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.weighted_mean import MixtureConfig, trained
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="local-only: every client trains its own adapter, nothing is shared",
    source="the baseline of personal methods",
    up="nothing",
    down="nothing",
    privacy="nothing is released",
    differs="proxies take no part",
    unequal_ranks=True,
    exact="no",
    private=True,
    secure=True,
    personal=True,
    splits=False,
)


class Config(MixtureConfig):
    """``[algorithm] name = "alone"``."""


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds)))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Tell every client to go on by itself."""
    requests = [TrainRequest(name, cohort.round, {}, {"lr": cohort.lr}) for name in cohort.local]
    losses = [update.info["train_loss"] for update in (server.ask(requests) if requests else ())
              if "train_loss" in update.info]
    told: Info = {"up_bytes": 0, "down_bytes": 0, "proxies": 0, "refused": 0}
    if losses and not server.aggregator.private:
        told["train_loss"] = sum(losses) / len(losses)
    return State(cohort.round, state.tensors), told


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps from where the site stands; the share is empty."""
    done = client_update.train(requests, sites, context, learner, lambda request,
                               site: _own(context, site, request.round), Trainable.AB)
    for request, site, (_, after) in zip(requests, sites, done, strict=True):
        client_update.keep(site, request.round, lora.to_tensors(after.adapter))
    return [client_update.update(site, {}, after) for site,
            (_, after) in zip(sites, done, strict=True)]


def result(context: RunContext, state: State) -> Adapter:
    """The common start, which predicts as the base does."""
    return lora.from_tensors(trained(state), context.alpha, context.rank)


def personal(
    config: Config, context: RunContext, state: State, sites: Sequence[Site], learner: Learner,
    final: bool
) -> dict[str, Adapter]:
    """Each client's own adapter."""
    return {site.name: _own(context, site, state.round + 1) for site in sites}


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Nothing."""
    return 0, 0


def _own(context: RunContext, site: Site, round: int) -> Adapter:
    """What the site has before a round, or the common start at its ranks."""
    kept = client_update.recall(site, round)
    if not kept:
        first = lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
            context.seeds))
        kept = lora.leading(first, context.rank_of(site.name))
    return lora.from_tensors(kept, context.alpha, context.rank)
