"""A stage of training: rounds of federated LoRA by clients and proxies together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from aulait.core.cohort import (
    Buffer,
    Cohort,
    cohort_of_turn,
    everyone,
    fixed_sample,
    poisson_sample,
)
from aulait.core.cohort_turn import CohortTurn
from aulait.core.errors import NobodyTrained
from aulait.core.types import ClientRequest, ClientUpdate, Info, Site
from aulait.methods.contract import Ask, Server, State
from aulait.privacy.record_level import PRIVATE, SiteNoise
from aulait.runfolder.schema import TrainRound
from aulait.runs import size_law
from aulait.runs.hostile_clients import flipped, hostile, poisoned
from aulait.runs.prepared import PreparedRun
from aulait.runs.proxies import proxies, public_texts, scrambled, server_sites
from aulait.runs.public_text import after_public_text
from aulait.runs.stage import Execution, PlannedRound, VirtualRound
from aulait.runs.stage_order import StageSpan
from aulait.runs.virtual_time.asynchronous import FilledBuffer
from aulait.runs.virtual_time.clock import Clock, RoundOutcome
from aulait.runs.virtual_time.round_time import RoundCosts
from aulait.training.trainer import learning_rate


class TrainStage:
    """As ``Stage``, over the states of the chosen method."""

    name = "train"
    seconds = ("wall_s",)
    line_type = TrainRound

    def __init__(self, execution: Execution, span: StageSpan) -> None:
        self._execution, self._run = execution, execution.run
        self._progress, self._settings = execution.progress, execution.run.settings
        self._costs = RoundCosts.of(execution.run)
        self.aggregator = execution.books.train
        self.rounds, self.last = self._settings.train.rounds, span.last
        if not self._progress.texts:
            self._progress.texts = public_texts(self._settings, self._run.federation,
                                                self._run.context.seeds)
        self._site_noise = execution.run.privacy.site_noise()

    @cached_property
    def _server_sites(self) -> tuple[dict[str, Site], dict[str, float]]:
        """Sites on the server, and the number of clients that each proxy represents."""
        settings, context = self._settings, self._run.context
        made, represented = proxies(settings, self._run.federation, context.seeds,
                                    self._progress.texts)
        return made | server_sites(settings.method, context.rank), represented

    @cached_property
    def ask(self) -> Ask:
        """Gets updates from clients and from the server's own sites."""
        config = self._settings.federation.hostile
        bad = hostile(self._run.federation.trainers, config, self._run.context.seeds)
        sites = {**self._run.federation.sites, **self._server_sites[0]}
        if config.attack == "label-flip":
            sites |= {name: flipped(sites[name]) for name in bad}
        ask = self._execution.engine.connect(self._run, sites)
        if bad and config.attack != "label-flip":
            ask = poisoned(ask, bad, config)
        if self._site_noise is not None:
            steps = {name: own.plan.steps for name, own in self._run.federation.sites.items()}
            ask = protected(ask, self._site_noise, steps)
        noise_arm = self._settings.synthesis.proxies == "noise"
        return scrambled(ask, self._run.context.seeds) if noise_arm else ask

    @cached_property
    def _clock(self) -> Clock | None:
        return None if self._execution.engine.real_time else self._costs.clock("train")

    @cached_property
    def _buffers(self) -> list[FilledBuffer]:
        return self._costs.buffers()

    @cached_property
    def _proxies_s(self) -> float:
        return self._costs.proxies_s

    def begin(self) -> State:
        """The state of the checkpoint, or of the method before the first round.

        Raises:
            NobodyTrained: every client is proxied, and stage 1 left no text for a proxy.
        """
        if not self._run.federation.trainers and not any(self._server_sites[1].values()):
            stopped = self._progress.stopped
            raise NobodyTrained(
                f"nobody trains: all {len(self._run.federation.sites)} clients are proxied and "
                "stage 1 wrote no text that its proxies could learn from; let it write more "
                "(synthesis.generate, synthesis.texts), use synthesis.proxies = 'public', or give "
                "a tier placement = 'local'" + (
                    f" (stage 1 stopped early: {stopped})" if stopped else ""))
        self._progress.bind({**self._run.federation.sites, **self._server_sites[0]})
        return self._progress.state or self._run.first_state()

    def note(self) -> str:
        """The last held-out loss."""
        scores = self._progress.last_eval
        return f"loss {scores['loss']:.3f}" if scores else ""

    def plan(self, round: int) -> PlannedRound:
        """Draw the cohort, and time it where tiers name machines."""
        if self._settings.federation.asynchronous:
            return self._buffered(round)
        cohort, asked = draw_cohort(self._run, round, self._server_sites[1], self._clock)
        if self._clock is None:
            return PlannedRound(cohort, None)
        outcome = self._outcome(self._clock, cohort, asked)
        shown = outcome
        if (stand_in := self._shown(cohort, asked)) != asked:
            shown = self._outcome(self._clock, cohort, stand_in)
        return PlannedRound(cohort, VirtualRound(self._clock, outcome, shown))

    def _buffered(self, round: int) -> PlannedRound:
        """Of the asynchronous schedule, which is public: what it says of time is told as it is."""
        assert self._clock is not None  # the settings name a machine of every tier
        filled = self._buffers[round - 1]
        cohort = buffered_cohort(self._run, round, self._server_sites[1], filled)
        return PlannedRound(cohort, VirtualRound(self._clock, filled.outcome, filled.outcome),
                            self._progress.at_work)

    def _outcome(self, clock: Clock, cohort: Cohort, asked: Sequence[str]) -> RoundOutcome:
        """A round of virtual time; with over-selection it ends when the planned number has
        answered, else when all have."""
        closing = cohort.planned if self._settings.compute.over_selection else None
        return clock.round(asked, "train", cohort.round, planned=closing,
                           server_s=self._proxies_s + self._costs.server_halves_s(asked))

    def _shown(self, cohort: Cohort, asked: tuple[str, ...]) -> tuple[str, ...]:
        """The clients whose round of virtual time is told: under privacy with secret sampling,
        another cohort of the same law.

        Slow-downs follow from the public seed, so the times of the real cohort would tell who was
        drawn.
        """
        config = self._settings.federation
        if self._settings.privacy.off or config.sampling != "poisson":
            return asked
        return poisson_sample(self._run.federation.trainers, config.rate, self._run.context.seeds,
                       cohort.round, secret=False)

    def step(self, state: State, cohort: Cohort, server: Server) -> tuple[State, Info]:
        """One round of the method."""
        looked = after_public_text(self._run, state, self._progress.texts)
        after, info = self._settings.method.step(
            self._settings.method_config, self._run.context, looked, cohort, server)
        if self._site_noise is not None and not self._site_noise.summed:
            info = info | {"step_noise_std": self._site_noise.sigma}
        return after, info

    def measure(self, state: State, round: int) -> Info:
        """Held-out scores, after the last round and every so many."""
        final = round == self.rounds
        if round < self.last and round % self._settings.evaluate.every:
            return {}
        self._evaluate(state, final)
        if self._settings.train.keep == "best":
            self._progress.choose(state)
        return {"eval": self._progress.last_eval}

    def _evaluate(self, state: State, final: bool) -> None:
        found = self._execution.engine.evaluate(self._run, state, final)
        self._progress.last_eval, self._progress.personal = found.scores, found.personal

    def keep(self, state: State, info: Info, step_s: float, measure_s: float) -> None:
        """The method's state, bytes and seconds."""
        self._progress.state = state
        self._progress.add(train_s=step_s, train_up_bytes=info.get("up_bytes"),
                           train_down_bytes=info.get("down_bytes"), evaluate_s=measure_s)

    def end(self, state: State | None) -> None:
        """Measure a run that ended early."""
        assert state is not None  # this stage always has rounds
        self._execution.watch("train", self.last, self.rounds, "")
        self._progress.state = state
        self._progress.advance(self._settings.stage_spans)
        final = self.last == self.rounds
        if final and (self._progress.stopped or not self._progress.last_eval):
            self._evaluate(state, final=True)
        if final and self._settings.train.keep == "best" and self._progress.best_eval:
            self._progress.last_eval = self._progress.best_eval
        self._progress.save(self._execution.folder)


