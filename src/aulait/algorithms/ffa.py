"""FFA-LoRA: A is one random matrix that everybody knows and nobody trains; B is trained and averaged.

what: only B travels; the mean of the updates is exactly the update of the mean.
source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.
travels: up and down 4 · R · sum over layers M bytes a client and round; A follows from the run's seed and never travels.
privacy: the sum over clients of the change of all B together, each clipped in L2 to C: sensitivity C. Noise enters
    the update linearly and in half the coordinates of FedIT.
differs: none in the method; server optimisers and the weight of local against proxied clients are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait import lora
from aulait.algorithms.averaging import AveragingConfig, mixed_round, trained
from aulait.algorithms.contract import Ask, Setting, State, Traits
from aulait.algorithms.server_optimizer import start
from aulait.cohort import Cohort
from aulait.privacy.door import Door
from aulait.train import Learner, Work
from aulait.types import Adapter, Info, Order, Reply, Site

TRAITS = Traits(
    what="A is frozen and shared, only B is trained and averaged",
    source="Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, arXiv 2403.12313",
    travels="up and down 4 R sum(M)",
    privacy="sum of changes of B, each clipped to C; sensitivity C; noise enters linearly",
    differs="none in the method",
    unequal_ranks=False,
    exact=True,
    private=True,
)


class Config(AveragingConfig):
    """``[algorithm] name = "ffa"``."""


def init(config: Config, setting: Setting) -> State:
    """B starts at zero."""
    theta = lora.to_tensors(_frozen(setting), "B")
    return State(0, theta | start(config, theta))


def step(config: Config, setting: Setting, state: State, cohort: Cohort, ask: Ask, door: Door) -> tuple[State, Info]:
    """Send B, average what comes back."""
    return mixed_round(config, state, cohort, ask, door)


def answer(orders: Sequence[Order], sites: Sequence[Site], setting: Setting, learner: Learner) -> list[Reply]:
    """Local steps on B alone; the share is the change of B."""
    frozen = _frozen(setting)
    works = [
        Work(lora.with_tensors(frozen, order.tensors), site.train, "B", site.plan.steps, site.plan.batch, order.settings["lr"],
             setting.seeds.integer("batches", order.round, site.name))
        for order, site in zip(orders, sites, strict=True)
    ]
    return [
        Reply(site.name, lora.subtract(lora.to_tensors(done.adapter, "B"), order.tensors), float(len(site.train)),
              {"train_loss": done.loss, "train_tokens": float(done.tokens)})
        for order, site, done in zip(orders, sites, learner.train(works), strict=True)
    ]


def result(setting: Setting, state: State) -> Adapter:
    """The shared A with the averaged B."""
    return lora.with_tensors(_frozen(setting), trained(state))


def _frozen(setting: Setting) -> Adapter:
    """The shared A, from the run's seed."""
    return lora.initial(setting.shapes, setting.rank, setting.alpha, setting.seeds)


