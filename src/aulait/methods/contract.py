"""The contract of a method: a state and a few functions, nothing that calls back up.

A round is ``sample -> plan -> request -> update -> release -> merge -> record``. The loop owns
time; a method owns the middle: it writes requests, asks for updates, lets the aggregator release
their sum, and merges. A method is a module with these names:

    Config    frozen pydantic model of the method's own settings ([algorithm] without its name)
    TRAITS    what the tables print and the code decides by, from ``description.described``
    init      (config, context) -> State
    step      (config, context, state, cohort, server) -> (State, Info)
    answer    (requests, sites, context, learner) -> updates, in the order given
    result    (context, state) -> Adapter, what is evaluated and exported
    travels   (config, context, round, client, sites) -> (bytes up, bytes down) of one client: the
              formulas that TRAITS shows, as numbers

``Method`` is this as a type. What only some methods can is a small type of its own:
``PersonalMethod`` (clients keep adapters of their own), ``RecordMethod`` (it says itself what the
noised steps of its clients are), ``FoldingMethod`` (who missed a round is sent another size),
``PublicTextMethod`` (it reads public text before its rounds) and ``ServerSiteMethod`` (a site at
the server takes part in every exchange).

A method whose ``TRAITS.units`` holds "record" also protects single records (or the units of a
field), and does not know of it: the learner that ``answer`` is then given trains with DP-SGD, and
the sites it is given hold a numbered place for every unit instead of records. What ``answer``
returns and remembers is then a function of noised factors and public things alone.

``answer`` takes many sites because sites of one process train together in one pass over the shared
base; the update for one request depends on that request, its site and the seed alone (contract
test), so a lone site in another building computes the same update.

A toy: clients send the mean length of their records, the server keeps the noisy mean.

    def init(config, context):
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

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import PrivacyError, require
from aulait.core.lora import Shapes
from aulait.core.seeds import Seeds
from aulait.core.types import (
    Adapter,
    ClientRequest,
    ClientUpdate,
    Info,
    Record,
    Scaling,
    Site,
    Tensors,
    TrainRequest,
    lora_scale,
)
from aulait.core.units import units
from aulait.methods import METHODS
from aulait.methods.description import Traits
from aulait.privacy import record_level
from aulait.privacy.aggregator import PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.mechanisms import DISTRIBUTED_RECORDS, find_mechanism
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
        scaling: how alpha and a rank make the scale of B A.
        stage_ends: rounds of training after which texts are made anew before it goes on.
    """

    shapes: Shapes
    rank: int
    alpha: float
    seeds: Seeds
    rounds: int = 0
    ranks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    scaling: Scaling = "lora"
    stage_ends: tuple[int, ...] = ()

    def rank_of(self, client: str) -> Callable[[str], int]:
        """Layer -> the rank of a client."""
        own = self.ranks.get(client)
        return (lambda layer: self.rank) if own is None else own.__getitem__

    def initial(self) -> Adapter:
        """The start that all share: A random from the run's seed, B zero, of rank R."""
        first = lora.initial(self.shapes, self.rank, self.alpha, self.seeds)
        return replace(first, scaling=self.scaling)

    def adapter(self, tensors: Tensors) -> Adapter:
        """The adapter of these factors at the common scale alpha / R, whatever their rank."""
        return replace(self.own_scale(tensors), rank=self.rank)

    def own_scale(self, tensors: Tensors) -> Adapter:
        """The adapter of these factors, each layer at the scale of its own rank."""
        return replace(lora.from_tensors(tensors, self.alpha), scaling=self.scaling)

    @property
    def scale(self) -> float:
        """What multiplies B A at the common rank R."""
        return lora_scale(self.alpha, self.rank, self.scaling)

    def rescaled(self, to: int, of: int) -> float:
        """What B at the scale of one rank is multiplied by to mean the same at that of another."""
        return to / of if self.scaling == "lora" else math.sqrt(to / of)

    def leading(self, tensors: Tensors, client: str) -> Tensors:
        """The leading ranks of factors that a client can afford."""
        return lora.leading(tensors, self.rank_of(client))


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
        tensors: everything the method must remember, by name: the factors that it trains, and what
            else it needs under tags (``lora.tagged``).
    """

    round: int
    tensors: Tensors

    @property
    def factors(self) -> Tensors:
        """The trained factors, without what is filed under tags."""
        return lora.untagged(self.tensors)


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
        """Bytes that one client sends and receives in a round in which all of ``sites`` answer;
        where merges are folded, after a round in which they and this client answered."""


# The settings belong to the module that they were read for; a type cannot say which, once the
# method is chosen by its name.
AnyMethod = Method[Any]


def find_method(name: str) -> AnyMethod:
    """The module of a method.

    Raises:
        ConfigError: nothing has that name, or a third party's module is broken.
    """
    method: AnyMethod = METHODS.find(name)
    return method


@runtime_checkable
class PersonalMethod(Protocol[ConfigT_contra]):
    """A method whose clients end with adapters of their own."""

    def personal(self, config: ConfigT_contra, context: RunContext, state: State,
                 sites: Sequence[Site], learner: Learner, final: bool) -> dict[str, Adapter]:
        """Client name -> the adapter that this client uses; a client without one is missing.

        ``final`` says that the run is over.
        """


@runtime_checkable
class FoldingMethod(Protocol[ConfigT_contra]):
    """A method whose clients are sent the merge of the round before; who missed it is sent
    another size."""

    def missed_bytes(self, config: ConfigT_contra, context: RunContext, round: int,
                     client: str) -> int:
        """Bytes down of a client that did not answer in the round before."""


@runtime_checkable
class RecordMethod(Protocol[ConfigT_contra]):
    """A method that says itself what the noised steps of its clients are under the unit "record";
    those of others are "dp-sgd"."""

    def mechanism(self, config: ConfigT_contra) -> str:
        """What the accountant sees of a client's step."""

    def record_mechanism(self, config: ConfigT_contra,
                         sites: Sequence[Site]) -> record_level.RecordMechanism:
        """What a round may ask of any record of these sites, at most."""


