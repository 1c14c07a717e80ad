"""docs/methods/: a page for every method, not stale, each with its source and its bytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_methods", ROOT / "scripts" / "write_methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_those_that_the_docstrings_give() -> None:
    module = script()
    wanted = module.pages()
    assert {path.name for path in module.FOLDER.glob("*.md")} == set(wanted), "run scripts/write_methods.py"
    for name, text in wanted.items():
        assert (module.FOLDER / name).read_text(encoding="utf-8") == text, f"{name} is stale: run scripts/write_methods.py"


def test_a_figure_holds_every_seed_of_every_method() -> None:
    module = script()
    losses = module.measured("equal")
    drawn = module.figure("ffa")
    assert drawn.count("<circle") == sum(map(len, losses.values())) > 30
    assert drawn.count('font-weight="bold"') == 1
    assert module.figure("cores") == "" or "cores" in losses
