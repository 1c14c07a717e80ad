"""docs/architecture.md names files and functions; they exist, and its tree is the tree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "aulait"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[":".join(pair) for pair in NAMED])
def test_every_file_and_name_exists(file, name):
    path = SOURCE / file if (SOURCE / file).exists() else ROOT / file
    assert path.exists(), f"{file} is named on the page and does not exist"
    if name:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{file} has no {name}"


def test_the_tree_is_the_tree():
    told = set(re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE))
    found = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert told == found


def test_fedit_is_followed_through_at_most_fifteen_files():
    part = PAGE.split("a reader opens fifteen files:")[1].split("\n## ")[0]
    files = re.findall(r"^\d+\. `([\w/]+\.py)`$", part, re.MULTILINE)
    assert len(files) == len(set(files)) <= 15
    assert {"cli/run.py", "methods/fedit.py", "privacy/aggregator.py"} <= set(files)
