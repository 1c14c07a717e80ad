"""A sweep that keeps its best run by public text, and tells nothing of the others."""

import json
import shutil
from collections import Counter
from random import Random

import pytest
from tests.unit.cli.test_commands import OFF, problem, told, write

from aulait.privacy.accounting import Event, epsilon
from aulait.privacy.private_selection import RunCount, selection_epsilon
from aulait.reporting import numbers
from aulait.reporting.guarantee import success
from aulait.runs import private_sweep

PUBLIC = ("--set", 'data.public="docstrings"', "--set", 'evaluate.on="public"')
OVER = ("--over", "train.lr=1e-3,1e-2,1e-1")


class Fixed(Random):
    """Three runs, of arms in turn."""

    turn = 0

    def choice(self, arms):
        Fixed.turn += 1
        return arms[(Fixed.turn - 1) % len(arms)]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    experiment = write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_sweep, "SystemRandom", Fixed)
        patch.setattr(RunCount, "draw", lambda self, source: 3)
        found = told("sweep", experiment, *OVER, *PUBLIC, "--select", "private", "--average-runs",
                     4, "--out", folder / "s")
    return experiment, folder / "s", found


def test_only_the_best_run_by_public_text_is_left(chosen):
    experiment, out, found = chosen
    assert sorted(path.name for path in out.iterdir()) == ["selected", "selection.json"]
    assert json.loads((out / "selection.json").read_text()) == found
    result = json.loads((out / "selected" / "result.json").read_text())
    assert result["eval"]["loss"] == found["loss"]
    assert result["eval"]["measured_on"] == "public texts"
    alone = [told("run", experiment, *PUBLIC, "--set", f"train.lr={lr}", "--out",
                  out.parent / f"r{lr}") for lr in ("1e-3", "1e-1")]
    # no held-out record was scored
    assert all("worst_client_loss" not in run["eval"] for run in alone)
    assert "lr=" in found["arm"]
    assert not any(word in json.dumps(found)
                   for word in set(("lr=1e-3", "lr=1e-2", "lr=1e-1")) - {found["arm"]})


def test_its_epsilon_is_that_of_the_selection_not_of_one_run(chosen):
    _, out, found = chosen
    lines = [json.loads(line)
             for line in (out / "selected" / "ledger.jsonl").read_text().splitlines()]
    events = [Event(line["noise_multiplier"]) for line in lines]
    assert found["epsilon"] == pytest.approx(selection_epsilon([Counter(events)], 1e-2,
        RunCount.geometric(4)), rel=1e-6)
    assert found["epsilon"] > epsilon(events, 1e-2)
    assert found["runs_on_average"] == 4
    assert found["arms"] == 3


@pytest.mark.parametrize("place", ["as it lies", "alone", "of an earlier version"])
def test_the_dossier_of_the_kept_run_tells_what_the_selection_cost(chosen, tmp_path, place):
    """Wherever its folder went; the run alone would have a smaller epsilon and a lower success."""
    _, out, found = chosen
    if place == "alone":
        kept = tmp_path / "model"
        shutil.copytree(out / "selected", kept)
    else:
        shutil.copytree(out, tmp_path / "s")
        kept = tmp_path / "s" / "selected"
    if place == "of an earlier version":
        (kept / "selection.json").unlink()
    page = tmp_path / "page.html"
    dossier = told("dossier", kept, "--out", page)
    assert dossier["selection"]["epsilon"] == found["epsilon"]
    for role in dossier["roles"].values():
        assert role["epsilon"] == found["epsilon"]
        assert role["best_success"] == success(found["epsilon"], found["delta"])
    assert "that of the whole selection" in page.read_text()
    assert numbers.epsilon(found["epsilon"]) in page.read_text()
    assert told("account", kept)["selection"]["epsilon"] == found["epsilon"]
    (kept / "selection.json").unlink(missing_ok=True)
    alone = tmp_path / "another"
    kept.rename(alone)
    bare = told("dossier", alone, "--out", page)
    assert bare["selection"] is None
    assert max(role["best_success"] for role in bare["roles"].values()) < max(
        role["best_success"] for role in dossier["roles"].values())


def test_what_would_break_the_guarantee_is_refused_in_one_line(chosen, tmp_path):
    experiment, out, _ = chosen
    private = ("--select", "private", "--out", tmp_path / "s")
    assert "scored on private held-out text" in problem("sweep", experiment, *OVER, *private)
    assert "seeded noise" in problem("sweep", experiment, *OVER, *PUBLIC, *OFF, *private)
    assert "seeded noise" in problem("sweep", experiment, *OVER, *PUBLIC, "--set",
        "privacy.noise_seed=1", *private)
    assert "several seeds" in problem("sweep", experiment, *OVER, *PUBLIC, "--seeds", "0,1",
        *private)
    assert "runs on average" in problem("sweep", experiment, *OVER, *PUBLIC, "--average-runs", "1",
        *private)
    assert "the arms differ" in problem("sweep", experiment, "--over", "privacy.delta=1e-2,1e-3",
        *PUBLIC, *private)
    assert "would cost as much again" in problem("sweep", experiment, *OVER, *PUBLIC, "--select",
        "private", "--out", out)
    assert "without public texts" in problem("run", experiment, "--set", 'evaluate.on="public"',
        "--out", tmp_path / "r")
