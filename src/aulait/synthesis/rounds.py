"""Stage 1 as one line of votes: levels of retrieval, then rounds of private evolution; and the
final set that comes of them.

``synthesis.source`` says which of both there are. With "both" the retrieved texts are the first
candidates that the generator varies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aulait.core.cohort import Cohort
from aulait.core.types import Info
from aulait.methods.contract import Server
from aulait.synthesis import private_evolution, retrieval
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.population import EvolutionState, Text
from aulait.synthesis.private_evolution import EvolutionContext
from aulait.synthesis.retrieval import RetrievalContext
from aulait.synthesis.topics import write_topics


@dataclass(frozen=True)
class SynthesisContext:
    """What the server knows before the first round of stage 1; all of it public.

    Attributes:
        evolution: gives what writing needs; loads the generator when it is called.
        retrieval: gives what retrieval needs; embeds and clusters the public texts when it is
            called for the first time.
    """

    evolution: Callable[[], EvolutionContext]
    retrieval: Callable[[], RetrievalContext]


def init(config: SynthesisConfig, context: SynthesisContext) -> EvolutionState:
    """The state before the first vote."""
    if config.retrieves:
        return EvolutionState(0, ())
    return private_evolution.init(config, context.evolution())


def taken_up(config: SynthesisConfig, context: SynthesisContext,
             state: EvolutionState) -> EvolutionState:
    """The state before the first vote of a later stage: candidates bred anew, by the generator as
    it now writes, from the texts with the most votes so far; cells stay. Without a further vote
    nothing is bred: the final set is then written from what was found before."""
    if not config.later_votings:
        return state
    return private_evolution.bred_anew(config, context.evolution(), state)


def step(config: SynthesisConfig, context: SynthesisContext, state: EvolutionState, cohort: Cohort,
         server: Server) -> tuple[EvolutionState, Info]:
    """One vote, and what follows from it."""
    if cohort.round > config.levels:
        return private_evolution.step(config, context.evolution(), state, cohort, server)
    after, info = retrieval.step(config, context.retrieval(), state, cohort, server)
    if cohort.round < config.levels or not config.writes:
        return after, info
    return _candidates(config, context, after), info


def _candidates(config: SynthesisConfig, context: SynthesisContext,
                state: EvolutionState) -> EvolutionState:
    """The first candidates of private evolution: retrieved texts, and texts written for the
    description where there is one. Without a further vote they are the winners too."""
    first = retrieval.drawn(context.retrieval(), state, config.pool, "retrieved-start")
    if config.about:
        described = private_evolution.described_start(config, context.evolution())
        first = [*described, *first[: max(0, config.pool - len(described))]]
    pool = tuple({text.full: text for text in first}.values())
    return replace(state, pool=pool, winners=() if config.rounds else pool)


def final_set(config: SynthesisConfig, context: SynthesisContext,
              state: EvolutionState) -> list[Text]:
    """The synthetic set: ``config.texts`` texts; fewer only where the generator failed and nothing
    was retrieved."""
    if not config.retrieves:
        return private_evolution.result(config, context.evolution(), state)
    made = _written(config, context, state) if config.writes else []
    missing = config.texts - len(made)
    return made + retrieval.drawn(context.retrieval(), state, missing, "retrieved")


def _written(config: SynthesisConfig, context: SynthesisContext,
             state: EvolutionState) -> list[Text]:
    """The generator's part of a set that is also retrieved."""
    count = round(config.retrieve.written * config.texts)
    if not count:
        return []
    evolution = context.evolution()
    if config.expansion != "topics":
        part = config.model_copy(update={"texts": count})
        return private_evolution.result(part, evolution, state)
    topics = retrieval.topics_of(context.retrieval(), state, count)
    return write_topics(evolution.generator, topics, config.about, state.round + 1,
                        evolution.seeds)
