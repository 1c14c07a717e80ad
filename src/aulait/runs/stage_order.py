"""The stages of a run in their order, and which rounds each of them has.

Rounds are counted through all stages of one name, so that (name, round) names a round of the run
once: in rounds.jsonl, in the ledger, and in what a site is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

StageName = Literal["synthesis", "training"]
USUAL: Final[tuple[StageName, ...]] = ("synthesis", "training")
MOST: Final = 20  # stages of a run
_IN_FILES: Final = {"synthesis": "synthesis", "training": "train"}


@dataclass(frozen=True)
class StageSpan:
    """One stage of a run.

    Attributes:
        name: "synthesis" or "train", as rounds.jsonl and the ledger have it.
        first, last: its rounds; ``first`` is above ``last`` where it has none.
    """

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class VoteCounts:
    """Votes of stages of synthesis.

    Attributes:
        first: of the first stage.
        later: of every later one.
    """

    first: int
    later: int


def stage_spans(order: Sequence[StageName], votes: VoteCounts,
                rounds: int) -> tuple[StageSpan, ...]:
    """The stages with their rounds.

    Args:
        order: names of the stages.
        votes: rounds of the stages of synthesis.
        rounds: of training, all stages of it together; they are dealt evenly, the first stages
            having one more where it does not come out even.
    """
    trainings = list(order).count("training")
    found: list[StageSpan] = []
    done = {"synthesis": 0, "training": 0}
    begun = {"synthesis": 0, "training": 0}
    for name in order:
        if name == "training":
            count = rounds // trainings + (begun[name] < rounds % trainings)
        else:
            count = votes.later if begun[name] else votes.first
        found.append(StageSpan(_IN_FILES[name], done[name] + 1, done[name] + count))
        done[name] += count
        begun[name] += 1
    return tuple(found)


def training_ends(spans: Sequence[StageSpan]) -> tuple[int, ...]:
    """Rounds of training after which another stage comes before training goes on."""
    return tuple(span.last for span in spans if span.name == "train")[:-1]


def order_problems(order: Sequence[StageName], rounds: int, rewrites: bool) -> list[str]:
    """What is wrong with an order of stages, a line each.

    Args:
        order: names of the stages.
        rounds: of training.
        rewrites: whether a later stage of synthesis has something to do: texts are written.
    """
    key = f"run.stages = {list(order)}"
    if "training" not in order:
        return [f"{key} has no training, expected 'training' at least once; add it"]
    problems = []
    if any(one == other for one, other in pairwise(order)):
        problems.append(f"{key} has the same stage twice in a row, expected them by turns; remove "
                        "one of the two")
    trainings = list(order).count("training")
    if 0 < rounds < trainings:
        problems.append(f"train.rounds = {rounds}, expected at least one for each of the "
                        f"{trainings} stages of training; raise it")
    if list(order).count("synthesis") > 1 and not rewrites:
        problems.append(
            f"{key} has a second stage of synthesis and synthesis.source is 'retrieve': the same "
            "votes on the same public texts would be paid for again; use source = 'both' or "
            "'write', or one stage of synthesis")
    return problems
