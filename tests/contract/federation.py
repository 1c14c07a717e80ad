"""Sites, a method and a aggregator, without a loop: what the contract, the oracles and the properties are tested on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.tiny_bases import records

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, Plan, Site
from aulait.engines.inline import LocalClients
from aulait.methods import METHODS
from aulait.methods.contract import RunContext, Server, State, record_mechanism
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.privacy.record_level import SiteNoise
from aulait.runs.train_stage import protected
from aulait.training.trainer import Learner, TrainConfig, Trained

SHAPES = {"one": (4, 3), "two": (2, 5)}
WIDE = {"one": (7, 6), "two": (5, 9)}  # sides of at least 5, so that ranks up to 4 mean something
PROXIES = frozenset({"proxy-000", "proxy-001"})
OFF = PrivacyConfig(off=True)
ON = PrivacyConfig(noise_multiplier=1.0, delta=1e-5, relation="add-remove", clip=1e6, noise_seed=1)
LR = 1e-2  # of the first round


class ZeroNoise:
    """A source that says nobody should rely on it, and adds nothing."""

    private = False

    def at(self, release):
        return self

    def step(self, std):
        return 0.0  # nothing is rounded either

    def gaussian(self, shape, std):
        return torch.zeros(shape, dtype=torch.float64)


class StubLearner:
    """Moves every trained factor by a direction of the site's own; no model behind it."""

    def __init__(self, size: float = 0.1) -> None:
        self.works, self.done, self.size = [], [], size

    def train(self, works, advance=None):
        done = [Trained(self._moved(work), 1.0, 7, 0.1) for work in works]
        self.works += works
        self.done += done
        return done

    def _moved(self, work) -> Adapter:
        generator = torch.Generator().manual_seed(work.seed % 2**31)
        factors = {}
        for name, (a, b) in sorted(work.start.factors.items()):
            factors[name] = tuple(
                t + self.size * torch.randn(t.shape, generator=generator) + 0.1 * self.size * t if letter in work.trainable.factors else t
                for letter, t in (("A", a), ("B", b)))
        return work.start.holding(factors)


def site(name: str, place: str = "local", rank: int = 2, count: int = 3, seed: int = 0) -> Site:
    return Site(name, Plan("tier", place, rank, 2, 2), records(count, seed))


