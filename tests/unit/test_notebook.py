"""docs/first-steps.ipynb: its cells run in their order, as a kernel would run them, and it is kept without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pandas
import pytest

import aulait

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "first-steps.ipynb"


def run_cell(source: str, names: dict[str, object]) -> object:
    """The value of a cell's last expression; None where it ends with a statement."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert document["nbformat"] == 4
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = [run_cell("".join(cell["source"]), names) for cell in cells]
    _, verdict, run, rounds, text = shown
    assert "privacy is off" in verdict
    assert isinstance(run, aulait.FinishedRun)
    assert run.loss < run.base_loss
    assert isinstance(rounds, pandas.DataFrame)
    assert len(rounds) == 2
    assert "Read file" in text
