"""How well adapters predict held-out text: loss, perplexity, token accuracy, mean and worst client,
a task metric.

These numbers come from clients' held-out records. In a simulation they are measured outside the
aggregator, for the researcher; they are not part of what the guarantee covers and a deployment does
not release them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby

import torch

from aulait.core.errors import DataError, require
from aulait.core.types import Adapter, Record, Turn
from aulait.evaluation import tasks
from aulait.evaluation.config import EvaluateConfig as EvaluateConfig
from aulait.models.loading import wearing
from aulait.training.batches import collate, scored
from aulait.training.trainer import Learner

Worn = Adapter | Mapping[str, Adapter] | None
Pair = tuple[str, Record]


@dataclass(frozen=True)
class Evaluation:
    """Means over all held-out tokens; the mean and the worst client by their own mean loss. All of
    it is sensitive.

    Attributes:
        loss: nats a token.
        perplexity: exp(loss).
        token_accuracy: share of tokens that are the most probable one.
        worst_client_loss: largest mean loss of a client, nats a token.
        mean_client_loss: mean over clients of their mean loss, each client counted once, nats a
            token.
        tokens: tokens scored.
        task: means over the records of the task metric, by name, and their "count"; empty without a
            task.
    """

    loss: float
    perplexity: float
    token_accuracy: float
    worst_client_loss: float
    mean_client_loss: float
    tokens: int
    task: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The fields by name, those of the task beside the others, for JSON."""
        fields = asdict(self)
        scores = fields.pop("task")
        return {**fields, **scores}


@torch.no_grad()
def evaluate(
    learner: Learner, adapter: Worn, holdout: Mapping[str, Sequence[Record]],
    config: EvaluateConfig, choices: Sequence[str] = ()
) -> Evaluation:
    """Score every client's held-out records.

    Args:
        learner: the base and its encoder.
        adapter: one for all, or client name -> its personal adapter (of any rank), or None for the
            bare base.
        holdout: client name -> records.
        config: how much is scored, and which task.
        choices: all responses there are, for the task "rank".

    Returns:
        An ``Evaluation``; its losses are NaN when there are no held-out tokens, its task scores
        when there are no records.

    Raises:
        DataError: a client has held-out records and no personal adapter, or the records do not suit
            the task.
    """
    if isinstance(adapter, Mapping):
        lost = sorted(name for name in holdout if holdout[name] and name not in adapter)
        require(not lost, DataError,
                f"{len(lost)} clients have held-out records and no personal adapter (the first is "
                f"'{lost[0] if lost else ''}'), expected one for each; give them one, or score "
                "them under a common adapter")
    sums = totals(learner, adapter, holdout, config)
    return summary([sums[name] for name in sorted(sums)], _task(learner, adapter, holdout, config,
        choices))


@torch.no_grad()
def totals(
    learner: Learner, adapter: Worn, holdout: Mapping[str, Sequence[Record]], config: EvaluateConfig
) -> dict[str, tuple[float, float, float]]:
    """(nats, tokens right, tokens) of every client's held-out records; arguments as ``evaluate``.
    Sensitive."""
    sums: dict[str, torch.Tensor] = {}
    for worn, some in _passes(learner, adapter, holdout, config):
        with wearing(learner.base, worn):
            out, target, row = scored(learner.base, collate(learner.base, learner.encode,
                [record for _, record in some]))
            nats = torch.nn.functional.cross_entropy(out, target, reduction="none")
            right = out.argmax(-1) == target
        each = torch.stack([nats.double(), right.double(), torch.ones_like(nats).double()],
                           dim=1).cpu()
        for (name, _), own in zip(some, each.new_zeros(len(some), 3).index_add(0, row.cpu(), each),
                                  strict=True):
            sums[name] = sums.get(name, torch.zeros(3, dtype=torch.float64)) + own
    return {name: (float(own[0]), float(own[1]), float(own[2])) for name, own in sums.items()}


def _passes(
    learner: Learner, adapter: Worn, holdout: Mapping[str, Sequence[Record]], config: EvaluateConfig
) -> Iterator[tuple[list[Adapter], list[Pair]]]:
    """Adapters to wear and the records of a pass, similar lengths together; those of one adapter
    are adjacent and equally many."""

    def length(pair: Pair) -> int:
        return len(learner.encode(pair[1])[0])

    own = {name: [(name, record) for record in holdout[name][: config.records_per_client]]
           for name in sorted(holdout)}
    if not isinstance(adapter, Mapping):
        pairs = sorted((pair for some in own.values() for pair in some), key=length)
        for i in range(0, len(pairs), config.rows):
            yield [adapter] if adapter else [], pairs[i : i + config.rows]
        return
    parts = []
    for some in own.values():
        ordered = sorted(some, key=length)
        parts += [ordered[i : i + config.rows] for i in range(0, len(ordered), config.rows)]
    parts.sort(key=lambda part: (len(part), length(part[-1])))
    for size, group in groupby(parts, key=len):
        equal, clients = list(group), config.rows // size
        for i in range(0, len(equal), clients):
            shared = equal[i : i + clients]
            yield [adapter[part[0][0]] for part in shared], [pair for part in shared
                for pair in part]


def _task(
    learner: Learner, adapter: Worn, holdout: Mapping[str, Sequence[Record]],
    config: EvaluateConfig, choices: Sequence[str]
) -> dict[str, float]:
    """Means of the task metric; the records of clients with the same adapter are measured
    together."""
    if config.task == "none":
        return {}
    groups: dict[int, tuple[list[Adapter], list[Record]]] = {}
    for name, record in tasks.fair(holdout, config.task_records):
        own = adapter[name] if isinstance(adapter, Mapping) else adapter
        groups.setdefault(id(own), ([own] if own else [], []))[1].append(record)
    right: dict[tuple[Turn, ...], list[str]] = {}
    for record in (record for records in holdout.values() for record in records):
        right.setdefault(record.asked, []).append(record.text)
    scores: list[dict[str, float]] = []
    for worn, records in groups.values():
        with wearing(learner.base, worn):
            scores += tasks.measure_task(learner.base, records, config, choices, config.rows, right)
    named = {"rank": ("accuracy",), "rouge": (*tasks.ROUGES, "exact_match"),
             "exact": ("exact_match",)}[config.task]
    means = {name: sum(score[name] for score in scores) / len(scores) if scores else math.nan
             for name in named}
    if config.task == "rouge":
        means["bleu"] = tasks.corpus_bleu(scores)
    return {**means, "count": len(scores)}


def summary(clients: Sequence[Sequence[float]], task: dict[str, float]) -> Evaluation:
    """From (nats, tokens right, tokens) of every client, and what the task metric gave."""
    clients = [total for total in clients if total[2]]
    nats, right, tokens = (sum(total[i] for total in clients) for i in range(3))
    if not clients:
        return Evaluation(math.nan, math.nan, math.nan, math.nan, math.nan, 0, task)
    loss, each = nats / tokens, [total[0] / total[2] for total in clients]
    return Evaluation(loss, math.exp(min(loss, 700.0)), right / tokens, max(each),
                      sum(each) / len(each), int(tokens), task)
