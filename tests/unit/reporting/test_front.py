"""The Pareto front against its definition, and what a comparison says of costs."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.fixture_run import write_run

from aulait.reporting import arms, report
from aulait.reporting.folder import read_run
from aulait.reporting.front import Offer, pareto_front
from aulait.reporting.grouping import seconds_of_rounds


@pytest.mark.parametrize("rising", [False, True])
def test_the_front_is_what_nothing_dominates(rising: bool) -> None:
    source = random.Random(0)
    for _ in range(200):
        offers = [Offer(str(k), source.randint(0, 4), source.randint(0, 4)) for k in range(source.randint(1, 8))]

        def better(a: Offer, b: Offer) -> bool:
            gain = a.score - b.score if rising else b.score - a.score
            return a.cost <= b.cost and gain >= 0 and (a.cost < b.cost or gain > 0)

        expected = {own.arm for own in offers if not any(better(other, own) for other in offers)}
        assert {own.arm for own in pareto_front(offers, rising)} == expected
        front = pareto_front(offers, rising)
        assert all(a.cost <= b.cost for a, b in itertools.pairwise(front))


def test_the_first_round_is_not_charged_for_warming_up(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "first", off=True), write_run(tmp_path / "second", off=True)
    lines = [json.loads(line) for line in (first / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["wall_s"] = {1: 60.0}.get(line["round"], 2.0)
    (first / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert seconds_of_rounds(read_run(first)) == 2.0 * len(lines)
    lines = [{**line, "wall_s": None} for line in lines]
    (second / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert seconds_of_rounds(read_run(second)) is None


def test_the_page_names_the_arms_that_no_other_beats(tmp_path: Path) -> None:
    def arm(method: str, up: int) -> Any:
        return lambda result: result.update(algorithm=method, traffic={"up_bytes": up, "down_bytes": 0})

    folders = [write_run(tmp_path / f"{method}{seed}", seed=seed, arm=f"name={method} rank=8", loss=loss + 0.01 * seed, change=arm(method, up))
               for method, up, loss in (("fedit", 100, 3.0), ("ffa", 50, 3.2), ("flora", 400, 3.1)) for seed in (0, 1)]
    text = report.write_comparison(folders, tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "Against MB up and down, a run, no other arm is at once as cheap and better than: ffa rank=8, fedit rank=8." in text
    assert "name=" not in text.partition("<main>")[2]
    assert arms.plain_label("name= x") == "name= x"
    assert report.comparison_rows(folders)[0]["arm"] == "name=fedit rank=8"  # --json keeps the label
