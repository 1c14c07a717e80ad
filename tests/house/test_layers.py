"""The layers of the tree, by the contracts in pyproject.toml; ``make lint`` runs them too."""

from __future__ import annotations

import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from importlinter import configuration
from importlinter.application import use_cases
from tests.house.figures import Tree

from aulait.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "pyproject.toml"
CONTRACTS = {contract["name"]: contract for contract in
             tomllib.loads(FILE.read_text())["tool"]["importlinter"]["contracts"]}


def kept(text: str, folder: Path) -> bool:
    """Whether the tree keeps the contracts that stand in a configuration."""
    configuration.configure()
    (folder / "contracts.toml").write_text(text)
    return use_cases.lint_imports(str(folder / "contracts.toml"), cache_dir=None, no_logo=True)


def test_every_import_goes_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept(FILE.read_text(), tmp_path), capsys.readouterr().out


def test_a_layer_out_of_place_is_noticed(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = FILE.read_text().replace('  "aulait.training",\n', "").replace(
        '  "aulait.core",\n', '  "aulait.core",\n  "aulait.training",\n')
    assert turned != FILE.read_text()
    assert not kept(turned, tmp_path)
    assert "BROKEN" in capsys.readouterr().out


def test_every_folder_has_its_layer() -> None:
    layers = CONTRACTS["A folder imports only from folders below it"]["layers"]
    assert len(layers) <= 11
    named = [name.strip() for layer in layers for name in layer.split("|")]
    folders = [f"aulait.{path.parent.name}" for path in (ROOT / "src" / "aulait").glob("*/__init__.py")]
    assert sorted(named) == sorted(folders)


def test_every_method_is_held_apart_from_the_others() -> None:
    apart = CONTRACTS["Methods do not know one another"]["modules"]
    assert sorted(apart) == sorted(METHODS.built_in.values())


def test_no_imports_go_in_a_circle() -> None:
    tree = Tree()
    order = [*TopologicalSorter({name: tree.imports(name) for name in tree.files}).static_order()]
    assert {*order} == {*tree.files}
