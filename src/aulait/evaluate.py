"""How well an adapter predicts held-out text: loss, perplexity, token accuracy, worst client.

These numbers come from clients' held-out records. In a simulation they are measured outside the door, for the
researcher; they are not part of what the guarantee covers and a deployment does not release them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from aulait.model import wearing
from aulait.rows import collate, scored
from aulait.train import Learner
from aulait.types import Adapter, Record


class EvaluateConfig(BaseModel):
    """``[evaluate]``: what is measured on held-out records.

    Attributes:
        every: rounds between two measurements; the last round is always measured.
        records_per_client: held-out records used of each client.
        rows: sequences in one pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    every: int = Field(1, ge=1)
    records_per_client: int = Field(4, ge=1)
    rows: int = Field(32, ge=1)


@dataclass(frozen=True)
class Evaluation:
    """Means over all held-out tokens; the worst client by its own mean loss.

    Attributes:
        loss: nats a token.
        perplexity: exp(loss).
        token_accuracy: share of tokens that are the most probable one.
        worst_client_loss: largest mean loss of a client, nats a token.
        tokens: tokens scored.
    """

    loss: float
    perplexity: float
    token_accuracy: float
    worst_client_loss: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


@torch.no_grad()
def evaluate(learner: Learner, adapter: Adapter | None, holdout: Mapping[str, Sequence[Record]], config: EvaluateConfig) -> Evaluation:
    """Score an adapter (None for the bare base) on every client's held-out records.

    Returns:
        An ``Evaluation``; all NaN when there are no held-out tokens.
    """
    names = [(name, record) for name in sorted(holdout) for record in holdout[name][: config.records_per_client]]
    names.sort(key=lambda pair: len(learner.encode(pair[1])[0]))
    sums: dict[str, list[float]] = {}
    with wearing(learner.base, [adapter] if adapter else []):
        for i in range(0, len(names), config.rows):
            some = names[i : i + config.rows]
            out, target, row = scored(learner.base, collate(learner.base, learner.encode, [record for _, record in some]))
            each = torch.nn.functional.cross_entropy(out, target, reduction="none").double().cpu()
            right = (out.argmax(-1) == target).double().cpu()
            for j, (name, _) in enumerate(some):
                mine = row.cpu() == j
                total = sums.setdefault(name, [0.0, 0.0, 0.0])
                total[0] += float(each[mine].sum())
                total[1] += float(right[mine].sum())
                total[2] += int(mine.sum())
    return _summary(sums)


def _summary(sums: Mapping[str, Sequence[float]]) -> Evaluation:
    tokens = sum(total[2] for total in sums.values())
    if tokens == 0:
        return Evaluation(math.nan, math.nan, math.nan, math.nan, 0)
    loss = sum(total[0] for total in sums.values()) / tokens
    worst = max(total[0] / total[2] for total in sums.values() if total[2])
    return Evaluation(loss, math.exp(min(loss, 700.0)), sum(t[1] for t in sums.values()) / tokens, worst, int(tokens))
