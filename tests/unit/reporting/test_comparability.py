"""Which arms may be set beside one another, and paired differences with their intervals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from aulait.reporting import comparability, comparison, grouping
from aulait.reporting.arms import runs_by_arm
from aulait.reporting.folder import RunFiles
from aulait.reporting.measures import LOSS, TASKS
from aulait.runfolder.schema import ResultFile


def made(arm: str, seed: int, loss: float, *, tokens: int = 100, base: float = 6.0,
         accuracy: float | None = None, **data: object) -> RunFiles:
    """A finished run, as far as a comparison looks at it."""
    result = ResultFile.fitting({
        "arm": arm, "algorithm": "ffa", "seed": seed, "eval": {"loss": loss, "accuracy": accuracy},
        "base_eval": {"loss": base, "tokens": tokens}, "privacy": {"off": True}})
    return RunFiles(Path(f"{arm}-{seed}"), config={"data": {"source": "a.jsonl", **data}},
                    result=result)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    ours, theirs = [4.0, 4.5, 5.2, 4.1], [4.3, 4.6, 5.9, 4.2]
    first = [made("a", seed, loss) for seed, loss in enumerate(ours)]
    second = [made("b", seed, loss) for seed, loss in enumerate(theirs)]
    found = comparability.paired_difference(first, second, LOSS)
    witness = stats.ttest_rel(theirs, ours).confidence_interval(0.95)
    assert found is not None
    assert found.seeds == 4
    assert found.mean == pytest.approx(sum(theirs) / 4 - sum(ours) / 4, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((witness.low, witness.high), rel=1e-9)


def test_seeds_are_paired_by_number_and_lone_ones_left_out() -> None:
    found = comparability.paired_difference(
        [made("a", 0, 1.0), made("a", 1, 2.0), made("a", 7, 0.0)],
        [made("b", 1, 2.5), made("b", 0, 1.25), made("b", 9, 99.0)], LOSS)
    assert found is not None
    assert found.seeds == 2
    assert found.mean == pytest.approx(0.375)


def test_more_is_better_where_the_measure_rises() -> None:
    accuracy = next(measure for measure in TASKS if measure.key == "accuracy")
    found = comparability.paired_difference([made("a", 0, 8.0, accuracy=0.8)],
                                            [made("b", 0, 6.0, accuracy=0.6)], accuracy)
    assert found is not None
    assert found.mean == pytest.approx(0.2)
    assert found.told is None
    assert comparability.paired_difference([made("a", 0, 8.0)], [made("b", 1, 6.0)], LOSS) is None


def test_a_tie_is_said_and_a_gap_is_not_called_one() -> None:
    runs = [made(arm, seed, loss) for arm, losses in
            {"a": (4.0, 4.1, 4.2), "b": (4.01, 4.08, 4.23), "c": (4.5, 4.61, 4.7)}.items()
            for seed, loss in enumerate(losses)]
    rows = {row["arm"]: row for row in grouping.rows_of_arms(runs_by_arm(runs))}
    assert rows["a"]["behind"] is None
    assert rows["b"]["behind"]["told"] is False
    assert rows["c"]["behind"]["told"] is True
    opening = str(comparison.comparison_opening(runs))
    assert "cannot be told from b." in opening
    assert "a tie" in str(comparison.comparison_sections(runs)[0].body)


@pytest.mark.parametrize(("other", "words"), [
    ({"source": "elsewhere/b.jsonl"}, "data.source is b.jsonl, elsewhere a.jsonl"),
    ({"holdout": 0.5}, "data.holdout is 0.5, elsewhere none"),
    ({"prompt": "question"}, "data.prompt is question, elsewhere none")])
def test_other_data_are_named_and_no_winner_is_told(other: dict[str, object], words: str) -> None:
    runs = [made("a", 0, 4.0), made("b", 0, 4.2), made("c", 0, 1.0, **other)]
    rows = grouping.rows_of_arms(runs_by_arm(runs))
    assert {row["arm"]: row["differs"] for row in rows} == {"a": None, "b": None, "c": words}
    assert all(row["behind"] is None for row in rows)
    opening = str(comparison.comparison_opening(runs))
    assert words in opening
    assert "lowest" not in opening


def test_the_same_file_in_another_place_is_the_same() -> None:
    runs = [made("a", 0, 4.0, source="x/a.jsonl"), made("b", 0, 4.2, source="/y/a.jsonl")]
    assert comparability.differences_of_arms(runs_by_arm(runs)) == {}


@pytest.mark.parametrize(("odd", "words"), [
    ({"tokens": 90}, "scored 90 tokens with seed 0, elsewhere 100"),
    ({"base": 5.0}, "the base's loss with seed 0 is 5.000, elsewhere 6.000")])
def test_what_was_scored_is_looked_at_too(odd: dict[str, float], words: str) -> None:
    runs = [made("a", 0, 4.0), made("odd", 0, 4.2, **odd), made("c", 0, 4.1)]
    assert comparability.differences_of_arms(runs_by_arm(runs)) == {"odd": words}


def test_a_base_in_another_precision_is_the_same_base() -> None:
    runs = [made("a", 0, 4.0), made("b", 0, 4.2, base=6.02)]
    assert comparability.differences_of_arms(runs_by_arm(runs)) == {}


def test_an_interval_of_equal_differences_is_a_point() -> None:
    found = comparability.paired_difference([made("a", 0, 1.0), made("a", 1, 2.0)],
                                            [made("b", 0, 1.5), made("b", 1, 2.5)], LOSS)
    assert found is not None
    assert math.isclose(found.low or 0, 0.5)
    assert found.told is True
