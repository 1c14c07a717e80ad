"""Scores of held-out records that stay at their sites, made of the sums that sites tell.

Under privacy sites tell nothing; the coordinator then scores public texts, and says so
("measured_on").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aulait.core import lora
from aulait.core.types import Adapter, Tensors
from aulait.engines.contract import PreparedRun
from aulait.engines.deployment.protocol.messages import ScoresAnswer
from aulait.evaluation.losses import summary
from aulait.methods.contract import PersonalMethod, State
from aulait.runs.progress import ScoreValues


@dataclass(frozen=True)
class EvaluationTarget:
    """What a client's held-out records are measured under.

    Attributes:
        what: "base", "adapter", or the "state" of a method from which the client makes its own.
        tensors: of it.
        alpha, rank: of an adapter.
    """

    what: Literal["base", "adapter", "state"]
    tensors: Tensors
    alpha: float = 1.0
    rank: int | None = None

    @classmethod
    def adapter(cls, adapter: Adapter) -> EvaluationTarget:
        """An adapter for all its layers."""
        return cls("adapter", lora.to_tensors(adapter), adapter.alpha, adapter.rank)


def evaluation_targets(run: PreparedRun, state: State | None, shared: Adapter | None,
                       final: bool) -> Mapping[str, EvaluationTarget]:
    """What every client is measured under. A split client's own adapter is made here, where its
    memory is; the others make theirs.

    Args:
        run: that is measured.
        state: of the method; None for the bare base.
        shared: the adapter that the method makes of the state.
        final: the run is over.
    """
    sites, settings = run.federation.sites, run.settings
    names = sorted(sites)[: settings.evaluate.clients]
    if state is None or shared is None:
        return dict.fromkeys(names, EvaluationTarget("base", {}))
    method, common = settings.method, EvaluationTarget.adapter(shared)
    if not isinstance(method, PersonalMethod):
        return dict.fromkeys(names, common)
    own = EvaluationTarget("state", dict(state.tensors))
    split = [sites[name] for name in names if sites[name].plan.placement == "split"]
    made: dict[str, Adapter] = {}
    if split:
        made = method.personal(settings.method_config, run.context, state, split,
                               run.models.learner, final)
    return {name: EvaluationTarget.adapter(made[name]) if name in made
            else own if name in run.federation.trainers else common for name in names}


def scores(run: PreparedRun, answers: Sequence[ScoresAnswer]) -> ScoreValues:
    """Sums of sites to scores; task metrics are means over sites by their number of records."""
    tasks = [answer.task for answer in answers if answer.task]
    count = sum(task.get("count", 0.0) for task in tasks)
    names = sorted({name for task in tasks for name in task} - {"count"})
    means = {name: sum(task.get(name, 0.0) * task.get("count", 0.0) for task in tasks)
             / (count or 1.0) for name in names}
    task = means | ({"count": count} if tasks else {})
    found = _summary([answer.sums for answer in answers if answer.sums], task)
    if any(answer.shared for answer in answers):
        found["shared"] = _summary([answer.shared for answer in answers if answer.shared], {})
    return found


def _summary(sums: Sequence[tuple[float, float, float]], task: dict[str, float]) -> ScoreValues:
    """Losses of all sites, and how many told theirs."""
    return summary([list(own) for own in sums], task).as_dict() | {"sites": len(sums)}
