"""The table of texts: each once, with what it was made from, back to the public text."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fixture_run import write_run

from aulait.reporting import explorer, synthesis
from aulait.reporting.folder import read_run

WINNERS = [
    {"stage": "synthesis", "round": 1, "noise_std": 1.0, "histogram": [5.0, 1.0], "kept": 1,
     "winners": [{"text": "a public text", "round": 0, "parent": None, "votes": 5.0, "origin": "public"}], "samples": ["a public text", "a kept text"]},
    {"stage": "synthesis", "round": 2, "noise_std": 1.0, "histogram": [7.5, 1.0], "kept": 1,
     "winners": [{"text": "a varied text", "round": 1, "parent": "a public text", "votes": 7.5, "origin": "varied"}], "samples": []},
]
FINAL = [
    {"text": "a second variation", "round": 2, "parent": "a varied text", "client": "p0", "origin": "varied"},
    {"text": "a second variation", "round": 2, "parent": "a varied text", "client": "p1", "origin": "varied"},
    {"text": "answer", "prompt": "question", "round": 2, "parent": "unknown", "client": "p0", "origin": "written"},
    {"text": "in a circle", "parent": "in a circle", "origin": "varied"},
]


def written(folder: Path, final: list[dict[str, object]]) -> Path:
    write_run(folder)
    (folder / "rounds.jsonl").write_text("\n".join(map(json.dumps, WINNERS)), encoding="utf-8")
    (folder / "synthetic.jsonl").write_text("\n".join(map(json.dumps, final)), encoding="utf-8")
    return folder


def test_a_text_is_traced_to_the_public_text_it_descends_from(tmp_path: Path) -> None:
    table = explorer.text_table(read_run(written(tmp_path / "run", FINAL)))
    rows = {(row.text, row.place): row for row in table.rows}
    assert list(rows) == [("a public text", "won votes"), ("a varied text", "won votes"), ("a kept text", "kept"), ("a second variation", "final set"),
                          ("question\nanswer", "final set"), ("in a circle", "final set")]
    second = rows["a second variation", "final set"]
    assert (second.parent, second.public, second.times) == ("a varied text", "a public text", 2)
    varied = rows["a varied text", "won votes"]
    assert (varied.parent, varied.public, varied.votes, varied.round) == ("a public text", "", 7.5, 2)  # its parent is the public one
    assert rows["question\nanswer", "final set"].public == rows["in a circle", "final set"].public == ""
    assert table.left_out == 0
    body = synthesis.samples_section(read_run(tmp_path / "run")).body
    assert "which descends from the public text" in body
    assert 'data-round="2"' in body


def test_many_and_long_texts_are_thinned_and_it_is_said(tmp_path: Path) -> None:
    many = [{"text": f"{k} " + "word " * 400, "parent": "p " * 500, "round": 1} for k in range(4000)]
    run = read_run(written(tmp_path / "run", many))
    table = explorer.text_table(run)
    assert table.of == 4003
    assert 300 < len(table.rows) <= explorer.MOST_ROWS
    assert sum(len(row.text) + len(row.parent) for row in table.rows) <= explorer.MOST_LETTERS
    assert "of 4,003 texts, at even steps" in synthesis.samples_section(run).body
