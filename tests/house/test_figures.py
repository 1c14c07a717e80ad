"""Limits of the tree that a newcomer feels: depth, late imports, untyped values, names."""

from __future__ import annotations

import re

from tests.house.figures import ROOT, Tree

TREE = Tree()


def test_the_root_of_the_package_holds_folders_alone():
    found = {path.name for path in (ROOT / "src" / "aulait").iterdir() if path.is_file()}
    assert found == {"__init__.py", "py.typed"}


def test_no_chain_of_imports_is_longer_than_fifteen():
    chain = TREE.chain()
    assert len(chain) <= 15, " -> ".join(chain)


def test_imports_inside_functions_are_few():
    """An optional or heavy library forces one; the reason stands beside it."""
    found = TREE.inner_imports()
    assert len(found) <= 25, sorted(found)


def test_any_stands_where_a_library_forces_it():
    assert TREE.anys() < 150


def test_no_two_types_have_one_name():
    twice = {name: where for name, where in TREE.type_names().items() if len(where) > 1}
    assert not twice


def test_nothing_is_called_after_the_first_edition():
    """Words that the field's own replaced, as names of classes and functions."""
    gone = re.compile(r"^(?:class|def) _?(?:House|Door|Reply|Order|Workshop|Tenancy|Spool|Brief)\b",
                      re.MULTILINE)
    found = {name: gone.findall(path.read_text(encoding="utf-8"))
             for name, path in TREE.files.items()}
    assert not {name: words for name, words in found.items() if words}


def test_an_import_inside_a_function_says_why():
    """A comment on its line, or above it and the imports that follow one another."""
    bare = []
    for name in TREE.inner_imports():
        lines = TREE.files[name].read_text(encoding="utf-8").splitlines()
        for node in TREE.inner_import_nodes(name):
            above = node.lineno - 2
            while lines[above].strip().startswith(("import ", "from ")):
                above -= 1
            told = re.sub(r"# (type: ignore\[[^\]]*\]|noqa: \w+)", "", lines[node.lineno - 1])
            if "#" not in told and not lines[above].strip().startswith("#"):
                bare.append(f"{name}:{node.lineno}")
    assert not bare
