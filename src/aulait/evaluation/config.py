"""``[evaluate]``: what is measured on held-out records."""

from __future__ import annotations

import importlib.util
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from aulait.core.errors import install
from aulait.core.places import is_folder, user_path


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


class RunEvaluateConfig(EvaluateConfig):
    """``[evaluate]`` as an experiment has it: what sites measure, and what the server measures
    beside it once the run is done.

    Attributes:
        tasks: names of lm-eval tasks, measured on the base and on the merged model after the last
            round (extra ``lm-eval``).
        tasks_folder: with task files (.yaml); None: only lm-eval's own tasks, whose texts must be
            on this machine.
        tasks_limit: texts of a task that are measured at most. None: all.
    """

    tasks: tuple[str, ...] = ()
    tasks_folder: str | None = None
    tasks_limit: int | None = Field(None, ge=1)

    @property
    def of_sites(self) -> EvaluateConfig:
        """What sites are told: nothing of the server's own tasks and folders."""
        own = {name: getattr(self, name) for name in EvaluateConfig.model_fields}
        return EvaluateConfig(**own)

    def problems(self, quant: str | None) -> list[str]:
        """What is wrong with the tasks that is known without importing lm-eval, one line each.

        Args:
            quant: ``model.quant``.
        """
        if not self.tasks:
            return [] if self.tasks_folder is None else [
                "evaluate.tasks_folder is set without evaluate.tasks; name the tasks to measure"]
        found = []
        if importlib.util.find_spec("lm_eval") is None:
            found.append(f"evaluate.tasks needs lm-eval, and it is missing; {install('lm-eval')}")
        if self.tasks_folder is not None and not is_folder(user_path(self.tasks_folder)):
            found.append(f"evaluate.tasks_folder = '{self.tasks_folder}' is no folder; expected "
                         "one with task files (.yaml)")
        if quant is not None:
            found.append("evaluate.tasks measures the merged model, and nothing can be merged into "
                         "a quantised base; remove model.quant, or evaluate.tasks")
        return found
