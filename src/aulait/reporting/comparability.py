"""Whether runs may be set beside one another, and by how much arms differ on the same seeds.

Two scores can be compared where they are of the same held-out tokens under the same base. What that
follows from is written in the settings (model, data, evaluation); where two runs of one seed have
the same settings and yet scored other tokens, or began at another loss, that is seen too. A
difference of two arms is taken seed by seed, so that what a seed brings to both (its clients, its
held-out records) falls out of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from scipy import special

from aulait.core.files import JsonObject
from aulait.reporting import numbers
from aulait.reporting.arms import plain_label
from aulait.reporting.folder import RunFiles
from aulait.reporting.measures import ComparisonRow, Measure, ranking_measure
from aulait.reporting.values import value_at

CONFIDENCE: Final = 0.95
# The settings that say which tokens are scored, and what scored them before any training. What the
# training takes from the data, as data.records_per_client, is an arm's own affair.
SAME: Final = (
    ("model", "name"), ("model", "kind"), ("model", "context"),
    ("data", "source"), ("data", "client"), ("data", "text"), ("data", "prompt"),
    ("data", "response"), ("data", "holdout"), ("data", "partition"), ("data", "clients"),
    ("data", "dirichlet_alpha"), ("data", "unseen"), ("data", "min_records"), ("data", "too_long"),
    ("evaluate", "records_per_client"), ("evaluate", "clients"), ("evaluate", "on"),
    ("evaluate", "task"), ("evaluate", "task_records"), ("evaluate", "rank_by"),
)
ROVING: Final = (("model", "name"), ("data", "source"))
# A base in another precision is the same base.
BASE_TOLERANCE: Final = 0.02


@dataclass(frozen=True)
class PairedDifference:
    """How much better one arm is than another, on the seeds that both have.

    Attributes:
        mean: of the differences, in the unit of the measure; above zero where the first is better.
        low, high: a 95 percent t-interval of it; None with fewer than two seeds.
        seeds: how many.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def told(self) -> bool | None:
        """Whether the interval leaves zero out; None where there is no interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0

    def document(self) -> JsonObject:
        """As JSON, with ``told``."""
        return {**asdict(self), "told": self.told}


def paired_difference(first: Sequence[RunFiles], second: Sequence[RunFiles],
                      measure: Measure) -> PairedDifference | None:
    """By how much the first arm is better than the second, on the seeds that both have finished
    once; None where they share none."""
    ours, theirs = _by_seed(first, measure), _by_seed(second, measure)
    sign = 1.0 if measure.rising else -1.0
    found = [sign * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    return mean_difference(found) if found else None


def mean_difference(found: Sequence[float]) -> PairedDifference:
    """The mean of differences, one of a seed and at least one, with its 95 percent t-interval."""
    mean, count = fmean(found), len(found)
    if count < 2:
        return PairedDifference(mean, None, None, count)
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * stdev(found) / math.sqrt(count)
    return PairedDifference(mean, mean - half, mean + half, count)


def differences_of_arms(groups: Mapping[str, Sequence[RunFiles]]) -> dict[str, str]:
    """Arm -> in what its measurement differs from that of the largest set of arms that agree, in
    words; empty where all may be compared."""
    seen = {name: _measured_on(members) for name, members in groups.items() if members}
    if len(seen) < 2:
        return {}
    kinds = list(seen.values())
    usual = max(kinds, key=lambda kind: (kinds.count(kind), -kinds.index(kind)))
    found = {name: _in_words(own, usual) for name, own in seen.items() if own != usual}
    alike = {name: groups[name] for name, own in seen.items() if own == usual}
    most = max(alike.values(), key=lambda members: sum(
        not _other_scores(others, members) for others in alike.values()))
    told = {name: _other_scores(members, most) for name, members in alike.items()}
    return found | {name: words for name, words in told.items() if words}


def beside_one_another(rows: Sequence[ComparisonRow],
                       groups: Mapping[str, Sequence[RunFiles]]) -> list[ComparisonRow]:
    """Ranked rows with "differs" (in what an arm was measured otherwise; None where in nothing) and
    "behind" (its distance from the first row on the seeds of both, as a document; None for the
    first row, where no seed is shared, or where not all arms may be compared)."""
    differing, measure = differences_of_arms(groups), ranking_measure(rows)
    found: list[ComparisonRow] = []
    for row in rows:
        gap = None if row is rows[0] or differing else paired_difference(
            groups[rows[0]["arm"]], groups[row["arm"]], measure)
        found.append({**row, "differs": differing.get(row["arm"]),
                      "behind": None if gap is None else gap.document()})
    return found


def refusal(rows: Sequence[ComparisonRow]) -> str:
    """A sentence that scores say nothing about one another, and why; empty where the arms may be
    compared."""
    differing = {row["arm"]: row["differs"] for row in rows if row["differs"]}
    if not differing:
        return ""
    listed = "; ".join(f"{plain_label(name)}: {words}" for name, words in differing.items())
    return (f"Not all arms were measured on the same thing, so their scores say nothing about one "
            f"another ({listed}).")


def ties(rows: Sequence[ComparisonRow]) -> str:
    """A further sentence about the arms that cannot be told from the first; empty without any."""
    even = [plain_label(row["arm"]) for row in rows
            if row["behind"] and row["behind"]["told"] is False]
    single = any(row["behind"] and row["behind"]["told"] is None for row in rows)
    if len(even) > 1:
        quoted = [f"“{name}”" for name in even]
        even = [f"{', '.join(quoted[:-1])} and {quoted[-1]}"]
    said = f" Over its seeds it cannot be told from {even[0]}." if even else ""
    return said + (" One seed says nothing about the next: give every arm several."
                   if single else "")


def _by_seed(members: Sequence[RunFiles], measure: Measure) -> dict[float, float]:
    """Seed -> score, of the seeds that finished."""
    found: dict[float, float] = {}
    for run in members:
        seed, value = run.result.seed, run.result.eval.value(measure.key)
        if seed is not None and value is not None:
            found[seed] = value
    return found


def _measured_on(members: Sequence[RunFiles]) -> tuple[str, ...]:
    """The values of ``SAME`` in an arm, in words; several where its own runs differ."""
    return tuple(" and ".join(dict.fromkeys(_told(run, key) for run in members)) for key in SAME)


def _told(run: RunFiles, key: tuple[str, ...]) -> str:
    value = value_at(run.config, *key)
    if value is None:
        return "none"
    # the same file may lie elsewhere; other records under one name show in what was scored
    return Path(str(value)).name if key in ROVING else str(value)


def _in_words(own: tuple[str, ...], usual: tuple[str, ...]) -> str:
    return ", ".join(f"{'.'.join(key)} is {one}, elsewhere {other}"
                     for key, one, other in zip(SAME, own, usual, strict=True) if one != other)


def _other_scores(members: Sequence[RunFiles], others: Sequence[RunFiles]) -> str:
    """What runs of one seed should have in common and have not: scored tokens, the base's loss."""
    for run in members:
        for other in others:
            if other.result.seed != run.result.seed:
                continue
            ours, theirs = run.result.base_eval, other.result.base_eval
            if None not in (ours.tokens, theirs.tokens) and ours.tokens != theirs.tokens:
                return (f"scored {numbers.count(ours.tokens)} tokens with seed "
                        f"{numbers.count(run.result.seed)}, elsewhere "
                        f"{numbers.count(theirs.tokens)}")
            if (ours.loss is not None and theirs.loss is not None
                    and not math.isclose(ours.loss, theirs.loss, rel_tol=BASE_TOLERANCE)):
                return (f"the base's loss with seed {numbers.count(run.result.seed)} is "
                        f"{numbers.loss(ours.loss)}, elsewhere {numbers.loss(theirs.loss)}")
    return ""
