"""``aulait runs``: which folders are listed, in which order, with what."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.fixture_run import write_run
from typer.testing import CliRunner

from aulait.cli import app


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for index, (name, off) in enumerate({"old": False, "deep/er/new": True}.items()):
        folder = write_run(tmp_path / name, off=off, arm=name)
        for file in folder.iterdir():
            if file.is_file():
                os.utime(file, (1.7e9 + index, 1.7e9 + index))
    (tmp_path / "not-a-run").mkdir()
    return tmp_path


def _called(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["runs", *map(str, words)])
    return result.exit_code, result.output


def test_runs_are_listed_the_newest_first(place: Path) -> None:
    code, out = _called(place, "--json")
    found = json.loads(out)
    assert code == 0
    assert [Path(entry["path"]).name for entry in found] == ["new", "old"]
    assert [entry["state"] for entry in found] == ["finished", "finished"]
    assert [entry["private"] for entry in found] == [False, True]
    assert all(entry["loss"] < entry["base_loss"] for entry in found)


def test_the_table_tells_loss_and_epsilon(place: Path) -> None:
    _, out = _called(place)
    new, old = (line for line in out.splitlines() if "finished" in line)
    assert "infinite" in new
    assert "infinite" not in old
    assert "→" in new


def test_a_place_without_runs_and_a_missing_one(tmp_path: Path) -> None:
    assert _called(tmp_path) == (0, f"no run in {tmp_path}\n")
    code, out = _called(tmp_path / "nowhere")
    assert code == 2
    assert "found no folder" in out
