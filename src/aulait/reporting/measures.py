"""What is measured on held-out text: the names, how each is written, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aulait.core.files import JsonObject
from aulait.reporting import numbers
from aulait.reporting.numbers import Style
from aulait.runfolder.schema import Scores

ComparisonRow = JsonObject
"""An arm in a comparison, as `grouping.comparison_rows` and the command line give it: names,
numbers, None, and seconds to a loss as a table of their own."""


@dataclass(frozen=True)
class Measure:
    """One score.

    Attributes:
        key: in result.json and in the rows of a comparison.
        name: on pages and in tables.
        style: a value as text.
        rising: whether more is better.
    """

    key: str
    name: str
    style: Style
    rising: bool = False

    @property
    def tick_style(self) -> Style:
        """How an axis of this measure writes its ticks."""
        return numbers.whole_percent if self.rising else numbers.plain_tick


LOSS: Final = Measure("loss", "loss", numbers.loss)
TOKENS: Final = Measure("token_accuracy", "token accuracy", numbers.percent, rising=True)
ALWAYS: Final = (
    LOSS,
    Measure("perplexity", "perplexity", numbers.perplexity),
    TOKENS,
    Measure("mean_client_loss", "mean client's loss", numbers.loss),
    Measure("worst_client_loss", "worst client's loss", numbers.loss),
)
TASKS: Final = (
    Measure("accuracy", "accuracy", numbers.percent, rising=True),
    Measure("rouge_l", "ROUGE-L", numbers.percent, rising=True),
    Measure("bleu", "BLEU", numbers.percent, rising=True),
    Measure("rouge_1", "ROUGE-1", numbers.percent, rising=True),
    Measure("rouge_2", "ROUGE-2", numbers.percent, rising=True),
    Measure("exact_match", "exact match", numbers.percent, rising=True),
)
"""The task metrics, the leading one first; a run has those of its ``evaluate.task`` or none."""


def leading_task(scores: Scores) -> Measure | None:
    """The leading task metric among the scores; None when no task was measured."""
    return next((measure for measure in TASKS if scores.value(measure.key) is not None), None)


def ranking_measure(rows: Sequence[ComparisonRow]) -> Measure:
    """What rows are ranked by: a task metric that every finished row has, or else the loss."""
    done = [row for row in rows if row.get("loss") is not None]
    shared = (m for m in TASKS if done and all(row.get(m.key) is not None for row in done))
    return next(shared, LOSS)


def ranked_rows(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Rows by their ranking measure, the best first; unfinished ones last; equal ones in the order
    given."""
    measure = ranking_measure(rows)

    def place(row: ComparisonRow) -> tuple[bool, float]:
        value = row.get(measure.key)
        return (value is None, 0.0 if value is None else -float(value) if measure.rising
                else float(value))

    return sorted(rows, key=place)
