"""The engine without a network: every site lives in this process and trains together with its
neighbours.

Sites of placement "split" answer by the same method with a learner whose model is cut, so that they
are one role among others in every method whose clients train by ``Learner.train``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from aulait.core.errors import ConfigError, require
from aulait.core.types import (
    Adapter,
    ClientRequest,
    ClientUpdate,
    SearchRequest,
    Site,
    TrainRequest,
    VoteRequest,
)
from aulait.engines.contract import HeldOutScores, PreparedRun
from aulait.engines.workers.pool import WorkerPool
from aulait.methods.contract import AnyMethod, Ask, RunContext, State
from aulait.methods.shared import line_search
from aulait.methods.shared.private_answer import answer_privately
from aulait.privacy.record_level import SiteNoise
from aulait.privacy.secure.local_round import begin_round
from aulait.privacy.secure.summation import BeginSecureSum
from aulait.runs.scoring import evaluate_here, personal_adapters
from aulait.synthesis import private_evolution
from aulait.synthesis.embedding import Embedder
from aulait.training.activation_codec import Wire
from aulait.training.own_training import OwnLearner, TrainSite
from aulait.training.split_trainer import SplitLearner
from aulait.training.trainer import AT_ONCE, Learner

WHOLE = 1_000_000  # in place of a cut: behind every one of them


class InlineEngine:
    """As ``Engine``: all records are here, and time is virtual where tiers name machines."""

    clients: Mapping[str, int] | None = None
    real_time = False
    secure_sum: BeginSecureSum = staticmethod(begin_round)

    def __init__(self, train: TrainSite | None = None) -> None:
        """``train`` trains a site in place of the built-in steps; None for these."""
        self._train = train
        self._pool = WorkerPool()

    def connect(self, run: PreparedRun, sites: Mapping[str, Site]) -> Ask:
        """A way to get updates from sites in this process; where there are workers these train.

        Raises:
            ConfigError: a function of the user's own would train where the promise, or the cut
                model, is in the steps themselves, or in another process; or the workers asked for
                cannot be had.
        """
        clients = LocalClients.of(run, sites)
        if self._train is None:
            return replace(clients, learner=self._pool.learner(run)).ask
        _check_own_training(run)
        return replace(clients, learner=OwnLearner(clients.learner, self._train)).ask

    def evaluate(self, run: PreparedRun, state: State | None, final: bool) -> HeldOutScores:
        """Scores of the held-out records of this process."""
        return evaluate_here(run, state, final)

    def personal(self, run: PreparedRun, state: State) -> dict[str, Adapter]:
        """Adapters of clients' own after the last round."""
        return personal_adapters(run, state, final=True)

    def close(self) -> None:
        """End the workers, if there were any."""
        self._pool.close()


def _check_own_training(run: PreparedRun) -> None:
    """Raise unless sites may be trained by a function of the user's own."""
    require(not run.settings.privacy.protects_records, ConfigError,
            "a training function found with privacy.unit = 'record', expected the unit 'client': "
            "for single records the noise is in the steps themselves; leave the function out, or "
            "protect whole clients")
    require(not run.federation.roles["split"], ConfigError,
            "a training function found with split clients, whose steps go through the server; "
            "leave the function out, or place them 'local'")
    require(not run.settings.engine.spreads, ConfigError,
            "a training function found with engine.workers above 1 or engine.name = 'ray', where "
            "other processes train that do not have it; leave the function out, or set "
            "engine.workers = 1")


@dataclass(frozen=True)
class LocalClients:
    """Sites of this process, the server's own among them.

    Attributes:
        sites: by name; requests name the site they are for.
        method: its ``answer`` handles requests of stage "train".
        context: what all sites know.
        learner: the shared base.
        embedder: gives the embedder for requests of stage "synthesis"; None when there are none.
        wire: how activations and gradients of sites of placement "split" travel.
        private: whether the run promises privacy; then no site may be split.
    """

    sites: Mapping[str, Site]
    method: AnyMethod
    context: RunContext
    learner: Learner
    embedder: Callable[[], Embedder] | None = None
    wire: Wire = "float32"
    private: bool = True

    @classmethod
    def of(cls, run: PreparedRun, sites: Mapping[str, Site]) -> LocalClients:
        """Some sites of a run."""
        compute, private = run.settings.compute, not run.settings.privacy.off
        return cls(sites, run.settings.method, run.context, run.models.learner,
                   run.models.embedder, compute.wire, private)

    @cached_property
    def _split_learner(self) -> Callable[[int], SplitLearner]:
        """Cut -> the learner of sites that are split there."""
        return cache(lambda cut: SplitLearner(self.learner, cut, self.wire, private=self.private))

    def _learner_of(self, site: Site) -> Learner:
        """What trains a site: the shared base, whole or cut."""
        if site.plan.placement != "split":
            return self.learner
        require(site.plan.cut is not None, ConfigError,
                f"client '{site.name}' is split and no cut is given; say after how many blocks")
        assert site.plan.cut is not None
        return self._split_learner(site.plan.cut)

    def ask(self, requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
        """Updates in the order of the requests; sites work while they are read, some at a time.

        Raises:
            ConfigError: a split site is asked to train, and no cut is given.
            PrivacyError: a split site is asked to train, and the run promises privacy.
            ModelError: the model cannot be cut there.
        """
        for first in range(0, len(requests), AT_ONCE):
            some = requests[first : first + AT_ONCE]
            chosen = [self.sites[request.client] for request in some]
            if votes := [request for request in some if isinstance(request, VoteRequest)]:
                assert self.embedder is not None
                yield from private_evolution.answer(votes, chosen, self.context, self.embedder())
            elif found := [request for request in some if isinstance(request, SearchRequest)]:
                yield from line_search.answer(found, chosen, self.method, self.context,
                                              self.learner)
            else:
                training = [request for request in some if isinstance(request, TrainRequest)]
                yield from self._trained(training, chosen)

    def _trained(self, requests: Sequence[TrainRequest],
                 sites: Sequence[Site]) -> Iterator[ClientUpdate]:
        """Sites of one kind together; updates in the order given."""
        kinds: dict[tuple[int, SiteNoise | None], list[int]] = {}
        for i, (request, site) in enumerate(zip(requests, sites, strict=True)):
            cut = (site.plan.cut or 0) if site.plan.placement == "split" else WHOLE
            kinds.setdefault((cut, SiteNoise.read(request.settings)), []).append(i)
        found: dict[int, ClientUpdate] = {}
        for (_, noise), some in sorted(kinds.items(), key=lambda kind: kind[0][0]):
            updates = self._answered([requests[i] for i in some], [sites[i] for i in some],
                                     noise, self._learner_of(sites[some[0]]))
            found.update(zip(some, updates, strict=True))
        yield from (found[i] for i in range(len(requests)))

    def _answered(self, requests: Sequence[TrainRequest], sites: Sequence[Site],
                  noise: SiteNoise | None, learner: Learner) -> list[ClientUpdate]:
        """Updates of sites of one kind: with noise of their own, or without."""
        if noise is None:
            return self.method.answer(requests, sites, self.context, learner)
        return answer_privately(self.method, requests, sites, self.context, learner, noise)
