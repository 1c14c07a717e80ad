"""What rounds take on the clients' machines and on the server, by the cost model; and the virtual
clock made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from aulait.core import lora
from aulait.core.types import Plan, Profile
from aulait.federation import planner
from aulait.federation.planner import Assignment
from aulait.federation.tiers import TierConfig
from aulait.methods.contract import RunContext
from aulait.methods.shared import line_search
from aulait.resources import cost_model, profiles
from aulait.resources.capacity import EMBEDDER
from aulait.runs.attendance import Attendance, expected_bytes
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import Federation, PreparedRun, TierPlan
from aulait.runs.virtual_time.asynchronous import FilledBuffer, Pace, schedule
from aulait.runs.virtual_time.clock import Clock, Stint
from aulait.synthesis import corpus_index
from aulait.training import split_model, split_trainer
from aulait.training.trainer import Learner, LocalTraining

CHOSEN = 0.2  # share of a corpus that lies in the chosen clusters: 0.15 was seen with 60 clients

@dataclass(frozen=True)
class RoundCosts:
    """Bytes, seconds and arithmetic of rounds, as planned.

    Attributes:
        settings: the experiment.
        context: what every site knows.
        federation: who takes part.
    """

    settings: Settings
    context: RunContext
    federation: Federation

    @classmethod
    def of(cls, run: PreparedRun) -> RoundCosts:
        """Those of a run."""
        return cls(run.settings, run.context, run.federation)

    @property
    def server(self) -> Profile:
        """The server's machine."""
        return profiles.find_profile(self.settings.compute.server)

    # -- clients -------------------------------------------------------------------------------

    def travelled(self, name: str) -> tuple[int, int]:
        """Bytes up and down of one local client over all rounds, as if it took part in every
        one."""
        rounds = range(1, self.settings.train.rounds + 1)
        each = [self._factors(self.context, name, round) for round in rounds]
        return sum(up for up, _ in each), sum(down for _, down in each)

    def exchanged(self, learner: Learner, names: Sequence[str], round: int) -> tuple[int, int]:
        """Bytes up and down of split clients of a tier together in a round: their steps, whose
        draws are seeded, and the factors of their half. Exact where everybody takes part."""
        settings, context, sites = self.settings, self.context, self.federation.sites
        after, wire = sites[names[0]].plan.cut, settings.compute.wire
        assert after is not None  # they are split
        start = lora.initial(context.shapes, context.rank, context.alpha, context.seeds)
        trainable = settings.method.TRAITS.trains
        works = [LocalTraining(start, sites[name].train, trainable, sites[name].plan.steps,
                      sites[name].plan.batch, 0.0, context.seeds.integer("batches", round, name))
                 for name in names]
        steps = split_trainer.travelled(learner, works, after, wire)
        client_half = split_model.client_layers(context.shapes, after)
        own = replace(context, shapes={layer: context.shapes[layer] for layer in client_half})
        factors = [self._factors(own, name, round) for name in names]
        return (sum(up for up, _ in (*steps, *factors)),
                sum(down for _, down in (*steps, *factors)))

    def _factors(self, context: RunContext, name: str, round: int) -> tuple[int, int]:
        """Bytes up and down of a client in a round, by the method's own formula."""
        settings = self.settings
        up, down = expected_bytes(settings.method, settings.method_config, context, round, name,
                                  self._before(name))
        if self._searches:
            more_up, more_down = line_search.travels(up, self.proxy_count > 0)
            return up + more_up, down + more_down
        return up, down

    def _before(self, name: str) -> Attendance:
        """Who answered the round before: drawn by the run's sampling, and not lost. What a deadline
        or over-selection leaves out is not foreseen."""
        here, other = self.settings.federation.again(len(self.federation.trainers))
        answers, rank_of = self._answers(name), self.context.rank_of(name)
        stand_ins = self.proxy_count * self.context.rank
        others = {layer: other * (total - answers * rank_of(layer)) + stand_ins
                  for layer, total in self._answered_ranks.items()}
        return Attendance(here * answers, others, self.federation.trainers)

    @cached_property
    def _answered_ranks(self) -> dict[str, float]:
        """Layer -> the ranks of all clients that train, each times the chance that it answers when
        asked."""
        known = [(self._answers(name), self.context.rank_of(name))
                 for name in self.federation.trainers]
        return {layer: sum(answers * rank_of(layer) for answers, rank_of in known)
                for layer in self.context.shapes}

    def _answers(self, name: str) -> float:
        """The chance that a client answers when asked."""
        return 1.0 - self._dropouts.get(self.federation.sites[name].plan.tier, 0.0)

    @cached_property
    def _dropouts(self) -> dict[str, float]:
        return {tier.name: tier.dropout for tier in self.settings.federation.tier}

    @property
    def _searches(self) -> bool:
        """Whether the clients that train search for the server's step."""
        return line_search.searches(self.settings.method_config)

    def _search_s(self, own: TierPlan, machine: Profile) -> float:
        """Seconds in which a client measures the steps of a round's search."""
        records = line_search.records_of(len(self.federation.trainers))
        once = cost_model.evaluation(own.demand.model_shape, own.demand.batch(records),
                                     own.demand.ranks(own.plan.rank), own.demand.dtype)
        steps = 1 + line_search.step_count(self.proxy_count > 0)
        return steps * cost_model.seconds(once, machine, own.demand.dtype)

    def assignment(self, tier: str) -> Assignment:
        """What a training round takes a client of a tier (a proxied client: a round of votes);
        where no machine is named, on an A100."""
        own = self.federation.tiers[tier]
        demand, plan, rounds = own.demand, own.plan, max(1, self.settings.train.rounds)
        if plan.placement == "local":
            sites = self.federation.sites
            member = next(n for n in self.federation.trainers if sites[n].plan.tier == tier)
            up, down = self.travelled(member)
            demand = replace(demand, travels=lambda _: (round(up / rounds), round(down / rounds)))
        machine = own.profile or profiles.profile("a100")
        found = planner.WAYS[plan.placement](demand, machine, plan.rank, plan.steps, plan.batch)
        if plan.placement == "local" and self._searches:
            return replace(found, compute_s=found.compute_s + self._search_s(own, machine))
        return found

    # -- the server ----------------------------------------------------------------------------

    @property
    def proxy_count(self) -> int:
        """Sites on the server that train."""
        synthesis = self.settings.synthesis
        represented = len(self.federation.roles["proxy"]) if synthesis.proxies != "absent" else 0
        return min(synthesis.proxy_count, represented, synthesis.texts)

    @property
    def proxy_plan(self) -> Plan:
        """The work that a proxy does, which is that of the clients it represents."""
        tier = self.federation.proxy_tier
        assert tier is not None
        return tier.plan

    @property
    def proxy_step(self) -> cost_model.Cost:
        """One step of a proxy, which has the adapter's full rank."""
        demand, rank = self.federation.server_tier.demand, self.settings.adapter.rank
        return cost_model.lora_step(
            demand.model_shape, demand.batch(self.proxy_plan.batch),
            dict.fromkeys(self.context.shapes, rank), trainable=demand.trainable,
            dtype=demand.dtype)

    @property
    def proxies_s(self) -> float:
        """Seconds in which the server trains all proxies once."""
        if not self.proxy_count:
            return 0.0
        step_s = cost_model.seconds(self.proxy_step, self.server, self.settings.model.dtype)
        return self.proxy_count * self.proxy_plan.steps * step_s

    def server_halves_s(self, asked: Sequence[str]) -> float:
        """Seconds in which the server works through its half of the model of all split clients
        that are asked, tier by tier."""
        count: dict[str, int] = {}
        for name in asked:
            if self.federation.sites[name].plan.placement == "split":
                tier = self.federation.sites[name].plan.tier
                count[tier] = count.get(tier, 0) + 1
        tiers = [(self.federation.tiers[tier], number) for tier, number in count.items()]
        return sum(own.plan.steps * planner.backs_s(own.demand, own.plan.rank, own.plan.batch,
                                                    number) for own, number in tiers)

    def breeding_s(self, round: int) -> float:
        """Seconds in which the server writes the texts of a round of stage 1 and embeds the
        candidates."""
        if not self.federation.breeds:
            return 0.0
        return sum(cost_model.seconds(work, self.server, dtype)
                   for work, dtype in self.breeding(round))

    def breeding(self, round: int, tokens: int | None = None) -> list[tuple[cost_model.Cost, str]]:
        """(work, precision) of a round of stage 1 at the server: candidates embedded, texts written
        (by the base; of others not known).

        Args:
            round: from 1.
            tokens: of a text that is embedded; None takes the most that is read of one.
        """
        config, demand = self.settings.synthesis, self.federation.server_tier.demand
        levels = config.levels  # the public texts are embedded before the first of them
        embedded = config.pool if round > levels else self._embedded_public if round == 1 else 0
        found = [(cost_model.embedding(*EMBEDDER, embedded, tokens or config.max_tokens),
                  "float32")]
        if config.generator == "base" and config.writes:
            rows, tokens = config.generate.batch, config.generate.max_tokens
            prompt = int(tokens * sum(config.generate.keep) / 2)
            one = cost_model.generation(demand.model_shape, rows, prompt, tokens - prompt,
                                        demand.dtype)
            found.append((one * (self._written(round) / rows), demand.dtype))
        return found

    @property
    def _embedded_public(self) -> int:
        """Public texts that the server embeds: all, or those of the chosen clusters where the
        clusters come with the package."""
        public, config = self.federation.corpus.public, self.settings.synthesis
        known = config.retrieves and corpus_index.is_packaged(public, config.embedder,
                                                              config.retrieve.cells)
        return math.ceil(CHOSEN * len(public)) if known else len(public)

    def _written(self, round: int) -> int:
        """Texts that the generator writes in a round of stage 1: children, variations for looking
        ahead, in the last of a stage the final set."""
        config = self.settings.synthesis
        spans = [s for s in self.settings.stage_spans if s.name == "synthesis"]
        final = (round in [s.last for s in spans]
                 and config.expansion in ("vary", "write", "topics"))
        anew = round > 1 and round in [s.first for s in spans]  # candidates of a later stage
        share = config.retrieve.written if config.retrieves else 1.0
        last = int(share * config.texts) if final else 0
        if round <= config.levels:
            return last
        bred = config.candidates * config.variations * (1 + anew)
        return bred + config.lookahead * config.pool + last

    # -- the clock -----------------------------------------------------------------------------

    def clock(self, stage: str, round: int = 1) -> Clock | None:
        """Virtual time of a stage; None where no tier names a machine. In the first round of votes
        a client embeds its records."""
        if not any(own.profile for own in self.federation.tiers.values()):
            return None
        return Clock(self.stints(stage, round), self.context.seeds,
                     self.settings.compute.deadline_s)

    def buffers(self) -> list[FilledBuffer]:
        """The asynchronous schedule of the whole run.

        Raises:
            ConfigError: the clients cannot fill its buffers.
        """
        config, names = self.settings.federation, self.federation.trainers
        size = config.drawn(len(names))
        rounds = self.settings.train.rounds
        pace = Pace(size, config.at_work or size, config.contributions or rounds, self.proxies_s)
        return schedule(self.stints("train"), self.context.seeds, pace, rounds)

    def stints(self, stage: str, round: int = 1) -> dict[str, Stint]:
        """What a round of a stage takes every client on its machine."""
        sites = self.federation.sites
        names = self.federation.trainers if stage == "train" else self.federation.voters
        configs = {tier.name: tier for tier in self.settings.federation.tier}
        stints: dict[str, Stint] = {}
        for tier in dict.fromkeys(sites[name].plan.tier for name in names):
            took = self.assignment(tier) if stage == "train" else self._vote(tier, round)
            stints[tier] = _stint(self.federation.tiers[tier], took, configs[tier])
        return {name: stints[sites[name].plan.tier] for name in names}

    def _vote(self, tier: str, round: int) -> Assignment:
        """A round of votes of a client, local ones included; records are embedded in the first."""
        own, config = self.federation.tiers[tier], self.settings.synthesis
        demand, plan = own.demand, own.plan
        assert own.profile is not None
        assert demand.vote is not None
        if round > 1:
            ballot = config.ballot(round, len(self.federation.corpus.public))
            counting = cost_model.voting(self.settings.data.records_per_client, ballot,
                                         EMBEDDER[1])
            demand = replace(demand, vote=(counting, demand.vote[1]))
        return planner.proxy(demand, own.profile, plan.rank, plan.steps, plan.batch)


def _stint(own: TierPlan, took: Assignment, config: TierConfig) -> Stint:
    """A round on one client's machine, as the clock sees it."""
    assert own.profile is not None
    assert config.machine is not None
    joules = profiles.joules_per_byte(config.machine, config.link) or 0.0
    return Stint(config.name, took.compute_s, took.transfer_s, took.energy_j, own.profile.idle_w,
                 (took.up_bytes + took.down_bytes) * joules, config.availability, config.dropout,
                 config.spread)
