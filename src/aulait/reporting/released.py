"""What of a run may leave the machine: the released values, what follows from them alone, and what
was public before.

Held-out scores, times of work on clients' records and counts of what their files held are measured
outside the accountant. ``released_only`` takes them out of everything that a page is made from, so
that no template can show them.
"""

from __future__ import annotations

from dataclasses import replace

from aulait.core.errors import PrivacyError
from aulait.reporting import story
from aulait.reporting.folder import RunFiles
from aulait.runfolder.schema import (
    ResultFile,
    RoundLine,
    Scores,
    SynthesisRound,
    TimeResult,
    TrainRound,
)

PUBLIC_DATA = ("source", "public", "clients")
"""Keys of what a result says of the data that settings say too."""


def released_only(run: RunFiles) -> RunFiles:
    """The run without anything that was not released.

    Raises:
        PrivacyError: privacy was off, the noise was seeded, or values were released without noise:
            then nothing of the run is released under a guarantee.
    """
    if not story.is_bounded(run):
        raise PrivacyError(
            f"found a run without a guarantee in {run.path}, expected one whose values were all "
            "released under secret noise; write its page without --release, and do not hand it on")
    return replace(
        run, released=True, result=_result(run),
        synthesis=tuple(_synthesis(line) for line in run.synthesis),
        training=tuple(_training(line, story.evaluated_texts(run)) for line in run.training),
        selection=None if run.selection is None else run.selection.model_copy(
            update={"loss": None}))


def _result(run: RunFiles) -> ResultFile:
    """The result without scores on held-out text, seconds, and counts of clients' files."""
    told, texts = run.result, story.evaluated_texts(run)
    changes: dict[str, object] = {
        "base_eval": _scores(told.base_eval, texts), "eval": _scores(told.eval, texts),
        "time": TimeResult(), "clock": None, "exported": None, "tasks": {},
        "data": {key: told.data[key] for key in PUBLIC_DATA if key in told.data}}
    if told.synthesis is not None:
        found = told.synthesis.set
        changes["synthesis"] = told.synthesis.model_copy(update={
            "client_s_mean": None,
            "set": None if found is None else found.model_copy(update={
                "distance": None, "distance_of_random_public": None})})
    return told.model_copy(update=changes)


def _scores(scores: Scores, texts: str) -> Scores:
    """Scores on public text stay; sums over sites and scores of a simulation go."""
    return Scores() if texts == story.HELD_OUT else scores


def _synthesis(line: SynthesisRound) -> SynthesisRound:
    return line.model_copy(update={**_not_released(line), "client_s": None})


def _training(line: TrainRound, texts: str) -> TrainRound:
    return line.model_copy(update={
        **_not_released(line), "train_loss": None, "local_clients": None, "refused_clients": (),
        "eval": _scores(line.eval, texts)})


def _not_released(line: RoundLine) -> dict[str, object]:
    """What goes from a line of either stage: seconds, replies that were refused, and keys that this
    version does not know."""
    unknown = dict.fromkeys(line.model_extra or {})
    return {**unknown, "wall_s": None, "clock": None, "refused": None}
