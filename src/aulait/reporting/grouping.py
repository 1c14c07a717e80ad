"""Several runs as rows: one row for each arm, mean and sample standard deviation over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from aulait.reporting import pace, story
from aulait.reporting.arms import grouped, method
from aulait.reporting.folder import MISSING, Run, at, number, read, words
from aulait.reporting.measures import ALWAYS, LOSS, TASKS, ranked

OTHERS: Final = ("shared", "unseen")
"""Scores beside those of the clients: of the shared adapter where clients have their own, and on unseen clients."""


def table(runs: Sequence[Path], target_loss: float | None = None) -> list[dict[str, Any]]:
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
        up_bytes, down_bytes and wall_s the mean under the name and the deviation under name_std
        (None below two values), base_loss, epsilon_max (the largest over the runs; None when
        infinite or not recorded), private (every run has a guarantee with honest noise), unit (what
        epsilon protects) and personal (the scores are those of the clients' own adapters). Where
        they were measured also accuracy, rouge_l, rouge_1, rouge_2 and exact_match with base_
        before them, and shared_ and unseen_ before these and the loss. Where finished runs have
        virtual time also target_loss, time_to_target_s {mean, min, max, reached, of}, virtual_s,
        idle_share and energy_j (see ``pace.row``).

    Raises:
        DataError: a path is not a run folder.
    """
    return rows(grouped(map(read, runs)), target_loss)


def rows(groups: Mapping[str, Sequence[Run]], target_loss: float | None = None) -> list[dict[str,
        Any]]:
    """The rows of all arms, the best first; see `table`."""
    every = [run for members in groups.values() for run in finished(members)]
    aim = pace.target(every) if target_loss is None else target_loss
    return ranked([{**row(name, members), **pace.row(finished(members), aim)} for name,
                   members in groups.items()])


def finished(members: Iterable[Run]) -> list[Run]:
    """The runs with a held-out loss at their end."""
    return [run for run in members if number(at(run.result, "eval", "loss")) is not None]


def row(name: str, members: Sequence[Run]) -> dict[str, Any]:
    """The row of one arm without its virtual time; see `table`."""
    done = finished(members)
    seeds = sorted({int(seed) for run in done
                    if (seed := number(run.result.get("seed"))) is not None})
    found: dict[str, Any] = {
        "arm": name,
        "algorithm": ", ".join(sorted({method(run) for run in members})),
        "n": len(done),
        "seeds": seeds,
        "unfinished": len(members) - len(done),
    }
    for measure in ALWAYS:
        found |= _summary(measure.key, (at(run.result, "eval", measure.key) for run in done))
    found |= _more(done)
    for key, path in (("up_bytes", "traffic"), ("down_bytes", "traffic"), ("wall_s", "time")):
        found |= _summary(key, (at(run.result, path, key) for run in done))
    found["base_loss"] = _summary("base", (at(run.result, "base_eval", "loss") for run in done))[
        "base"]
    found["unit"] = (
        ", ".join(sorted({words(at(run.result, "privacy", "unit")) or "client" for run in done}))
        or None
    )
    found["personal"] = any(story.is_personal(run) for run in done)
    spent = [epsilon(run) for run in done]
    largest = max(spent) if spent and None not in spent else None  # type: ignore[type-var]
    found["epsilon_max"] = largest if largest is not None and math.isfinite(largest) else None
    found["private"] = bool(done) and all(_private(run) for run in done)
    return found


def _more(done: Sequence[Run]) -> dict[str, float | None]:
    """Scores that only some runs have."""
    found: dict[str, float | None] = {}
    for measure in TASKS:
        found |= _summary(measure.key, (at(run.result, "eval", measure.key) for run in done))
        found[f"base_{measure.key}"] = _summary("base", (at(run.result, "base_eval", measure.key)
            for run in done))["base"]
    for other in OTHERS:
        for measure in (LOSS, *TASKS):
            found |= _summary(f"{other}_{measure.key}", (at(run.result, "eval", other, measure.key)
                for run in done))
    return {key: value for key, value in found.items()
            if found[key.removesuffix("_std")] is not None}


def epsilon(run: Run) -> float | None:
    """A run's largest epsilon; infinity for null or privacy off, None when it is not recorded."""
    value = (
        None if story.is_off(run) else at(run.result, "privacy", "epsilon", "max", default=MISSING)
    )
    return math.inf if value is None else number(value)


def _private(run: Run) -> bool:
    spent = epsilon(run)
    guarded = spent is not None and math.isfinite(spent)
    return guarded and not story.is_seeded(run) and not any(story.exact_releases(run))


def _summary(name: str, values: Iterable[Any]) -> dict[str, float | None]:
    found = [n for n in map(number, values) if n is not None]
    mean = fmean(found) if found else None
    return {name: mean, f"{name}_std": stdev(found) if len(found) > 1 else None}
