"""A run that goes on, as if it ended now: what result.json will hold, as far as the other files
tell it already."""

from __future__ import annotations

from dataclasses import replace

from aulait.reporting.folder import RunFiles
from aulait.reporting.stage_names import STAGE_NAMES
from aulait.reporting.values import number, sum_of, value_at, words
from aulait.runfolder.schema import (
    EpsilonByRole,
    PrivacyResult,
    ResultFile,
    Scores,
    SynthesisResult,
    TrafficResult,
)


def as_it_stands(run: RunFiles) -> RunFiles:
    """The run with a result; one that has a result is returned as it is."""
    if run.result.model_fields_set:
        return run
    eval = next((line.eval for line in reversed(run.training) if line.eval.loss is not None),
                Scores())
    seed = number(value_at(run.config, "run", "seed"))
    result = ResultFile(
        name=words(value_at(run.config, "run", "name")),
        arm=words(value_at(run.config, "run", "arm")),
        algorithm=words(value_at(run.config, "algorithm", "name")),
        engine=words(value_at(run.config, "engine", "name")),
        seed=None if seed is None else int(seed),
        rounds=len(run.training),
        eval=eval,
        privacy=_privacy(run),
        traffic=TrafficResult(up_bytes=sum_of(line.up_bytes for line in run.rounds),
                              down_bytes=sum_of(line.down_bytes for line in run.rounds)))
    if run.synthesis:
        result = result.model_copy(update={"synthesis": SynthesisResult(
            rounds=len(run.synthesis),
            selection=words(value_at(run.config, "synthesis", "selection")))})
    return replace(run, result=result)


def _privacy(run: RunFiles) -> PrivacyResult:
    """The promise of the settings, with the epsilon that has been spent."""
    off = value_at(run.config, "privacy", "off") is True
    last = run.ledger[-1].epsilon if run.ledger else EpsilonByRole()
    spent = {role: last.value(role) for role in ("proxy", "local", "split")
             if last.records(role) and last.value(role) != 0}
    largest = None if off or None in spent.values() else max(
        (value for value in spent.values() if value is not None), default=0.0)
    return PrivacyResult(
        off=off, delta=number(value_at(run.config, "privacy", "delta")),
        unit=words(value_at(run.config, "privacy", "unit")),
        relation=words(value_at(run.config, "privacy", "relation")),
        trust=words(value_at(run.config, "privacy", "trust")),
        private=not off and all(line.private is not False for line in run.ledger),
        epsilon=EpsilonByRole.model_validate({**spent, "max": largest}))


def place_in_words(stage: str | None, done: float | None, rounds: float | None) -> str:
    """Where a run stands: "round 3 of 10 of training"."""
    if stage is None or done is None:
        return "before the first round"
    of = "" if rounds is None else f" of {rounds:.0f}"
    return f"round {done:.0f}{of} of {STAGE_NAMES.get(stage, stage)}"