def protected(ask: Ask, noise: SiteNoise, steps: Mapping[str, int]) -> Ask:
    """Ask the clients for training with noise of their own; sites of the server train on public
    texts and need none.

    Args:
        ask: gets updates.
        noise: what is charged, the worst of all clients.
        steps: client -> its own noised steps in a round, of which it is asked for no more.
    """
    def asking(requests: Sequence[ClientRequest]) -> Iterable[ClientUpdate]:
        return ask([
            replace(request, settings={
                **request.settings, PRIVATE: noise.of_steps(steps[request.client]).setting()})
            if request.client in steps else request for request in requests])

    return asking


def draw_cohort(run: PreparedRun, round: int, represented: Mapping[str, float],
                clock: Clock | None) -> tuple[Cohort, tuple[str, ...]]:
    """Who works in a round and the public numbers of its release; and who would have been asked,
    those who are away among them.

    Who is away is in the planned number all the same. A fixed number is drawn from those who are
    available.

    Args:
        run: its clients, and how they are sampled.
        round: counted from 1.
        represented: proxy -> the number of clients that it represents.
        clock: says who is available; None: everybody is.
    """
    config, settings, seeds = run.settings.federation, run.settings, run.context.seeds
    names = run.federation.trainers
    drawn, planned, rate = everyone(names), config.planned(len(names)), 1.0
    turn = CohortTurn.of_round(round, config.cohorts)
    if turn is not None:
        drawn = cohort_of_turn(names, turn, seeds)
        planned = len(drawn) if settings.privacy.secure else planned
    if config.sampling == "poisson":
        drawn = poisson_sample(names, config.rate, seeds, round, secret=not settings.privacy.off)
        rate = config.rate
    available = clock.present(drawn, "train", round) if clock else drawn
    if config.sampling == "fixed":
        more = round_half(planned * (1 + settings.compute.over_selection))
        drawn = available = fixed_sample(available, min(more, len(available)), seeds, round)
    cohort = replace(_cohort(run, round, represented), local=available, planned=planned,
                     sampling_rate=rate, turn=turn)
    return cohort, drawn