@runtime_checkable
class SizedMethod(Protocol[ConfigT_contra]):
    """A method that says itself how many numbers its releases have under noise; of others they are
    those that a client sends."""

    def noised_numbers(self, config: ConfigT_contra, context: RunContext) -> int:
        """Numbers of a release."""


def noised_numbers(method: AnyMethod, config: BaseModel, context: RunContext, unit: str) -> int:
    """How many numbers get noise in a round, at all ranks: of a release, or of a site's own steps
    under the unit "record"."""
    if isinstance(method, SizedMethod) and unit == "client":
        return method.noised_numbers(config, context)
    whole = replace(context, ranks={})
    if method.TRAITS.personal:  # what stays with the client is trained under noise all the same
        return sum(method.TRAITS.trains.entries(shape, context.rank)
                   for shape in context.shapes.values())
    return max(method.travels(config, whole, round, "", ("",))[0] // 4 for round in (1, 2))


def step_mechanism(method: AnyMethod, config: BaseModel) -> str:
    """What the accountant sees of a client's step under the unit "record"."""
    return method.mechanism(config) if isinstance(method, RecordMethod) else record_level.DP_SGD


def record_mechanism(method: AnyMethod, config: BaseModel, privacy: PrivacyConfig,
                     sites: Sequence[Site]) -> record_level.RecordMechanism:
    """What a round may ask of any unit of these sites, at most.

    Raises:
        PrivacyError: the method's settings ask for a control, which is not private; or under
            secure aggregation a round is more than one step.
    """
    if isinstance(method, RecordMethod):
        found = method.record_mechanism(config, sites)
    else:
        found = record_level.worst_case(record_level.DP_SGD, [
            (len(units(site.train)), site.plan.steps, site.plan.batch) for site in sites])
    if privacy.secure:
        require(found.steps == 1, PrivacyError,
                f"privacy.trust = 'secure' found with privacy.unit = 'record' and {found.steps} "
                "steps in a round, expected 1: the noise is on the sum of all sites' steps; set "
                "train.steps = 1, and more rounds")
        found = replace(found, mechanism=DISTRIBUTED_RECORDS)
    if not find_mechanism(found.mechanism, "record").amplified:
        return found
    return replace(found, rate=min(found.rate, privacy.max_rate))


# sources of text that a method may ask for beside files: the texts of stage 1 where it has left
# some, else public ones
AUTO, PUBLIC, RELEASED = "auto", "public", "released"


@runtime_checkable
class PublicTextMethod(Protocol[ConfigT_contra]):
    """A method that reads public or released text before some of its rounds, and has something
    that every client is sent once beside its requests (``ClientRequest.kept``)."""

    def wants(self, config: ConfigT_contra, context: RunContext,
              state: State) -> tuple[str, ...]:
        """The sources of text to be read before the round after ``state``: "auto", "public",
        "released", or any that ``data.public`` takes; none where none is read."""

    def text_count(self, config: ConfigT_contra) -> int:
        """How many texts of each source are read, at most."""

    def look(self, config: ConfigT_contra, context: RunContext, state: State, learner: Learner,
             texts: Sequence[Record]) -> State:
        """The state of the next round, after these texts; called before every round."""

    def kept_bytes(self, config: ConfigT_contra, context: RunContext, client: str) -> int:
        """Bytes that a client is sent once in the run, beside its requests."""


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
