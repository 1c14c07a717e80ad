"""Several runs as rows: one row for each arm, mean and sample standard deviation over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Final

from aulait.reporting import pace, story
from aulait.reporting.arms import method_name, runs_by_arm
from aulait.reporting.comparability import beside_one_another
from aulait.reporting.folder import RunFiles, read_run
from aulait.reporting.measures import ALWAYS, LOSS, TASKS, ComparisonRow, ranked_rows
from aulait.runfolder.schema import Scores

BESIDE: Final = ("shared", "unseen")
"""Scores beside those of the clients: of the shared adapter where clients have their own, and on
unseen clients."""


def comparison_rows(runs: Sequence[Path],
                    target_loss: float | None = None) -> list[ComparisonRow]:
    """One row for each arm, means and sample standard deviations over its runs; the best arm first.

    Best is the highest task metric where every finished arm has the same one, or else the lowest
    loss.

    Args:
        runs: run folders. A run without a held-out loss counts as unfinished and enters no mean.
        target_loss: that arms are timed to in virtual time; None takes the largest of the runs'
            smallest losses.

    Returns:
        Rows with the keys arm, algorithm, n (finished runs), seeds (sorted), unfinished, and for
        loss, perplexity, token_accuracy, mean_client_loss and worst_client_loss (on held-out text),
        up_bytes, down_bytes, wall_s and rounds_s (see ``seconds_of_rounds``) the mean under the
        name and the deviation under name_std (None below two values), base_loss, epsilon_max (the
        largest over the runs; None when infinite or not recorded), private (every run has a
        guarantee with honest noise), unit (what epsilon protects) and personal (the scores are
        those of the clients' own adapters). Where they were measured also accuracy, rouge_l,
        rouge_1, rouge_2 and exact_match with base_ before them, and shared_ and unseen_ before
        these and the loss. Where finished runs have virtual time also target_loss, time_to_target_s
        {mean, min, max, reached, of}, virtual_s, idle_share and energy_j (see
        ``pace.virtual_time_row``). Also differs and behind (see
        ``comparability.beside_one_another``).

    Raises:
        DataError: a path is not a run folder.
    """
    return rows_of_arms(runs_by_arm(map(read_run, runs)), target_loss)


def rows_of_arms(groups: Mapping[str, Sequence[RunFiles]],
                 target_loss: float | None = None) -> list[ComparisonRow]:
    """The rows of all arms, the best first; see `comparison_rows`."""
    every = [run for members in groups.values() for run in finished_runs(members)]
    aim = pace.default_target(every) if target_loss is None else target_loss
    rows = ranked_rows([{**_arm_row(name, members),
                         **pace.virtual_time_row(finished_runs(members), aim)}
                        for name, members in groups.items()])
    return beside_one_another(rows, groups)


def finished_runs(members: Iterable[RunFiles]) -> list[RunFiles]:
    """The runs with a held-out loss at their end."""
    return [run for run in members if run.result.eval.loss is not None]


def seconds_of_rounds(run: RunFiles) -> float | None:
    """Seconds of a run's rounds, both stages; None where they are not told.

    Loading, the first scores and what a process does but once are no arm's own: where the first
    round of a stage took longer than the median of the others, it counts as that. So the first of
    several runs in one process is not charged for warming it up; stage 1 counts in every run that
    stands on it, also where a sweep ran it but once.
    """
    total, told = 0.0, False
    for lines in (run.synthesis, run.training):
        seconds = [line.wall_s for line in lines if line.wall_s is not None]
        if len(seconds) > 2:
            seconds[0] = min(seconds[0], median(seconds[1:]))
        total, told = total + sum(seconds), told or bool(seconds)
    return total if told else None


def largest_epsilon(run: RunFiles) -> float | None:
    """A run's largest epsilon; infinity for null or privacy off, None when it is not recorded."""
    spent = run.result.privacy.epsilon
    if story.is_off(run) or (spent.max is None and spent.records("max")):
        return math.inf
    return spent.max


def _arm_row(name: str, members: Sequence[RunFiles]) -> ComparisonRow:
    """The row of one arm without its virtual time; see `comparison_rows`."""
    done = finished_runs(members)
    results = [run.result for run in done]
    found: ComparisonRow = {
        "arm": name,
        "algorithm": ", ".join(sorted({method_name(run) for run in members})),
        "n": len(done),
        "seeds": sorted({int(result.seed) for result in results if result.seed is not None}),
        "unfinished": len(members) - len(done),
    }
    for measure in ALWAYS:
        found |= _summary(measure.key, (result.eval.value(measure.key) for result in results))
    found |= _more_scores(done)
    found |= _summary("up_bytes", (result.traffic.up_bytes for result in results))
    found |= _summary("down_bytes", (result.traffic.down_bytes for result in results))
    found |= _summary("wall_s", (result.time.wall_s for result in results))
    found |= _summary("rounds_s", map(seconds_of_rounds, done))
    found["base_loss"] = _mean(result.base_eval.loss for result in results)
    units = sorted({result.privacy.unit or "client" for result in results})
    found["unit"] = ", ".join(units) or None
    found["personal"] = any(map(story.is_personal, done))
    spent = [largest_epsilon(run) for run in done]
    known = [value for value in spent if value is not None and math.isfinite(value)]
    found["epsilon_max"] = float(max(known)) if known and len(known) == len(spent) else None
    found["private"] = bool(done) and all(map(_is_private, done))
    return found


def _more_scores(done: Sequence[RunFiles]) -> dict[str, float | None]:
    """Scores that only some runs have."""
    found: dict[str, float | None] = {}
    for measure in TASKS:
        found |= _summary(measure.key, (run.result.eval.value(measure.key) for run in done))
        found[f"base_{measure.key}"] = _mean(run.result.base_eval.value(measure.key)
                                             for run in done)
    beside = {"shared": [run.result.eval.shared or Scores() for run in done],
              "unseen": [run.result.eval.unseen or Scores() for run in done]}
    for other in BESIDE:
        for measure in (LOSS, *TASKS):
            found |= _summary(f"{other}_{measure.key}",
                              (scores.value(measure.key) for scores in beside[other]))
    return {key: value for key, value in found.items()
            if found[key.removesuffix("_std")] is not None}


def _is_private(run: RunFiles) -> bool:
    spent = largest_epsilon(run)
    guarded = spent is not None and math.isfinite(spent)
    return guarded and not story.is_seeded(run) and not any(story.exact_releases(run))


def _mean(values: Iterable[float | None]) -> float | None:
    return _summary("all", values)["all"]


def _summary(name: str, values: Iterable[float | None]) -> dict[str, float | None]:
    found = [value for value in values if value is not None]
    return {name: fmean(found) if found else None,
            f"{name}_std": stdev(found) if len(found) > 1 else None}
