"""What runs have spent together, which a ranking of their own epsilons hides."""

import json
import math

import pytest
from tests import fixture_run
from tests.oracle import gaussian
from typer.testing import CliRunner

from aulait import cli
from aulait.engines.python_api import compare
from aulait.runs.composed_epsilon import composed_epsilon_of


def changed(folder, old, new):
    path = folder / "config.toml"
    path.write_text(path.read_text().replace(old, new))
    return folder


def told(*words):
    return json.loads(CliRunner().invoke(cli.app, [*map(str, words), "--json"]).stdout)


@pytest.mark.parametrize("runs", [2, 6, 36])
def test_runs_on_the_same_data_are_composed_not_added(tmp_path, runs):
    folders = [fixture_run.write_run(tmp_path / f"r{i}", seed=i, arm=f"arm{i}")
               for i in range(runs)]
    cost = composed_epsilon_of(folders)
    lines = [json.loads(line) for line in (folders[0] / "ledger.jsonl").read_text().splitlines()]
    roles = {role: [line["noise_multiplier"] for line in lines if line["role"] == role]
             for role in ("proxy", "local")}
    one = max(gaussian.epsilon_of(zs, 1e-5) for zs in roles.values())
    together = max(gaussian.epsilon_of(zs * runs, 1e-5) for zs in roles.values())
    assert cost.epsilon == pytest.approx(together, rel=1e-6)
    assert cost.largest == pytest.approx(one, rel=1e-3)
    assert one * math.sqrt(runs) < cost.epsilon
    assert f"these {runs} private runs" in cost.sentence
    assert f"epsilon {together:.4g}" in cost.sentence
    assert "held-out texts" in cost.sentence


def test_terminal_json_and_pages_say_it(tmp_path):
    folders = [fixture_run.write_run(tmp_path / f"r{i}", seed=i, arm=f"arm{i}") for i in range(3)]
    document = told("compare", *folders, "--out", tmp_path / "page.html")
    assert document["composed"]["runs"] == 3
    figure = f"at most epsilon {document['composed']['epsilon']:.4g}"
    assert figure in " ".join(CliRunner().invoke(cli.app,
        ["compare", *map(str, folders)]).stdout.split())
    assert figure in (tmp_path / "page.html").read_text().replace("\u00a0", " ")
    compare(folders, tmp_path / "other.html")
    assert figure in (tmp_path / "other.html").read_text().replace("\u00a0", " ")


def test_nothing_false_is_said(tmp_path):
    private = fixture_run.write_run(tmp_path / "a")
    off = fixture_run.write_run(tmp_path / "b", off=True)
    assert composed_epsilon_of([off]).document()["epsilon"] is None
    assert composed_epsilon_of([off]).sentence == ""
    # one look at private data: its own epsilon
    assert composed_epsilon_of([private, off]).sentence == ""
    other = changed(fixture_run.write_run(tmp_path / "c"), 'source = "docstrings"',
                    'source = "stdlib"')
    apart = composed_epsilon_of([private, other])
    assert apart.epsilon is None
    assert "differ in their data" in apart.sentence
    exact = composed_epsilon_of([private, fixture_run.write_run(tmp_path / "d", exact_votes=True)])
    assert exact.epsilon is None
    assert "promise nothing" in exact.sentence
    seeded = composed_epsilon_of([private, fixture_run.write_run(tmp_path / "e", seeded=True)])
    assert "came from a seed" in seeded.sentence


def test_clients_that_change_their_role_between_runs_pay_for_all(tmp_path):
    folders = [fixture_run.write_run(tmp_path / f"r{i}") for i in range(2)]
    same = composed_epsilon_of(folders)
    changed(folders[1], "[train]", "[federation]\npreset = 'uniform'\n\n[train]")
    every = [json.loads(line)["noise_multiplier"] for f in folders
             for line in (f / "ledger.jsonl").read_text().splitlines()]
    moved = composed_epsilon_of(folders)
    assert moved.epsilon == pytest.approx(gaussian.epsilon_of(every, 1e-5), rel=1e-6)
    assert moved.epsilon > same.epsilon
