"""What a run is made of once everything is loaded, dealt and planned, and what it asks of its
engine.

The types that the files of a run share stand here, below all of them. A function takes the one or
two of them that it uses; ``PreparedRun`` holds them together for the loop and for what the loop
calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

from aulait.core.types import Adapter, Placement, Plan, Profile, Record, Site
from aulait.data.client_data import Corpus
from aulait.federation.planner import Demand
from aulait.methods.contract import Ask, RunContext, State
from aulait.models.loading import Base
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import PrivateAggregator
from aulait.privacy.ledger import Ledger
from aulait.privacy.plan import PrivacyPlan
from aulait.privacy.secure.summation import BeginSecureSum
from aulait.runs.experiment_file import Settings
from aulait.runs.progress import ScoreValues
from aulait.synthesis.embedding import Embedder
from aulait.synthesis.variation import Variation
from aulait.training.trainer import Learner

T = TypeVar("T")


@dataclass
class SharedCache:
    """What several runs of one process share: loaded models, read data, finished first stages, the
    base's scores.

    Attributes:
        kept: name of a thing -> the thing.
    """

    kept: dict[str, object] = field(default_factory=dict)

    def once(self, kind: str, key: object, make: Callable[[], T]) -> T:
        """The thing filed under kind and key, made on first use."""
        name = f"{kind}|{key}"
        if name not in self.kept:
            self.kept[name] = make()
        return cast("T", self.kept[name])


@dataclass(frozen=True)
class TierPlan:
    """What the clients of a tier do.

    Attributes:
        plan: the work of each.
        why: one clause.
        profile: their machine; None where none is named.
        costed: makes ``demand``, once.
    """

    plan: Plan
    why: str
    profile: Profile | None
    costed: Callable[[], Demand]

    @property
    def demand(self) -> Demand:
        """The work of a full share as the planner sees it; made when it is asked for, as not every
        base can be costed."""
        return self.costed().at(self.plan.cut)


@dataclass(frozen=True)
class Models:
    """The models of a run, each loaded once for all runs of a process.

    Attributes:
        base: the frozen model.
        learner: trains on it.
        embedder: gives the embedder of stage 1, loaded when it is first asked for.
        generator: gives the writer of candidates, loaded when it is first asked for.
    """

    base: Base
    learner: Learner
    embedder: Callable[[], Embedder]
    generator: Callable[[], Variation]


@dataclass(frozen=True)
class Federation:
    """Who takes part, with which records and in which role.

    Attributes:
        corpus: the data as read.
        sites: every client, by name.
        tiers: name of a tier -> what its clients do, and why.
        roles: placement -> names of its clients, sorted.
        holdout: held-out records by client, also when the training records are pooled.
        breeds: whether stage 1 has rounds: it takes votes, or at least breeds texts.
        voters: clients that vote in stage 1, sorted.
    """

    corpus: Corpus
    sites: Mapping[str, Site]
    tiers: Mapping[str, TierPlan]
    roles: Mapping[Placement, tuple[str, ...]]
    holdout: Mapping[str, Sequence[Record]]
    breeds: bool
    voters: tuple[str, ...]

    @property
    def trainers(self) -> tuple[str, ...]:
        """Clients that train on their own texts, alone or with the server's half; sorted."""
        return tuple(sorted((*self.roles["local"], *self.roles["split"])))

    @property
    def training_sites(self) -> list[Site]:
        """The sites of the trainers, in the order of their names."""
        return [self.sites[name] for name in self.trainers]

    @property
    def server_tier(self) -> TierPlan:
        """The tier whose work stands for that of the server: that of the proxied clients, else the
        first."""
        return self.proxy_tier or next(iter(self.tiers.values()))

    @property
    def proxy_tier(self) -> TierPlan | None:
        """The first tier of proxied clients, whose work their proxies do; None without one."""
        return next((t for t in self.tiers.values() if t.plan.placement == "proxy"), None)


@dataclass(frozen=True)
class PreparedRun:
    """Everything a run needs before its first round.

    Attributes:
        settings: the experiment.
        context: what every site and the server know.
        models: loaded.
        federation: who takes part.
        privacy: what will be released, with how much noise, at what cost.
        cache: what runs of this process share.
    """

    settings: Settings
    context: RunContext
    models: Models
    federation: Federation
    privacy: PrivacyPlan
    cache: SharedCache

    def first_state(self) -> State:
        """The method's state before the first round."""
        return self.settings.method.init(self.settings.method_config, self.context)


@dataclass(frozen=True)
class Books:
    """One ledger and one accountant, and the aggregator of each stage that writes to them.

    Attributes:
        ledger: of the run folder.
        accountant: knows what every role has spent; None where privacy is off.
        synthesis: releases votes.
        train: releases updates.
    """

    ledger: Ledger
    accountant: Accountant | None
    synthesis: PrivateAggregator
    train: PrivateAggregator


@dataclass(frozen=True)
class HeldOutScores:
    """What a measurement found. All of it is sensitive, unless it was made on public texts.

    Attributes:
        scores: as ``eval`` stands in rounds.jsonl.
        personal: client -> the adapter of its own that it was measured under; empty where the
            method makes none, or where they stay with their clients.
    """

    scores: ScoreValues
    personal: dict[str, Adapter] = field(default_factory=dict)


class Engine(Protocol):
    """How a run reaches its clients; what differs between engines is asked here, by ability."""

    @property
    def clients(self) -> Mapping[str, int] | None:
        """Clients whose records lie elsewhere -> how many records each may be known to have; None
        where the experiment's data are read in this process."""

    @property
    def real_time(self) -> bool:
        """Whether a round takes the seconds that the clients' own machines take.

        Then no virtual clock runs, and under privacy the seconds are not told: the slowest site
        sets them, and so they would tell of its records.
        """

    @property
    def secure_sum(self) -> BeginSecureSum:
        """Begins a secure sum with the clients, under ``privacy.trust = "secure"``."""

    def connect(self, run: PreparedRun, sites: Mapping[str, Site]) -> Ask:
        """A way to get updates for requests.

        Args:
            run: what takes part.
            sites: by name, those of the server among them; requests name the site they are for.

        Returns:
            A function that may give its updates lazily: a client then works while the caller reads
            the updates.
        """

    def evaluate(self, run: PreparedRun, state: State | None, final: bool) -> HeldOutScores:
        """Scores of held-out records, wherever they lie, under what ``state`` of the method
        gives; of the bare base where it is None.

        ``final`` says that this is the last measurement: then personal methods also tell
        ``shared``, the scores of the shared adapter.
        """

    def personal(self, run: PreparedRun, state: State) -> dict[str, Adapter]:
        """Adapters of clients' own after the last round; empty where they stay with their
        clients."""

    def close(self) -> None:
        """The run is over, well or not: end what was started for it. A later run starts it anew."""
