"""Built-in names agree with the tree, third parties are found, and broken ones are named."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.house.typed_methods import TYPED

from aulait.core.errors import ConfigError
from aulait.core.registry import Registry, missing_names
from aulait.data.sources import SOURCES
from aulait.methods import METHODS
from aulait.privacy.mechanisms import MECHANISMS
from aulait.synthesis.embedding import EMBEDDERS
from aulait.synthesis.variation import GENERATORS


@pytest.mark.parametrize("registry", [METHODS, SOURCES, EMBEDDERS, GENERATORS, MECHANISMS], ids=lambda one: one.kind)
def test_every_built_in_name_leads_to_something(registry: Registry[Any]) -> None:
    assert {*registry.built_in} <= {*registry.names()}
    for name in registry.built_in:
        assert registry.find(name) is registry.find(name)


def test_the_table_of_methods_agrees_with_its_folder() -> None:
    folder = Path(importlib.import_module("aulait.methods").__file__ or "").parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "contract"}
    assert {*METHODS.built_in} == {stem for stem in files
                                   if hasattr(importlib.import_module(f"aulait.methods.{stem}"),
                                              "step")}
    assert {*TYPED} == {METHODS.find(name) for name in METHODS.built_in}


def test_names_are_known_without_loading_what_they_stand_for() -> None:
    code = ("import sys; from aulait.methods import METHODS; from aulait.data.sources import SOURCES;"
            "assert METHODS.unknown('fedit') == '' and METHODS.unknown('fedti'); "
            "print([m for m in ('torch', 'aulait.methods.fedit', 'aulait.data.builtin')"
            " if m in sys.modules])")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def installed(folder: Path, name: str, kind: str, text: str, as_name: str | None = None) -> None:
    """What pip leaves of a distribution: a module and the description of its entry point."""
    folder.joinpath(f"{name}.py").write_text(text)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    about.joinpath("entry_points.txt").write_text(
        f"[aulait.{kind}]\n{as_name or name} = {name}:thing\n")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Registry("toy", {"path": "pathlib:Path"},
                    lambda thing: missing_names(thing, ("ask",), ("size",)))


def test_a_third_party_is_found(registry: Registry[Any], tmp_path: Path) -> None:
    installed(tmp_path, "whole", "toy", "class thing:\n    size = 3\n    def ask(): ...\n")
    assert "whole" in registry
    assert registry.find("whole").size == 3
    found, broken = registry.third_party()
    assert [*found] == ["whole"]
    assert broken == []


@pytest.mark.parametrize(("text", "reason"), [
    ("import not_there\nthing = 1\n", "No module named 'not_there'"),
    ("raise RuntimeError('first\\nsecond')\n", "RuntimeError: first second"),
    ("other = 1\n", "has no attribute 'thing'"),
    ("class thing: ask = print\n", "(no size)"),
    ("class thing: pass\n", "(no size; no ask)"),
    ("class thing: size = ask = 1\n", "(ask cannot be called)"),
])
def test_a_broken_third_party_is_named_on_one_line(
        registry: Registry[Any], tmp_path: Path, text: str, reason: str) -> None:
    name = f"broken_{abs(hash(text))}"
    installed(tmp_path, name, "toy", text)
    found, broken = registry.third_party()
    assert found == {}
    (line,) = broken
    assert f"toy '{name}' of the distribution {name} is broken" in line
    assert reason in line
    assert "\n" not in line
    with pytest.raises(ConfigError, match=f"distribution {name} is broken"):
        registry.find(name)


def test_a_built_in_name_is_not_taken_over(registry: Registry[Any], tmp_path: Path) -> None:
    installed(tmp_path, "thief", "toy", "class thing: size, ask = 1, print\n", as_name="path")
    assert registry.find("path") is Path
    found, broken = registry.third_party()
    assert found == {}
    assert broken == ["toy 'path' of the distribution thief has the name of a built-in one, which "
                      "is used; rename it"]
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("path")(object())


def test_an_unknown_name_is_answered_with_the_nearest(registry: Registry[Any]) -> None:
    registry.register("other")(Path)
    assert registry.register("other")(Path) is Path
    with pytest.raises(ConfigError, match="toy 'othr' is unknown; did you mean 'other'"):
        registry.find("othr")
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("other")(object())


def test_a_name_of_another_system_is_told_under_ours() -> None:
    kept: Registry[object] = Registry("algorithm", {"fedit": "json:loads"},
                                      elsewhere={"fedavg": "write 'fedit'"})
    assert kept.unknown("FedAvg") == "algorithm 'FedAvg' is unknown; write 'fedit'"
    assert kept.unknown("fedit") == ""
