"""A plan of many rows takes little time and memory a row, whatever the machine."""

from __future__ import annotations

import json

from aulait_benchmarks import plan_size


def test_a_plan_of_sixty_thousand_rows_takes_little_of_each():
    found = plan_size.measure(plan_size.QUICK)
    assert found["rows"] == 60_000
    assert found["file_bytes"] > 15_000_000
    assert found["many"]["planned_clients"] == 2_000
    # 25 to 45 microseconds on two cores of 2026, shared; 220 before the rows were read in one pass
    assert found["processor_us_row"] < 150
    # the texts alone have 350 bytes a row; of a row in a file only its place is in memory
    assert found["bytes_row"] < 700


def test_the_rows_are_those_of_a_corpus(tmp_path):
    plan_size.write_rows(tmp_path / "a.jsonl", plan_size.Sizes(500, 7))
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == 500
    assert {row["user"] for row in rows} == {f"u{n}" for n in range(7)}
    assert all(21 <= len(row["text"].split()) <= 79 for row in rows)
