"""``aulait init``: what it finds in data of each form, and that what it writes can be planned."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from aulait.cli import app
from aulait.runs import first_experiment, size_law
from aulait.runs.experiment_file import read_settings
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare

TEXT = "a text of some length about case {} that somebody wrote down one day"


def _rows(form: str, count: int = 60, owners: int = 6) -> list[dict[str, object]]:
    """Rows of a form, each with an owner, a number of its own and a date."""
    def content(i: int) -> dict[str, object]:
        if form == "pairs":
            return {"question": f"what of {i}?", "answer": TEXT.format(i)}
        if form == "chat":
            return {"messages": [{"role": "user", "content": f"what of {i}?"},
                                 {"role": "assistant", "content": TEXT.format(i)}]}
        return {"note": TEXT.format(i)}

    return [{"number": i, "hospital": f"h{i % owners}", "day": f"2026-01-{i % 28 + 1:02}",
             **content(i)} for i in range(count)]


def _file(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _called(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, words)))
    return result.exit_code, result.output


@pytest.mark.parametrize("form", ["text", "pairs", "chat"])
@pytest.mark.parametrize("unit", ["client", "record"])
def test_what_is_written_can_be_planned(tmp_path: Path, form: str, unit: str) -> None:
    data, to = _file(tmp_path, _rows(form)), tmp_path / "first.toml"
    code, out = _called("init", data, "--to", to, "--unit", unit, "--epsilon", 8)
    assert code == 0, out
    assert "60 rows, 6 clients by 'hospital'" in out
    settings = read_settings(to)
    assert to.read_text().startswith("#:schema experiment.schema.json\n")
    schema = json.loads((tmp_path / "experiment.schema.json").read_text())
    jsonschema.validate(tomllib.loads(to.read_text()), schema)
    assert (settings.data.client, settings.data.format) == ("hospital", form)
    assert settings.privacy.unit == unit
    code, out = _called("plan", to, "--json", "--set", "privacy.noise_seed=1")
    assert code == 0, out


@pytest.mark.parametrize(("unit", "a_rank"), [("client", 4), ("record", 2)])
def test_as_much_is_trained_as_the_noise_leaves_room_for(
        tmp_path: Path, unit: str, a_rank: int) -> None:
    """By the law of size, which the plan tells too; alpha follows the rank."""
    data, to = _file(tmp_path, _rows("text", 1600, 8)), tmp_path / "first.toml"
    code, out = _called("init", data, "--to", to, "--unit", unit, "--epsilon", 8)
    assert code == 0, out
    assert "verdict  " in out
    (rank,) = map(int, re.findall(r"trains   rank (\d+) on", out))
    adapter = read_settings(to).adapter
    assert adapter.auto == ("rank", "layers", "alpha")
    run = prepare(read_settings(to), SharedCache())
    assert run.settings.adapter.alpha == a_rank * rank
    found = size_law.noise_ratio(run)
    assert run.settings.adapter.rank == rank
    fewest = rank == 1 and run.settings.adapter.layers == 1
    assert found.ratio <= 1.01 * run.settings.privacy.target_ratio or fewest


def test_few_clients_protect_records_and_many_whole_clients(tmp_path: Path) -> None:
    few = first_experiment.look(str(_file(tmp_path, _rows("text"))))
    many = first_experiment.look(str(_file(tmp_path, _rows("text", 200, 50))))
    for seen, unit in ((few, "record"), (many, "client")):
        owner = first_experiment.owner_of(seen)
        assert owner == "hospital"
        assert first_experiment.unit_for(len(first_experiment.clients_of(seen, owner))) == unit


def test_a_field_that_repeats_is_taken_where_no_name_is_usual(tmp_path: Path) -> None:
    rows = [{"nr": i, "ward": f"w{i % 7}", "yes": bool(i % 2), "body": TEXT.format(i)}
            for i in range(70)]
    seen = first_experiment.look(str(_file(tmp_path, rows)))
    assert first_experiment.owner_of(seen) == "ward"
    assert first_experiment.learnt_of(seen, "ward").text == "body"


def test_without_an_owner_rows_are_dealt(tmp_path: Path) -> None:
    data = _file(tmp_path, [{"text": TEXT.format(i)} for i in range(50)])
    to = tmp_path / "first.toml"
    code, out = _called("init", data, "--to", to, "--epsilon", "off")
    assert code == 0, out
    settings = read_settings(to)
    assert (settings.data.partition, settings.data.clients) == ("iid", 10)
    assert settings.privacy.off


@pytest.mark.parametrize(("more", "words"), [
    (("--client", "hospitl"), "did you mean 'hospital'"),
    (("--text", "nte"), "did you mean 'note'"),
    (("--epsilon", "little"), "expected a number above 0, or off"),
    (("--epsilon", "-1"), "privacy.epsilon is -1")])
def test_wrong_answers_are_one_line(tmp_path: Path, more: tuple[str, str], words: str) -> None:
    code, out = _called("init", _file(tmp_path, _rows("text")), "--to", tmp_path / "a.toml", *more)
    assert code == 2
    assert words in out


def test_nothing_is_overwritten_and_missing_data_are_told(tmp_path: Path) -> None:
    to = tmp_path / "first.toml"
    to.write_text("mine")
    code, out = _called("init", _file(tmp_path, _rows("text")), "--to", to)
    assert code == 2
    assert "exists already" in out
    assert to.read_text() == "mine"
    code, out = _called("init", tmp_path / "none.jsonl", "--to", tmp_path / "b.toml")
    assert code == 2
    assert not (tmp_path / "b.toml").exists()


@pytest.mark.parametrize("protected", [1, 9, 10, 99, 1000, 123_456])
def test_delta_is_far_below_one_over_what_is_protected(protected: int) -> None:
    delta = first_experiment.delta_for(protected)
    assert delta <= 1e-5
    assert delta * protected <= 0.1 + 1e-12
