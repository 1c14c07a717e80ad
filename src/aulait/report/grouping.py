"""Several runs as rows: one row for each arm, mean and sample standard deviation over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from aulait.report import story
from aulait.report.folder import MISSING, Run, at, number, read, words

MEASURES: Final = ("loss", "perplexity", "token_accuracy", "worst_client_loss")


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by arm, arms in the order of their first run."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(arm(run), []).append(run)
    return groups


def arm(run: Run) -> str:
    """The label that runs are grouped under: arm, or else the name, or else the folder."""
    return words(run.result.get("arm")) or words(run.result.get("name")) or run.path.name


def table(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each arm, means and sample standard deviations over its runs.

    Args:
        runs: run folders. A run without a held-out loss counts as unfinished and enters no mean.

    Returns:
        Rows with the keys arm, algorithm, n (finished runs), seeds (sorted), unfinished, and for loss, perplexity,
        token_accuracy and worst_client_loss (on held-out text), up_bytes, down_bytes and wall_s the mean under the
        name and the deviation under name_std (None below two values), base_loss, epsilon_max (the largest over the
        runs; None when infinite or not recorded) and private (every run has a guarantee with honest noise).

    Raises:
        DataError: a path is not a run folder.
    """
    return [row(name, members) for name, members in grouped(map(read, runs)).items()]


def row(name: str, members: Sequence[Run]) -> dict[str, Any]:
    """The row of one arm; see `table`."""
    done = [run for run in members if number(at(run.result, "eval", "loss")) is not None]
    seeds = sorted({int(seed) for run in done if (seed := number(run.result.get("seed"))) is not None})
    found: dict[str, Any] = {
        "arm": name,
        "algorithm": ", ".join(sorted({words(run.result.get("algorithm")) or "?" for run in members})),
        "n": len(done),
        "seeds": seeds,
        "unfinished": len(members) - len(done),
    }
    for measure in MEASURES:
        found |= _summary(measure, (at(run.result, "eval", measure) for run in done))
    for key, path in (("up_bytes", "traffic"), ("down_bytes", "traffic"), ("wall_s", "time")):
        found |= _summary(key, (at(run.result, path, key) for run in done))
    found["base_loss"] = _summary("base", (at(run.result, "base_eval", "loss") for run in done))["base"]
    spent = [epsilon(run) for run in done]
    largest = max(spent) if spent and None not in spent else None  # type: ignore[type-var]
    found["epsilon_max"] = largest if largest is not None and math.isfinite(largest) else None
    found["private"] = bool(done) and all(_private(run) for run in done)
    return found


def epsilon(run: Run) -> float | None:
    """A run's largest epsilon; infinity for null or privacy off, None when it is not recorded."""
    value = None if story.is_off(run) else at(run.result, "privacy", "epsilon", "max", default=MISSING)
    return math.inf if value is None else number(value)


def _private(run: Run) -> bool:
    spent = epsilon(run)
    guarded = spent is not None and math.isfinite(spent)
    return guarded and not story.is_seeded(run) and not any(story.exact_releases(run))


def _summary(name: str, values: Iterable[Any]) -> dict[str, float | None]:
    found = [n for n in map(number, values) if n is not None]
    mean = fmean(found) if found else None
    return {name: mean, f"{name}_std": stdev(found) if len(found) > 1 else None}
