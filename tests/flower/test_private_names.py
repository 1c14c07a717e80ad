"""The one table of Flower's private names: each exists, and no other is used."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

pytest.importorskip("flwr")
import aulait
from aulait.engines.flower.hardening import patching
from aulait.engines.flower.hardening.private_names import ATTRIBUTES, PRIVATE_NAMES

PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation")
SOURCES = [path for root in ("aulait", "aulait_benchmarks") for path in (Path(aulait.__file__).parents[1] / root).rglob("*.py")]
TABLE = {(own.module, own.name) for own in PRIVATE_NAMES}


@pytest.mark.parametrize("own", PRIVATE_NAMES, ids=lambda own: f"{own.module}.{own.name}")
def test_it_is_in_the_installed_flower(own):
    assert hasattr(importlib.import_module(own.module), own.name)
    assert own.roles
    assert own.use
    assert own.gone


def constants(tree):
    """Names of a module that stand for a text."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Constant):
            found[node.target.id] = node.value.value
    return found


def used(path):
    """(module, name) of Flower's private names that a file imports, reaches or replaces."""
    tree = ast.parse(path.read_text())
    texts, found = constants(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr" and node.module not in PUBLIC:
            found |= {(node.module, alias.name) for alias in node.names}
        if isinstance(node, ast.Import):
            assert not [alias for alias in node.names if alias.name.split(".")[0] == "flwr"], path
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("part", "swap") and path.name != "patching.py":
            module, name = (texts.get(own.id) if isinstance(own, ast.Name) else own.value for own in node.args[:2])
            found.add((module, name))
    return found


def test_no_other_is_used_and_none_stands_there_for_nothing():
    reached = {pair for path in SOURCES for pair in used(path)} | {("flwr.supercore.protobuf.client", "ProtobufClient")}  # in patching.py
    assert reached <= TABLE
    assert TABLE - reached == {("flwr.supernode.cli.flwr_clientapp", "run_clientapp")}, "only looked for"
    assert len(TABLE) == len(PRIVATE_NAMES)
    outside = [path for path in SOURCES if used(path) and "hardening" not in path.parts]
    assert not outside


def test_a_name_that_is_not_in_the_table_cannot_be_reached():
    with pytest.raises(KeyError, match="not in the table"):
        patching.part("flwr.app", "Message")


def test_private_attributes_are_used_where_the_table_says():
    for told, where in ATTRIBUTES.items():
        attribute = told.partition(".")[2]
        files = {path.name for path in SOURCES if path.name != "private_names.py" and (
            f".{attribute}" in path.read_text() or f'["{attribute}"]' in path.read_text()) and "hardening" in path.parts}
        assert files, told
        assert all(name in where for name in files), (told, files)
