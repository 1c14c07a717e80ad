"""The types of a run folder's files: what is written is what was given, and readers take what fits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from aulait.privacy.ledger_line import LedgerLine
from aulait.reporting import report
from aulait.runfolder.schema import (
    EpsilonByRole,
    LedgerEntry,
    PrivacyResult,
    ResultFile,
    Scores,
    SynthesisRound,
    SyntheticLine,
    TrainRound,
)

OLD = Path(__file__).with_name("old_run")
"""A run folder of the first version: no schema_version, no clock, no unit, no kind, numbers as parents."""


def test_a_written_file_has_the_keys_that_were_given_and_no_others() -> None:
    result = ResultFile(name="a", seed=3, clock=None, eval=Scores(loss=2.5, tokens=7, own_measure=1), privacy=PrivacyResult(off=True))
    assert result.on_disk() == {"name": "a", "seed": 3, "eval": {"loss": 2.5, "tokens": 7, "own_measure": 1}, "privacy": {"off": True}, "clock": None}
    assert type(result.on_disk()["seed"]) is int


def test_what_json_lacks_is_written_as_null() -> None:
    assert Scores(loss=math.inf, perplexity=math.nan, accuracy=1e200, own=math.inf).on_disk() == {"loss": None, "perplexity": None, "accuracy": 1e200, "own": None}


@pytest.mark.parametrize("wrong", [{"seed": "3"}, {"seed": True}, {"privacy": {"off": 1}}, {"tiers": {}}, {"name": 3}])
def test_a_writer_is_held_to_the_types(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResultFile.model_validate(wrong)


def test_a_reader_leaves_out_what_does_not_fit_and_nothing_else() -> None:
    found = ResultFile.fitting({
        "name": " ", "seed": "3", "clients": 4, "own": [1], "stopped": 1,
        "privacy": {"off": "yes", "stopped_early": 3, "delta": 1e-5, "epsilon": {"max": "x", "local": 1e200, "proxy": None, "split": 2}},
        "tiers": [3, {"name": 5, "rank": 2}, "a", {}], "clock": [1], "base_eval": None, "eval": {"loss": math.nan, "accuracy": 0.5},
    })
    assert found.on_disk() == {
        "clients": 4, "own": [1], "stopped": 1, "privacy": {"delta": 1e-5, "epsilon": {"proxy": None, "split": 2}},
        "tiers": [{"rank": 2}, {}], "eval": {"accuracy": 0.5},
    }
    assert (found.privacy.epsilon.records("proxy"), found.privacy.epsilon.records("max")) == (True, False)
    line = SynthesisRound.fitting({"stage": "synthesis", "histogram": [1, "a", None, 10**400, 2.5], "winners": [{"votes": []}, 1], "samples": ["b", 1, "c"]})
    assert (line.histogram, line.winners, line.samples) == ((1, None, 2.5), (SyntheticLine(),), ("b", "c"))


def test_a_reader_takes_any_tree() -> None:
    def twisted(tree: object, value: object) -> object:
        return {key: twisted(item, value) for key, item in tree.items()} if isinstance(tree, dict) else value

    whole = json.loads((OLD / "result.json").read_text(encoding="utf-8"))
    for value in (None, "text", [], {}, -1, True, 1e308, [None, "a", {}], 10**400, [[[]]]):
        found = ResultFile.fitting(twisted(whole, value))
        assert found.eval.loss in (None, -1)


def test_an_entry_has_the_fields_of_a_line_of_the_ledger() -> None:
    assert set(LedgerEntry.model_fields) == set(LedgerLine.model_fields)


def test_an_old_run_folder_is_read_in_full(tmp_path: Path) -> None:
    raw = json.loads((OLD / "result.json").read_text(encoding="utf-8"))
    result = ResultFile.fitting(json.loads((OLD / "result.json").read_text(encoding="utf-8")))
    assert (result.schema_version, result.clock) == (None, None)
    assert result.on_disk() == raw  # nothing was left out
    for name, kinds in (("rounds.jsonl", {"synthesis": SynthesisRound, "train": TrainRound}), ("ledger.jsonl", LedgerEntry), ("synthetic.jsonl", SyntheticLine)):
        for text in (OLD / name).read_text(encoding="utf-8").splitlines():
            kind = kinds[json.loads(text)["stage"]] if isinstance(kinds, dict) else kinds
            assert kind.fitting(json.loads(text)).on_disk() == json.loads(text)
    for path in OLD.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    page = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert "8 clients took part in 2 rounds of ffa: 3 trained on their own machines and 5 were stood for" in page
    assert "Not all of this run could be read" not in page
    (row,) = report.comparison_rows([tmp_path, tmp_path])
    assert (row["n"], row["unit"], row["mean_client_loss"], row["loss"]) == (2, "client", None, pytest.approx(raw["eval"]["loss"]))


def test_an_epsilon_that_is_null_is_not_one_that_is_missing() -> None:
    assert EpsilonByRole(max=None).records("max")
    assert not EpsilonByRole().records("max")