@dataclass
class Federation:
    """A method with its sites and its aggregator.

    ``ranks``: client -> rank, or client -> layer -> rank, of those that cannot afford ``rank``.
    """

    method: str
    privacy: PrivacyConfig = OFF
    learner: Any = field(default_factory=StubLearner)
    shapes: dict = field(default_factory=lambda: dict(SHAPES))
    clients: tuple[str, ...] = ("ann", "bob", "cat")
    proxies: tuple[str, ...] = ()
    stands: float = 2.0
    options: dict = field(default_factory=dict)
    noise: Any = None
    budget: float = math.inf
    seed: int = 3
    sizes: dict = field(default_factory=dict)
    rank: int = 2
    alpha: float = 4.0
    scaling: str = "lora"
    planned_rounds: int = 4
    ranks: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module = METHODS.find(self.method)
        self.config = self.module.Config(**self.options)
        ranks = {name: own if isinstance(own, Mapping) else dict.fromkeys(self.shapes, own) for name, own in self.ranks.items()}
        self.context = RunContext(self.shapes, self.rank, self.alpha, Seeds(self.seed), self.planned_rounds, ranks, self.scaling)
        self.ledger = Ledger(None)
        accountant = None if self.privacy.off else Accountant(self.privacy.delta, {"local": self.budget})
        noise = self.noise or (SystemNoise() if self.privacy.off or self.privacy.noise_seed is None else ZeroNoise())
        self.sites = {
            n: site(n, "proxy" if n in PROXIES else "local", max(ranks[n].values()) if n in ranks else self.rank,
                    self.sizes.get(n, 3), ord(n[0]) + ord(n[-1]))
            for n in (*self.clients, *self.proxies)}
        if hasattr(self.module, "SERVER"):  # a method whose server trains a half of its own
            self.sites[self.module.SERVER] = Site(self.module.SERVER, Plan("server", "local", self.rank, 1, 1), ())
        self.site_noise, mechanisms = self._noise_of_sites() if self.privacy.protects_records else (None, None)
        self.aggregator = PrivateAggregator(self.privacy, self.ledger, accountant, noise, KnownSites(PROXIES), mechanisms)
        self.requests, self.updates = [], []

    def _noise_of_sites(self):
        """What the training stage asks the clients for, and what the aggregator charges."""
        asked = record_mechanism(self.module, self.config, self.privacy, [self.sites[name] for name in self.clients])
        sigma = self.privacy.noise_multiplier * asked.sensitivity(self.privacy.clip, self.privacy.relation)
        noise = SiteNoise(mechanism=asked.mechanism, clip=self.privacy.clip, sigma=sigma, most_rate=asked.rate, most_steps=asked.steps,
                          noise_seed=self.privacy.noise_seed)
        return noise, {"train": asked}

    def ask_records(self, requests):
        """As ``ask``, where the sites of clients add noise of their own."""
        def clients(some):
            for update in LocalClients(self.sites, self.module, self.context, self.learner).ask(some):
                self.updates.append(update)
                self.requests += [request for request in some if request.client == update.client]
                yield update

        return protected(clients, self.site_noise, {name: self.sites[name].plan.steps for name in self.clients})(requests)

    def ask(self, requests):
        if self.site_noise is not None:
            return self.ask_records(requests)
        self.requests += requests
        updates = self.module.answer(requests, [self.sites[o.client] for o in requests], self.context, self.learner)
        self.updates += updates
        return updates

    def start(self) -> State:
        return self.module.init(self.config, self.context)

    def round(self, state: State, ask=None, clients=None, proxies=None, **more):
        """One round; ``clients`` are those who take part, all are planned for."""
        number = state.round + 1
        standing = self.proxies if proxies is None else proxies
        cohort = Cohort(**{
            "round": number, "local": tuple(self.clients if clients is None else clients), "proxies": dict.fromkeys(standing, self.stands),
            "planned": len(self.clients), "noise_multiplier": 0.0 if self.privacy.off else self.privacy.noise_multiplier or 1.0, "lr": LR / number,
            "population": tuple(sorted(self.clients))} | more)
        sealed = self.aggregator.sealing(ask or self.ask, planned=True)  # as the round loop does
        return self.module.step(self.config, self.context, state, cohort, Server(sealed, self.aggregator))

    def rounds(self, count: int, state: State | None = None) -> State:
        state = state or self.start()
        for _ in range(count):
            state, _ = self.round(state)
        return state

    def result(self, state: State) -> Adapter:
        return self.module.result(self.context, state)

    def personal(self, state: State, final: bool = True) -> dict[str, Adapter]:
        return self.module.personal(self.config, self.context, state, list(self.sites.values()), self.learner, final)

    def memory(self) -> dict[str, dict]:
        return {name: own.memory for name, own in self.sites.items()}

    def held(self, count: int | None = None) -> dict[str, dict[str, torch.Tensor]]:
        """Client -> the dense update its base and adapter really have after training, of the last ``count`` answers."""
        count = count or len(self.clients) + len(self.proxies)
        found = {}
        answers = zip(self.updates[-count:], self.learner.works[-count:], self.learner.done[-count:], strict=True)
        for update, work, done in answers:
            dense_update = whole(work, done.adapter)
            for layer, base in (work.fold or {}).items():
                dense_update[layer] = dense_update[layer] + base.double()
            found[update.client] = dense_update
        return found


def apart(left: State, right: State) -> float:
    """The largest difference of two states."""
    assert left.round == right.round
    assert left.tensors.keys() == right.tensors.keys()
    return max((float((left.tensors[n] - right.tensors[n]).abs().max()) for n in left.tensors), default=0.0)


def distance(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of two sets of named tensors."""
    assert left.keys() == right.keys()
    return max(float((left[n].double() - right[n].double()).abs().max()) for n in left)


def unlike(left: Any, right: Any) -> str:
    """Where two memories differ; empty if they are the same bit for bit."""
    if isinstance(left, Mapping):
        if not isinstance(right, Mapping) or left.keys() != right.keys():
            return "keys"
        return next((f"{key}/{found}" for key in left if (found := unlike(left[key], right[key]))), "")
    if isinstance(left, torch.Tensor):
        return "" if torch.equal(left, right) else "tensor"
    return "" if left == right else "value"


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The dense updates of an adapter in double precision."""
    return lora.dense(adapter.holding({n: (a.double(), b.double()) for n, (a, b) in adapter.factors.items()}))


def whole(work, adapter: Adapter) -> dict[str, torch.Tensor]:
    """The dense updates of an adapter of a training, whose factors may be coordinates in a basis."""
    own = dense(adapter)
    if work.basis is None:
        return own
    return {layer: work.basis[layer][1].double() @ value @ work.basis[layer][0].double() for layer, value in own.items()}


def mean(dense_updates: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
    """The weighted mean of dense updates: D*."""
    weights = weights or dict.fromkeys(dense_updates, 1.0)
    total = sum(weights.values())
    layers = next(iter(dense_updates.values()))
    return {layer: sum(weights[name] / total * dense_update[layer] for name, dense_update in dense_updates.items()) for layer in layers}


def real(base, method: str, **more) -> Federation:
    """A federation whose sites train the base's last attention."""
    shapes = loading.targets(base, AdapterConfig(targets="attention", layers=1))
    return Federation(method, learner=Learner(base, TrainConfig()), shapes=dict(shapes), **more)
