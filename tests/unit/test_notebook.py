"""docs/first-steps.ipynb: a kernel of Jupyter runs its cells in their order, and it is kept without outputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed; pip install '.[test]'")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; pip install '.[test]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed; pip install '.[test]'")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "first-steps.ipynb"


def shown(cell: object) -> str:
    """What stands below a cell, as text: printed lines, values, and what was displayed."""
    parts = [output.get("text") or "".join(output.get("data", {}).get(kind, "") for kind in ("text/plain", "text/html"))
             for output in cell["outputs"]]
    return "\n".join(parts)


def test_the_notebook_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    kernel = tmp_path / "data" / "kernels" / "python3"  # this interpreter, whatever else is registered
    kernel.mkdir(parents=True)
    kernel.joinpath("kernel.json").write_text(
        f'{{"argv": ["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"], "display_name": "here", "language": "python"}}')
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    _, verdict, run, rounds, text = map(shown, code)
    assert "privacy is off" in verdict
    assert "<progress" in run  # the bar of NotebookProgress, which only a kernel shows
    assert "finishing 2/2" in run
    assert "<table" in rounds
    assert "Read file" in text
    assert (tmp_path / "runs" / "first-steps" / "report.html").is_file()
