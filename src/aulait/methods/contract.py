"""The contract of a method: a state and a few functions, nothing that calls back up.

A round is ``sample -> plan -> order -> answer -> release -> merge -> record``. The loop owns time;
a method owns the
middle: it writes requests, asks, lets the aggregator release, and merges. A method is a module with
these
names:

    Config    frozen pydantic model of the method's own settings ([algorithm] without its name)
    TRAITS    a ``Traits`` value: what the tables of ``aulait list`` and the report print
    init      (config, setting) -> State
    step      (config, context, state, cohort, server) -> (State, Info)
    answer    (requests, sites, setting, learner) -> updates, in the order given
    result    (setting, state) -> Adapter, what is evaluated and exported
    travels   (config, setting, round, client, sites) -> (bytes up, bytes down) of one client: the
    formula of the docstring

and, where clients keep adapters of their own, one more:

    personal  (config, setting, state, sites, learner, final) -> client name -> Adapter that this
    client uses

``answer`` takes many sites because sites of one process train together in one pass over the shared
base; the answer to one order depends on that order, its site and the seed alone (contract test), so
a lone site in another building computes the same update.

A toy: clients send the mean length of their records, the server keeps the noisy mean.

    def init(config, setting):
        return State(0, {"mean": torch.zeros(1)})

    def step(config, context, state, cohort, server):
        requests = [TrainRequest(name, cohort.round, {}) for name in cohort.local]
        released = server.aggregator.release(
            server.ask(requests),
            Release.of_cohort(cohort, stage="train", bound=100.0, template=state.tensors))
        return State(cohort.round, {"mean": released.total["mean"] / released.planned}), {}

    def answer(requests, sites, context, learner):
        return [ClientUpdate(s.name, {"mean": torch.tensor([mean(len(r.text) for r in s.train])}))
                for s in sites]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

from aulait.core.cohort import Cohort
from aulait.core.factors import Trainable
from aulait.core.lora import Shapes
from aulait.core.seeds import Seeds
from aulait.core.types import (
    Adapter,
    ClientRequest,
    ClientUpdate,
    Info,
    Site,
    Tensors,
    TrainRequest,
)
from aulait.privacy import record_level
from aulait.privacy.aggregator import PrivateAggregator
from aulait.training.trainer import Learner

ConfigT = TypeVar("ConfigT", bound=BaseModel)
ConfigT_contra = TypeVar("ConfigT_contra", bound=BaseModel, contravariant=True)
Ask = Callable[[Sequence[ClientRequest]], Iterable[ClientUpdate]]


@dataclass(frozen=True)
class RunContext:
    """What every site and the server know before the first round; all of it public.

    Attributes:
        shapes: layer name -> (M, N) of the adapted layers.
        rank: R.
        alpha: LoRA's alpha.
        seeds: of the run.
        rounds: of the training stage, as planned.
        ranks: client -> layer -> the rank it can afford, at most R; who is missing affords R
            everywhere.
    """

    shapes: Shapes
    rank: int
    alpha: float
    seeds: Seeds
    rounds: int = 0
    ranks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def rank_of(self, client: str) -> Callable[[str], int]:
        """Layer -> the rank of a client."""
        own = self.ranks.get(client)
        return (lambda layer: self.rank) if own is None else own.__getitem__


@dataclass(frozen=True)
class Server:
    """What a round may use of the server.

    Attributes:
        ask: gets the clients' updates for requests; an iterator, so that clients may work while it
            is read.
        aggregator: the only way in which anything of the updates is released.
    """

    ask: Ask
    aggregator: PrivateAggregator


@dataclass(frozen=True)
class State:
    """What a method carries from round to round; saved as it is.

    Attributes:
        round: rounds done.
        tensors: everything the method must remember, by name.
    """

    round: int
    tensors: Tensors


@dataclass(frozen=True)
class Traits:
    """What a method is, for tables and reports.

    Attributes:
        what: one sentence.
        source: authors, title, venue, year, link.
        up: bytes a client sends in a round, as a formula.
        down: bytes a client receives in a round, as a formula.
        privacy: what is summed and its sensitivity, or why it is refused.
        differs: where it differs from the paper.
        unequal_ranks: whether tiers may have different ranks.
        exact: whether the merge equals the mean of the clients' dense updates: "yes", "no", or "at
            equal ranks".
        private: whether client-level differential privacy is offered.
        secure: whether the server needs sums only, so that secure aggregation can hide single
            updates.
        instead: the nearest method under privacy, where it is not offered.
        trains: the factors that clients train.
        personal: whether clients end with adapters of their own.
        unit: what its privacy protects: "client" or "record".
        splits: whether a client may hold the front of the model alone: so where clients train by
            ``Learner.train`` only.
    """

    what: str
    source: str
    up: str
    down: str
    privacy: str
    differs: str
    unequal_ranks: bool
    exact: Literal["yes", "no", "at equal ranks"]
    private: bool
    secure: bool
    instead: str = ""
    trains: Trainable = Trainable.AB
    personal: bool = False
    unit: str = "client"
    splits: bool = True


@runtime_checkable
class Method(Protocol[ConfigT]):
    """The names a method's module offers; see the module docstring. Its modules are checked against
    this type in ``tests/house/typed_methods.py``."""

    @property
    def Config(self) -> type[ConfigT]:
        """The method's own settings."""

    @property
    def TRAITS(self) -> Traits:
        """What the tables say of it."""

    def init(self, config: ConfigT, context: RunContext) -> State:
        """The state before the first round."""

    def step(
        self, config: ConfigT, context: RunContext, state: State, cohort: Cohort, server: Server
    ) -> tuple[State, Info]:
        """One round."""

    def answer(self, requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
               learner: Learner) -> list[ClientUpdate]:
        """The sites' updates, in the order given."""

    def result(self, context: RunContext, state: State) -> Adapter:
        """The adapter that is evaluated and exported."""

    def travels(self, config: ConfigT, context: RunContext, round: int, client: str,
                sites: Sequence[str]) -> tuple[int, int]:
        """Bytes that one client sends and receives in a round in which all of ``sites`` answer."""


# The settings belong to the module that they were read for; a type cannot say which, once the
# method is chosen by its name.
AnyMethod = Method[Any]


@runtime_checkable
class PersonalMethod(Protocol[ConfigT_contra]):
    """A method whose clients end with adapters of their own."""

    def personal(self, config: ConfigT_contra, context: RunContext, state: State,
                 sites: Sequence[Site], learner: Learner, final: bool) -> dict[str, Adapter]:
        """Client name -> the adapter that this client uses; a client without one is missing.

        ``final`` says that the run is over.
        """


@runtime_checkable
class RecordMethod(Protocol[ConfigT_contra]):
    """A method whose clients add noise to their own steps, so that it protects single records."""

    def mechanism(self, config: ConfigT_contra) -> str:
        """What the accountant sees of a client's step."""

    def record_mechanism(self, config: ConfigT_contra,
                         sites: Sequence[Site]) -> record_level.RecordMechanism:
        """What a round may ask of any record of these sites, at most."""


@runtime_checkable
class ServerSiteMethod(Protocol):
    """A method in which a site at the server takes part in every exchange, and every client is
    split."""

    @property
    def SERVER(self) -> str:
        """Name of that site; no client may have it."""


def server_site(method: AnyMethod) -> str | None:
    """Name of the site at the server that a method asks beside the clients; None where it has
    none."""
    return method.SERVER if isinstance(method, ServerSiteMethod) else None
