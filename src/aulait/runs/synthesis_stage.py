"""A stage of synthesis: vote, retrieve and breed, make the final set, and deal it to the proxies.

After a training the generator writes with the adapter that was released; a later stage goes on from
the winners of the one before. A first stage that another run of this process made with the very
same settings is taken over with its ledger.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property

from aulait.core.cohort import Cohort
from aulait.core.files import JsonObject
from aulait.core.places import user_cache, user_path
from aulait.core.types import Info
from aulait.methods.contract import Ask, Server
from aulait.models.loading import wearing
from aulait.privacy.ledger_line import LedgerLine
from aulait.runfolder.schema import SynthesisRound, SyntheticLine
from aulait.runs.hostile_clients import hostile, poisoned
from aulait.runs.prepared import PreparedRun
from aulait.runs.privacy_schedule import vote_bound, vote_role
from aulait.runs.proxies import proxy_count
from aulait.runs.stage import Execution, PlannedRound, VirtualRound
from aulait.runs.stage_order import StageSpan
from aulait.runs.virtual_time.round_time import RoundCosts
from aulait.synthesis import private_evolution, rounds
from aulait.synthesis.corpus_index import open_corpus
from aulait.synthesis.population import EvolutionState, Text
from aulait.synthesis.private_evolution import EvolutionContext
from aulait.synthesis.retrieval import RetrievalContext
from aulait.synthesis.rounds import SynthesisContext
from aulait.synthesis.voting import VoteRule


@dataclass(frozen=True)
class FinishedSynthesis:
    """A first stage that other runs of this process may take over.

    Attributes:
        texts: the synthetic set, dealt to proxies.
        lines: of rounds.jsonl.
        ledger: every line of the ledger.
        totals: seconds and bytes.
        state: after the last round.
    """

    texts: list[list[Text]]
    lines: list[JsonObject]
    ledger: list[LedgerLine]
    totals: dict[str, float]
    state: EvolutionState | None


class SynthesisStage:
    """As ``Stage``, over the states of private evolution."""

    name = "synthesis"
    seconds = ("wall_s", "client_s")
    line_type = SynthesisRound

    def __init__(self, execution: Execution, span: StageSpan) -> None:
        self._execution, self._run = execution, execution.run
        self._progress, self._config = execution.progress, execution.run.settings.synthesis
        self._costs = RoundCosts.of(execution.run)
        self._role = vote_role(execution.run.settings, bool(execution.run.federation.trainers))
        self._started = time.perf_counter()
        self.aggregator = execution.books.synthesis
        self.rounds, self.last, self._span = execution.run.settings.votings, span.last, span

    @cached_property
    def _context(self) -> SynthesisContext:
        """Embedder, generator and corpus are loaded when the stage first needs them."""
        return SynthesisContext(cache(self._evolution), cache(self._retrieval))

    def _evolution(self) -> EvolutionContext:
        run, rule = self._run, self._rule
        return EvolutionContext(run.context.seeds, run.federation.corpus.public,
                                run.models.embedder(), run.models.generator(), rule.bound,
                                rule.noise)

    def _retrieval(self) -> RetrievalContext:
        """The corpus is embedded and clustered once for all runs of a process."""
        run, config = self._run, self._config
        settings, public = run.settings, run.federation.corpus.public
        key = (settings.data, run.context.seeds, config.embedder, config.max_tokens,
               config.retrieve)
        kept = user_path(config.retrieve.cache) if config.retrieve.cache else None
        corpus = run.cache.once("public-corpus", key, lambda: open_corpus(
            public, run.models.embedder(), config.max_tokens, config.retrieve.cells,
            kept or user_cache() / "corpora"))
        return RetrievalContext(run.context.seeds, corpus, self._rule)

    @property
    def _rule(self) -> VoteRule:
        return VoteRule(self._config.neighbours, vote_bound(self._run.settings),
                        self._run.privacy.site_noise(self.name))

    @cached_property
    def ask(self) -> Ask:
        """Gets votes from clients."""
        run = self._run
        ask = self._execution.engine.connect(run, run.federation.sites)
        config = run.settings.federation.hostile
        bad = hostile(run.federation.voters, config, run.context.seeds)
        return poisoned(ask, bad, config) if bad and config.attack != "label-flip" else ask

    def begin(self) -> EvolutionState | None:
        """The state of the checkpoint, or public texts as first candidates, or candidates from an
        earlier stage; None where nobody breeds, where another run's first stage has been taken
        over, and where the budget was spent in an earlier stage."""
        held = self._progress.synthesis
        if not self._run.federation.breeds or (held and held.round < self._span.first - 1):
            return None
        if self._opens:
            done = self._run.cache.kept.get(_key(self._run))
            fresh = held is None and not self._execution.books.ledger.lines
            if isinstance(done, FinishedSynthesis) and fresh:
                _take_over(done, self._execution)
                return None
        with self._taught():
            if held is None:
                return rounds.init(self._config, self._context)
            later = self._span.first > 1 and held.round < self._span.first
            return rounds.taken_up(self._config, self._context, held) if later else held

    @property
    def _opens(self) -> bool:
        """Whether the run begins with this stage."""
        return self._progress.place == 0

    def _taught(self) -> AbstractContextManager[None]:
        """The base, for as long as it writes: with what training has released, where there has
        been some. That is post-processing."""
        state, run = self._progress.state, self._run
        if state is None or not state.round or not self._config.can_be_taught:
            return nullcontext()
        return wearing(run.models.base, [run.settings.method.result(run.context, state)])

    def note(self) -> str:
        """Whether clients are asked."""
        if not self._run.federation.voters:
            return "breeding" if self._config.writes else "drawing"
        done = self._progress.synthesis.round if self._progress.synthesis else 0
        return "voting on public texts" if done < self._config.levels else "voting"

    def plan(self, round: int) -> PlannedRound:
        """All voters, timed where tiers name machines."""
        voters, real_time = self._run.federation.voters, self._execution.engine.real_time
        clock = None if real_time else self._costs.clock("synthesis", round)
        available = clock.present(voters, "synthesis", round) if clock else voters
        cohort = Cohort(round=round, local=available, proxies={}, planned=len(voters),
                        noise_multiplier=self._run.privacy.noise_multiplier("synthesis"),
                        role=self._role)
        if clock is None:
            return PlannedRound(cohort, None)
        outcome = clock.round(voters, "synthesis", round, after_s=self._costs.breeding_s(round))
        return PlannedRound(cohort, VirtualRound(clock, outcome, outcome))

    def step(self, state: EvolutionState, cohort: Cohort,
             server: Server) -> tuple[EvolutionState, Info]:
        """One vote and one breeding."""
        with self._taught():
            return rounds.step(self._config, self._context, state, cohort, server)

    def measure(self, state: EvolutionState, round: int) -> Info:
        """Nothing is measured: texts are no adapter."""
        return {}

    def keep(self, state: EvolutionState, info: Info, step_s: float, measure_s: float) -> None:
        """The candidates, bytes and seconds."""
        self._progress.synthesis = state
        self._progress.add(synthesis_up_bytes=info.get("up_bytes"),
                           synthesis_down_bytes=info.get("down_bytes"),
                           client_s=info.get("client_s"))

    def end(self, state: EvolutionState | None) -> None:
        """Write the final set and deal it to the proxies."""
        run, progress = self._run, self._progress
        if state is not None:
            self._execution.watch("synthesis", self.last, self.rounds,
                                  "writing the synthetic set")
            self._write(state, proxy_count(run.settings, run.federation))
        if run.federation.breeds:
            self._execution.folder.write_lines("synthetic.jsonl", [
                SyntheticLine(**text.as_dict(), client=f"proxy-{k:03d}").on_disk()
                for k, shard in enumerate(progress.texts) for text in shard])
        progress.advance(run.settings.stage_spans)
        progress.save(self._execution.folder)

    def _write(self, state: EvolutionState, count: int) -> None:
        """The final set, for the proxies of this run and for other runs of this process."""
        progress, books = self._progress, self._execution.books
        progress.synthesis = state
        if state.winners or state.cells:
            with self._taught():
                texts = rounds.final_set(self._config, self._context, state)
            progress.texts = private_evolution.shards(texts, count, self._run.context.seeds)
        progress.add(synthesis_s=time.perf_counter() - self._started)
        if self._opens and not progress.stopped:
            self._run.cache.kept[_key(self._run)] = FinishedSynthesis(
                progress.texts, self._execution.folder.lines(), list(books.ledger.lines),
                dict(progress.totals), state)


def _key(run: PreparedRun) -> str:
    """All that determines stage 1: equal keys, equal first stage (up to the privacy noise)."""
    s, sites = run.settings, run.federation.sites
    privacy = s.privacy.model_dump(include={"off", "epsilon", "noise_multiplier", "delta",
                                            "relation", "noise_seed", "vote_fraction",
                                            "mechanism", "unit", "unit_field",
                                            "records_per_unit", "trust", "dropouts",
                                            "colluders"})
    machines = [[t.name, t.machine, t.link, t.availability, t.dropout, t.spread]
                for t in s.federation.tier if t.machine]
    virtual = [machines, s.compute.model_dump(), {n: own.plan.tier for n, own in sites.items()}]
    parts = [s.run.seed, s.model.model_dump(), s.data.model_dump(), s.unit_rule,
             list(run.federation.roles["proxy"]), run.privacy.noise_multiplier("synthesis"),
             privacy, s.synthesis.model_dump(exclude={"proxies"}), virtual if machines else None,
             s.federation.max_norm, s.engine.threads]
    return "stage-one|" + json.dumps(parts, default=str)


def _take_over(done: FinishedSynthesis, execution: Execution) -> None:
    """Copy a first stage: its texts, its lines, and every ledger line, which this run's releases
    are added to."""
    books, progress = execution.books, execution.progress
    execution.run.privacy.check_run(
        [(line["stage"], line["round"]) for line in done.lines], done.ledger)
    for entry in done.ledger:
        books.ledger.append(entry)
        if books.accountant is not None:
            books.accountant.add(entry.role, entry.event)
    for line in done.lines:
        reused = SynthesisRound.model_validate({**line, "reused": True})
        execution.folder.append(reused.on_disk())
    progress.texts, progress.synthesis = done.texts, done.state
    progress.totals = dict(done.totals)
