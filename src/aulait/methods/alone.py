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
from aulait.core.types import Adapter, Info, Order, Reply, Site
from aulait.methods.contract import Ask, Setting, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.weighted_mean import MixtureConfig, trained
from aulait.privacy.aggregator import Door
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


def init(config: Config, setting: Setting) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(lora.initial(setting.shapes, setting.rank, setting.alpha,
        setting.seeds)))


def step(config: Config, setting: Setting, state: State, cohort: Cohort, ask: Ask,
         door: Door) -> tuple[State, Info]:
    """Tell every client to go on by itself."""
    orders = [Order(name, "train", cohort.round, {}, {"lr": cohort.lr}) for name in cohort.local]
    losses = [reply.info["train_loss"] for reply in (ask(orders) if orders else ())
              if "train_loss" in reply.info]
    told: Info = {"up_bytes": 0, "down_bytes": 0, "proxies": 0, "refused": 0}
    if losses and not door.private:
        told["train_loss"] = sum(losses) / len(losses)
    return State(cohort.round, state.tensors), told


def answer(orders: Sequence[Order], sites: Sequence[Site], setting: Setting,
           learner: Learner) -> list[Reply]:
    """Local steps from where the site stands; the share is empty."""
    done = client_update.train(orders, sites, setting, learner, lambda order,
                               site: _own(setting, site, order.round), "AB")
    for order, site, (_, after) in zip(orders, sites, done, strict=True):
        client_update.keep(site, order.round, lora.to_tensors(after.adapter))
    return [client_update.reply(site, {}, after) for site,
            (_, after) in zip(sites, done, strict=True)]


def result(setting: Setting, state: State) -> Adapter:
    """The common start, which predicts as the base does."""
    return lora.from_tensors(trained(state), setting.alpha, setting.rank)


def personal(
    config: Config, setting: Setting, state: State, sites: Sequence[Site], learner: Learner,
    final: bool
) -> dict[str, Adapter]:
    """Each client's own adapter."""
    return {site.name: _own(setting, site, state.round + 1) for site in sites}


def travels(config: Config, setting: Setting, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Nothing."""
    return 0, 0


def _own(setting: Setting, site: Site, round: int) -> Adapter:
    """What the site has before a round, or the common start at its ranks."""
    kept = client_update.recall(site, round)
    if not kept:
        first = lora.to_tensors(lora.initial(setting.shapes, setting.rank, setting.alpha,
            setting.seeds))
        kept = lora.leading(first, setting.rank_of(site.name))
    return lora.from_tensors(kept, setting.alpha, setting.rank)
