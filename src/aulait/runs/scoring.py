"""Held-out scores of a run whose records lie in this process: of the bare base, of the shared
adapter, of the clients' own adapters, on unseen clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aulait.core.types import Adapter, Record
from aulait.evaluation.config import EvaluateConfig
from aulait.evaluation.losses import Worn, evaluate
from aulait.methods.contract import PersonalMethod, State
from aulait.runs.prepared import HeldOutScores, PreparedRun
from aulait.runs.progress import ScoreValues
from aulait.training.trainer import Learner

PUBLIC_RECORDS: Final = 64  # public texts that are scored


@dataclass(frozen=True)
class HeldOutRecords:
    """Records that are scored, and how.

    Attributes:
        learner: holds the base.
        config: what is measured.
        clients: client -> its held-out records.
        unseen: client that takes no part -> its records.
        responses: all responses there are, for the task "rank"; empty for other tasks.
    """

    learner: Learner
    config: EvaluateConfig
    clients: Mapping[str, Sequence[Record]]
    unseen: Mapping[str, Sequence[Record]]
    responses: tuple[str, ...]

    @classmethod
    def of(cls, run: PreparedRun) -> HeldOutRecords:
        """Those of a run."""
        federation, config = run.federation, run.settings.evaluate
        return cls(run.models.learner, config, federation.holdout, federation.corpus.unseen,
                   _responses(run) if config.task == "rank" else ())

    def scores(self, adapters: Worn) -> ScoreValues:
        """Of the clients' held-out records."""
        return self._measured(adapters, self.clients)

    def unseen_scores(self, adapters: Worn) -> ScoreValues:
        """Of the unseen clients' records, under ``unseen``; empty where there are none."""
        return {"unseen": self._measured(adapters, self.unseen)} if self.unseen else {}

    def _measured(self, adapters: Worn, records: Mapping[str, Sequence[Record]]) -> ScoreValues:
        names = sorted(name for name in records if records[name])
        measured = {name: records[name] for name in names[: self.config.clients]}
        return evaluate(self.learner, adapters, measured, self.config, self.responses).as_dict()


def evaluate_here(run: PreparedRun, state: State | None, final: bool) -> HeldOutScores:
    """Scores after a round, each client under the adapter that it would use: its own where the
    method makes one. As ``Engine.evaluate``.

    Scores of the bare base are measured once for all runs of a process. Unseen clients are
    scored with it and in the last measurement, under the shared adapter: they have no other.
    """
    settings = run.settings
    if settings.evaluate.on == "public":
        shared = None if state is None else settings.method.result(run.context, state)
        return HeldOutScores(public_scores(run, shared), {} if state is None else
                             personal_adapters(run, state, final))
    if state is None:
        key = (settings.model, settings.data.model_copy(update={"pooled": False}),
               settings.unit_rule, run.context.seeds, settings.evaluate)
        return HeldOutScores(run.cache.once("base-eval", key, lambda: _base_scores(run)))
    records, shared = HeldOutRecords.of(run), settings.method.result(run.context, state)
    personal = personal_adapters(run, state, final)
    own = {name: personal.get(name, shared) for name in run.federation.holdout}
    scores = records.scores(own if personal else shared)
    if final and personal:
        scores["shared"] = records.scores(shared)
    if final:
        scores |= records.unseen_scores(shared)
    return HeldOutScores(scores, personal)


def public_scores(run: PreparedRun, adapter: Adapter | None) -> ScoreValues:
    """Scores of public texts under an adapter, or the bare base; nothing by client."""
    some = [text if isinstance(text, Record) else Record(text)
            for text in run.federation.corpus.public[:PUBLIC_RECORDS]]
    config = run.settings.evaluate.model_copy(
        update={"task": "none", "records_per_client": PUBLIC_RECORDS})
    found = evaluate(run.models.learner, adapter, {"public": some}, config).as_dict()
    by_client = ("worst_client_loss", "mean_client_loss")
    return {key: value for key, value in found.items()
            if key not in by_client} | {"measured_on": "public texts"}


def _base_scores(run: PreparedRun) -> ScoreValues:
    records = HeldOutRecords.of(run)
    return {**records.scores(None), **records.unseen_scores(None)}


def personal_adapters(run: PreparedRun, state: State, final: bool) -> dict[str, Adapter]:
    """Adapters of the clients' own, where the method makes them and their memory is here."""
    method = run.settings.method
    if not isinstance(method, PersonalMethod):
        return {}
    return method.personal(run.settings.method_config, run.context, state,
                           run.federation.training_sites, run.models.learner, final)


def _responses(run: PreparedRun) -> tuple[str, ...]:
    """All responses there are: a closed set, taken as public."""

    def gather() -> tuple[str, ...]:
        corpus = run.federation.corpus
        own = {record.text for client in corpus.clients.values()
               for record in (*client.train, *client.holdout)}
        unseen = {record.text for records in corpus.unseen.values() for record in records}
        return tuple(sorted(own | unseen))

    key = (run.settings.data, run.settings.unit_rule, run.context.seeds)
    return run.cache.once("choices", key, gather)
