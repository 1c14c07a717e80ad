"""``[evaluate]``: what is measured on held-out records."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TaskConfig(BaseModel):
    """The task metric of ``[evaluate]``.

    Attributes:
        task: "none"; "rank": the response is one of few, accuracy of the most probable one;
            "rouge": ROUGE-1, ROUGE-2 and ROUGE-L F1, corpus BLEU and exact match of a greedy text;
            "exact": exact match of a greedy text, without regard to case and blanks.
        task_records: held-out records measured in all, taken from the clients in turn. None: all.
        rank_by: "mean" log-probability a token of a choice or its "sum"; both count the end of
            sequence. The sum is the probability of the choice, which favours short ones in a model
            that was not trained for the task.
        max_new_tokens: longest greedy text, in tokens; at most half of ``model.context`` is given
            to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: Literal["none", "rank", "rouge", "exact"] = "none"
    task_records: int | None = Field(None, ge=1)
    rank_by: Literal["mean", "sum"] = "mean"
    max_new_tokens: int = Field(48, ge=1)


class EvaluateConfig(TaskConfig):
    """``[evaluate]``: what is measured on held-out records; the settings of the task metric are
    those of ``TaskConfig``.

    Attributes:
        every: rounds between two measurements; the last round is always measured.
        records_per_client: held-out records used of each client for the losses.
        rows: sequences in one pass.
        clients: how many clients are measured, the first by name that have held-out records (unseen
            ones likewise); None for all.
        on: "held-out", the clients' own records, which no epsilon covers; or "public", the first
            public texts, which costs no privacy: then runs can be ranked by it.
    """

    every: int = Field(1, ge=1)
    records_per_client: int = Field(4, ge=1)
    rows: int = Field(32, ge=1)
    clients: int | None = Field(None, ge=1)
    on: Literal["held-out", "public"] = "held-out"
