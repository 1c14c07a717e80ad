"""scripts/make_builtin.py: what it takes from files, which licences it accepts, what it writes."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path

import pytest

DOCUMENT = "The inner text is found and it has the forty characters."
LICENCE = "Copyright 2001 A. Nobody\n\nUse it as you like."


@pytest.fixture
def script(monkeypatch):
    path = Path(__file__).resolve().parents[2] / "scripts" / "make_builtin.py"
    spec = importlib.util.spec_from_file_location("make_builtin", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_builtin", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lays down an installed package with one module, a licence file and the given metadata."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def lay(name: str, metadata: str, source: str) -> None:
        info = site / f"{name}-1.2.dist-info"
        for folder in (site / name, info):
            folder.mkdir(parents=True)
        (site / name / "__init__.py").write_text("")
        (site / name / "shop.py").write_text(source)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
        (info / "METADATA").write_text(f"{head}{metadata}\n")
        (info / "LICENSE").write_text(f"{LICENCE}\n")
        (info / "RECORD").write_text(f"{name}/shop.py,,\n{name}-1.2.dist-info/LICENSE,,\n")
        importlib.invalidate_caches()

    return lay


def test_three_files_are_written_the_same_ones_each_time(
    script, install, tmp_path, monkeypatch, capsys
):
    notice = "#!/usr/bin/env python\n# Copyright (c) 1999 B. Nobody\n# All rights reserved.\n"
    source = f'{notice}\n\ndef f():\n    """{DOCUMENT}\n\n    >>> f()"""\n'
    install("openone", "License-Expression: MIT", source)
    install("closed", "License: Proprietary\nClassifier: Framework :: MIT", f'"""{DOCUMENT}!"""\n')
    names = ("openone", "closed", "no_such_package")
    monkeypatch.setattr(script, "PACKAGES", dict.fromkeys(names, "MIT"))
    monkeypatch.setattr(script, "standard_library", lambda: {})
    written = []
    for name in ("one", "two"):
        script.main([str(tmp_path / name)])
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    one, two = written
    assert set(one) == {"LICENCES.txt", "docstrings.jsonl.gz", "stdlib.jsonl.gz"}
    assert one == two
    lines = gzip.decompress(one["docstrings.jsonl.gz"]).splitlines()
    assert [json.loads(line) for line in lines] == [{"client": "openone.shop", "text": DOCUMENT}]
    licences = one["LICENCES.txt"].decode()
    assert "\nopenone 1.2: MIT\n" in licences
    assert LICENCE in licences
    assert "\nCopyright (c) 1999 B. Nobody\nAll rights reserved.\n" in licences
    assert "bin/env" not in licences
    assert "closed" not in licences
    said = capsys.readouterr()
    assert "left out: closed: expected MIT, its metadata say Proprietary\n" in said.err
    assert "left out: no_such_package: not installed\n" in said.err
    assert "docstrings: 1 clients, 1 texts\n" in said.out


def test_the_order_of_folders_changes_nothing(script):
    groups = script.candidates(script.source_files(script.package_folder("jinja2"), "jinja2"))
    first = script.harvest(groups)
    assert first == script.harvest(dict(reversed(groups.items())))
    assert "jinja2.filters" in first


def test_limits_of_clients_and_texts(script):
    def found(n: int):
        return script.Harvest([f"text {i}" for i in range(n)], [])

    many = {f"{package}.m{i}": found(i + 1) for package in ("one", "two") for i in range(7)}
    kept = [f"{package}.m{i}" for package in ("one", "two") for i in range(2, 7)]
    assert list(script.largest(many)) == kept
    crowd = {f"p{i:02}.m": found(1) for i in range(70)}
    assert list(script.largest(crowd)) == list(crowd)[:60]


def test_a_client_has_at_most_a_hundred_texts_and_none_twice(script, tmp_path):
    function = 'def f():\n    """This is the text with the number {} of many texts of a module."""\n'
    for name in ("a", "b"):
        source = "".join(function.format(i) for i in range(120))
        (tmp_path / f"{name}.py").write_text(source)
    found = script.harvest({"m.b": [tmp_path / "b.py"], "m.a": [tmp_path / "a.py"]})
    numbers = {name: [int(text.split()[7]) for text in found[name].texts] for name in found}
    assert numbers == {"m.a": list(range(100)), "m.b": list(range(100, 120))}


def test_files_are_parsed_never_run(script, tmp_path):
    source = '"""Never run this."""\nraise SystemExit\nclass C:\n    def f(self):\n        '
    (tmp_path / "m.py").write_text(f'{source}"""{DOCUMENT}"""\n')
    (tmp_path / "broken.py").write_text("def (")
    assert list(script.documents(tmp_path / "m.py")) == [DOCUMENT]
    assert list(script.documents(tmp_path / "broken.py")) == []


def test_shorten(script):
    assert script.shorten("One.\n\n    Two.\n\n    >>> code()") == "One.\n\nTwo."
    assert script.shorten("A" * 300 + "\n\n" + "B" * 300) == "A" * 300
    assert script.shorten("First sentence. " + "word " * 200) == "First sentence."
    assert script.shorten("word " * 200) == ("word " * 100).strip()
    assert script.shorten("x" * 900) == "x" * 500
    assert script.shorten("") == ""
