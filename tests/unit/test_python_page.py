"""docs/python.md: its examples run, one after the other, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests import tiny_run

from aulait.runs import experiment_file

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                          capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    tiny_run.write_data(tmp_path)
    text = experiment_file.dump_settings(tiny_run.settings(tmp_path))
    (tmp_path / "experiment.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert len(examples) == 8
    assert "train 2/2" in printed
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert (tmp_path / "runs" / "methods.html").is_file()
