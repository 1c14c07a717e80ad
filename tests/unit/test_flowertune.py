"""FlowerTune's script: pairs are dealt evenly and repeatably, and the scorers count what they say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).resolve().parents[2] / "scripts" / "flowertune.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("flowertune", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pairs_are_dealt_to_twenty_clients_alike(script, tmp_path, monkeypatch, capsys):
    rows = [
        {
            "question": f"q{i} " + "word " * (400 if i == 3 else 1),
            "answer": "" if i == 5 else f"a{i}",
        }
        for i in range(43)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = []
    for name in ("one", "two"):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "flowertune.py",
                "data",
                str(tmp_path / "pairs.jsonl"),
                str(tmp_path / name),
                "--prompt",
                "question",
                "--response",
                "answer",
            ],
        )
        script.main()
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    dealt = script.rows_of(tmp_path / "one")
    counts = [sum(row["client"] == f"client-{k:02d}" for row in dealt) for k in range(20)]
    assert (sum(counts), min(counts), max(counts)) == (41, 2, 3)
    assert not {"a3", ""} & {row["response"] for row in dealt}
    assert "41 pairs of 43" in capsys.readouterr().out


def test_the_scorers_count_first_words_and_likely_answers(script):
    rows = [
        {"right": "yes", "likely": "yes", "text": "Yes, it does."},
        {"right": "no", "likely": "yes", "text": " no."},
        {"right": "yes", "likely": "maybe", "text": "The study"},
        {"right": "yes", "likely": "yes", "text": ""},
    ]
    assert script.means(rows) == {
        "questions": 4,
        "generated": 50.0,
        "an answer at all": 50.0,
        "likelihood": 50.0,
        "majority": 75.0,
    }


def test_a_question_holds_the_beginning_of_its_abstract_alone(script):
    text = script.asked({"contexts": ["one two"] * 100, "question": "Why?"})
    assert text.startswith("one two one")
    assert len(text.partition("\n")[0].split()) == script.ABSTRACT_WORDS
    assert text.endswith("Question: Why?\nAnswer with one word: yes, no or maybe.")