def buffered_cohort(run: PreparedRun, round: int, represented: Mapping[str, float],
                    filled: FilledBuffer) -> Cohort:
    """Who begins in a round of the asynchronous schedule and whose updates fill its buffer;
    arguments as of ``draw_cohort``."""
    config = run.settings.federation
    buffer = Buffer(frozenset(filled.beginning), filled.filling, config.staleness,
                    min(config.contributions or run.context.rounds, run.context.rounds))
    return replace(_cohort(run, round, represented), planned=len(filled.filling), buffer=buffer,
                   local=tuple(sorted({*filled.beginning, *filled.filling})))


def _cohort(run: PreparedRun, round: int, represented: Mapping[str, float]) -> Cohort:
    """The public numbers of a round, with nobody in it yet."""
    share = run.settings.federation.share  # a proxied client would have been drawn as often
    return Cohort(
        round=round, local=(), planned=0,
        proxies={name: share * clients for name, clients in represented.items()},
        noise_multiplier=run.privacy.noise_multiplier("train"),
        search_noise_multiplier=run.privacy.noise_multiplier("search"),
        lr=learning_rate(run.settings.train, round),
        population=everyone(run.federation.trainers), step=_step(run, round))


def _step(run: PreparedRun, round: int) -> float | None:
    """What a sum of sites' clipped gradients is multiplied by, so that divided by the planned
    number of sites it is a step along the mean over all units that a round expects; None where
    sites step by themselves."""
    noise = run.privacy.site_noise()
    if noise is None or not noise.summed:
        return None
    expected = size_law.expected_units(run.federation, noise.most_rate)
    return -learning_rate(run.settings.train, round) * len(expected) / sum(expected)


def round_half(value: float) -> int:
    """Nearest integer, halves up."""
    return int(value + 0.5)
