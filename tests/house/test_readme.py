"""What the README promises exists: commands, files, make targets."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from aulait.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OFFERED = {*COMMANDS}


def test_every_command_named_exists_and_every_command_is_in_the_table_of_the_site():
    assert set(re.findall(r"`aulait ([a-z]+)", README)) <= OFFERED
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[`aulait ([a-z]+)`\]", page, re.M)) == OFFERED
    assert "](docs/cli.md)" in README


def test_the_tree_that_is_shown_is_there():
    shown = re.findall(r"^    ([\w/]+)/ {2,}", README, re.M)
    assert len(shown) > 5
    assert not [name for name in shown if not (ROOT / name).is_dir()]


def test_pictures_are_small():
    pictures = [ROOT / name for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)]
    assert len(pictures) >= 4
    assert all(path.stat().st_size < 200_000 for path in pictures)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_targets_exist(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_every_file_linked_or_named_exists():
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"(experiments/[\w-]+\.toml)", README)
    assert linked
    missing = [path for path in linked if not (ROOT / path).exists()]
    assert not missing


def test_ci_calls_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_no_empty_rooms():
    source = ROOT / "src" / "aulait"
    empty = [p for p in source.rglob("__init__.py") if p.parent != source and not any(q for q in p.parent.iterdir() if q.name not in ("__init__.py", "__pycache__"))]
    assert not empty


def test_the_figure_is_drawn_from_the_numbers_in_results():
    """python scripts/draw_two_stages.py writes it again."""
    path = ROOT / "scripts" / "draw_two_stages.py"
    spec = importlib.util.spec_from_file_location("draw_two_stages", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = json.loads(script.NUMBERS.read_text("utf-8"))["rows"]
    assert script.FIGURE.read_text("utf-8") == script.drawn(script.gains(rows))
    assert f"]({script.FIGURE.relative_to(ROOT)})" in README
