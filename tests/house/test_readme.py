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


def script(name):
    """A script of ours as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_figure_is_drawn_from_the_numbers_in_results():
    """python scripts/draw_two_stages.py writes it again."""
    drawing = script("draw_two_stages")
    rows = json.loads(drawing.NUMBERS.read_text("utf-8"))["rows"]
    assert drawing.FIGURE.read_text("utf-8") == drawing.drawn(drawing.gains(rows))
    assert f"]({drawing.FIGURE.relative_to(ROOT)})" in README


def test_the_laws_figure_is_drawn_from_the_numbers_in_results():
    """python scripts/draw_law.py writes it again."""
    drawing = script("draw_law")
    rows = json.loads(drawing.NUMBERS.read_text("utf-8"))["rows"]
    assert drawing.FIGURE.read_text("utf-8") == drawing.drawn(rows)
    assert f"](figures/{drawing.FIGURE.name})" in (ROOT / "docs" / "privacy.md").read_text("utf-8")
    for row in rows:
        assert row["kept"] == row["gain"] / row["gain_without_privacy"]


def test_the_figure_of_growth_is_drawn_from_the_numbers_in_results():
    """python scripts/draw_growth.py writes it again."""
    drawing = script("draw_growth")
    tables = json.loads(drawing.NUMBERS.read_text("utf-8"))["tables"]
    assert drawing.FIGURE.read_text("utf-8") == drawing.drawn(tables)
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert f"](figures/{drawing.FIGURE.name})" in page
    for table in tables:
        assert f"| {table['exponent']:.2f} | {table['expected']:.0f} |" in page


def test_the_figure_of_peers_is_drawn_from_the_numbers_in_results():
    """python scripts/draw_peers.py writes it again."""
    drawing = script("draw_peers")
    found = json.loads(drawing.NUMBERS.read_text("utf-8"))
    cases = [case for key in drawing.KEYS for case in found[key]]
    assert drawing.FIGURE.read_text("utf-8") == drawing.drawn(cases)
    page = (ROOT / "results" / "bench-simulate.md").read_text("utf-8")
    assert f"](../docs/figures/{drawing.FIGURE.name})" in page
    for case in cases:
        assert f"| {case['ratio_to_loop']:.2f} |" in page


def test_the_map_of_methods_is_drawn_from_the_numbers_in_results(monkeypatch):
    """python scripts/draw_methods.py writes it again."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    drawing = script("draw_methods")
    figures = json.loads(drawing.NUMBERS.read_text("utf-8"))
    assert drawing.FIGURE.read_text("utf-8") == drawing.drawn(figures)
    page = (ROOT / "results" / "methods-table.md").read_text("utf-8")
    assert f"](../docs/figures/{drawing.FIGURE.name})" in page


def test_the_law_pairs_private_runs_with_those_without_privacy(tmp_path):
    drawing = script("draw_law")

    def write(arm, off, loss, seed=0, base=6.0):
        folder = tmp_path / f"{arm} {seed}".replace(" ", "-")
        folder.mkdir()
        noise = None if off else {"trained_numbers": 42, "clients": 9.0, "ratio": 0.43}
        (folder / "result.json").write_text(json.dumps({
            "name": "notes", "arm": arm, "seed": seed, "base_eval": {"loss": base}, "eval": {"loss": loss},
            "privacy": {"off": off, "noise": noise, "epsilon": {"max": None if off else 8.0}}}))

    write("inf rank 1", True, 5.0)
    write("8 rank 1", False, 5.25)
    write("8 rank 2", False, 5.0)  # nobody to compare with
    write("8 rank 1", False, 5.5, seed=1)
    (row,) = drawing.gathered([tmp_path])
    assert (row["arm"], row["kept"], row["ratio"]) == ("8 rank 1", 0.75, 0.43)
