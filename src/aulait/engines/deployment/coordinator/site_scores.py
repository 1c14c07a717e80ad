"""Scores of held-out records that stay at their sites, made of the sums that sites tell.

Under privacy sites tell nothing; the coordinator then scores public texts, and says so
("measured_on").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aulait.core import lora
from aulait.core.types import Adapter, Record, Tensors
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.evaluation.losses import EvaluateConfig, evaluate, summary
from aulait.methods.contract import PersonalMethod, State
from aulait.runs.prepared import PreparedRun

PUBLIC_RECORDS = 64  # public texts that are scored under privacy
LARGEST_SUM, MOST_METRICS = 1e15, 20  # that a site may tell


@dataclass(frozen=True)
class EvaluationTarget:
    """What a client puts on to be measured.

    Attributes:
        what: "base", "adapter", or the "state" of a method from which the client makes its own.
        tensors: of it.
        alpha, rank: of an adapter.
    """

    what: str
    tensors: Tensors
    alpha: float = 1.0
    rank: int | None = None

    @classmethod
    def adapter(cls, adapter: Adapter) -> EvaluationTarget:
        """An adapter for all its layers."""
        return cls("adapter", lora.to_tensors(adapter), adapter.alpha, adapter.rank)

    def head(self) -> dict[str, Any]:
        """As it stands in a message, beside the tensors."""
        return {"what": self.what, "alpha": self.alpha, "rank": self.rank}


Ask = Callable[[Mapping[str, EvaluationTarget], int, Mapping[str, Any]], Iterable[tuple[str, Packet]]]


class SiteEvaluator:
    """Asks the sites, or under privacy scores public texts.

    Args:
        ask: (client -> what it wears, round, more of the head) -> answers by client.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def __call__(self, run: PreparedRun, state: State | None, final: bool) -> dict[str, Any]:
        """Scores under the method's state; of the bare base where it is None."""
        settings = run.settings
        shared = settings.method.result(run.context, state) if state is not None else None
        names = sorted(run.federation.sites)[: settings.evaluate.clients]
        worn = _worn(run, state, shared, names, final)
        answers = [packet for _, packet in self._ask(worn, state.round if state else 0,
            {"final": final})]
        if not settings.privacy.off:
            return _public(run, shared)
        found = _scores(answers, "sums", settings.evaluate)
        if any("shared" in packet.head for packet in answers):
            found["shared"] = _scores(answers, "shared", settings.evaluate)
        return found


def _worn(run: PreparedRun, state: State | None, shared: Adapter | None, names: Sequence[str],
          final: bool) -> Mapping[str, EvaluationTarget]:
    """What every client is to wear. A split client's own adapter is made here, where its memory is;
    the others make theirs."""
    if state is None or shared is None:
        return dict.fromkeys(names, EvaluationTarget("base", {}))
    method, sites = run.settings.method, run.federation.sites
    common = EvaluationTarget.adapter(shared)
    if not isinstance(method, PersonalMethod):
        return dict.fromkeys(names, common)
    own = EvaluationTarget("state", dict(state.tensors))
    halves = [sites[name] for name in names if sites[name].plan.placement == "split"]
    made = (
        method.personal(run.settings.method_config, run.context, state, halves,
                        run.models.learner, final) if halves else {}
    )
    return {name: EvaluationTarget.adapter(made[name]) if name in made else own
            if name in run.federation.trainers else common for name in names}


def _scores(answers: Sequence[Packet], key: str, config: EvaluateConfig) -> dict[str, Any]:
    """Sums of sites to scores; task metrics are means over sites by their number of records."""
    sums = [[float(value) for value in packet.head[key]] for packet in answers
            if _sound(packet.head.get(key))]
    tasks = (
        [told for packet in answers if (told := _task(packet.head.get("task")))] if key == "sums"
        else []
    )
    count = sum(float(task.get("count", 0)) for task in tasks)
    names = sorted({name for task in tasks for name in task} - {"count"})
    task = {name: sum(float(t.get(name, 0)) * float(t.get("count", 0)) for t in tasks) / (count
        or 1.0) for name in names}
    return summary(sums, task | ({"count": count} if tasks else {})).as_dict() | {
        "sites": len(sums)}


def _sound(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_sum, value))


def _sum(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_SUM
    )


def _task(value: Any) -> dict[str, float]:
    """What a site told of its task metric; nothing where it is not a few numbers by name."""
    sound = (
        isinstance(value, dict) and len(value) <= MOST_METRICS and all(map(_sum, value.values()))
    )
    return {name[:40]: float(told) for name, told in value.items()} if sound else {}


def _public(run: PreparedRun, worn: Adapter | None) -> dict[str, Any]:
    some = [text if isinstance(text, Record) else Record(text)
            for text in run.federation.corpus.public[:PUBLIC_RECORDS]]
    config = run.settings.evaluate.model_copy(update={"task": "none",
        "records_per_client": PUBLIC_RECORDS})
    found = evaluate(run.models.learner, worn, {"public": some}, config).as_dict()
    by_client = ("worst_client_loss", "mean_client_loss")
    return {key: value for key, value in found.items()
            if key not in by_client} | {"measured_on": "public texts"}
