"""``aulait dossier``: before a run it tells what the plan says, after it what the ledger says, and
nothing of a broken folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.tiny_run import settings, write_data
from tests.unit.cli.test_commands import call, problem, told

from aulait.privacy.accounting import epsilon
from aulait.runs.experiment_file import dump_settings

PRIVACY = {"epsilon": 8.0, "delta": 1e-2, "relation": "add-remove", "clip": 0.1}
PURPOSE = "Drafts of commit messages for the maintainers."


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """A federation of three that train and five that vote."""
    folder = tmp_path_factory.mktemp("dossier")
    write_data(folder)
    made = settings(folder, run={"purpose": PURPOSE}, privacy=PRIVACY)
    (folder / "tiny.toml").write_text(dump_settings(made))
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def finished(experiment) -> Path:
    run = experiment.parent / "run"
    assert call("run", experiment, "--out", run).exit_code == 0
    return run


def test_before_a_run_the_figures_are_those_of_the_plan(experiment, tmp_path):
    found = told("dossier", experiment, "--out", tmp_path / "page.html")
    planned = told("plan", experiment)
    assert found["dossier"] == str(tmp_path / "page.html")
    assert found["from"] == "plan"
    assert found["purpose"] == PURPOSE
    assert {role: row["epsilon"] for role, row in found["roles"].items()} == planned["privacy"][
        "epsilon"]
    releases = {"synthesis": "proxy", "train": "local"}
    for row in planned["releases"]:
        assert found["roles"][releases[row["stage"]]]["releases"] == row["releases"]
    by_tier = {(row["who"], row["what"]): row for row in found["sent"]}
    gpu, laptop = planned["tiers"]
    assert by_tier["gpu", "updates"]["up_round"] == gpu["train_up_bytes_round"]
    assert by_tier["gpu", "updates"]["up_all"] == gpu["up_bytes_run"]
    # J = 8 candidates
    assert by_tier["laptop", "votes"]["up_round"] == laptop["vote_up_bytes_round"] == 4 * 8
    assert by_tier["laptop", "votes"]["up_all"] == laptop["up_bytes_run"]
    assert "Before the run, from its privacy plan" in (tmp_path / "page.html").read_text()


def test_after_a_run_the_figures_are_those_of_the_ledger_and_kept_the_plan(experiment, finished,
        tmp_path):
    before = told("dossier", experiment, "--out", tmp_path / "page.html")
    after = told("dossier", finished)
    assert after["from"] == "ledger"
    assert after["dossier"] == str(finished / "dossier.html")
    counted = {row["role"]: row["ledger_epsilon"] for row in told("account", finished)["roles"]}
    for role, row in after["roles"].items():
        assert row["epsilon"] == pytest.approx(counted[role])
        planned = before["roles"][role]
        assert row["epsilon"] == pytest.approx(planned["epsilon"])
        assert (row["releases"], row["clients"]) == (planned["releases"], planned["clients"])
        assert row["best_success"] == pytest.approx(planned["best_success"])
        assert 0.5 < row["best_success"] < 1
    assert before["hashes"]["base model (fingerprint)"] == after["hashes"][
        "base model (fingerprint)"]
    assert before["hashes"]["config.toml that the run will write (SHA-256)"] == after["hashes"][
        "config.toml (SHA-256)"]
    head = json.loads((finished / "ledger.head").read_text())
    assert after["hashes"]["head of the ledger (SHA-256)"] == head["hash"]
    sent = {row["what"]: row["up_all"] for row in after["sent"]}
    assert sent["updates"] == next(row["up_all"] for row in before["sent"]
        if row["what"] == "updates")


def test_a_settings_override_is_planned_and_without_an_out_the_page_lies_here(experiment, tmp_path,
        monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = told("dossier", experiment, "--set", "privacy={off=true}", "--set", "run.purpose=")
    assert found["purpose"] is None
    assert found["not_private"]
    assert Path("tiny-dossier.html").is_file()


def test_the_sites_of_a_deployment_are_named(tmp_path, experiment):
    words = ("dossier", experiment, "--out", tmp_path / "page.html", "--set", "engine.name=flower")
    assert "--site NAME=RECORDS" in problem(*words)
    sites = [word for k in range(6) for word in ("--site", f"ward-{k}=40")]
    found = told(*words, *sites)
    assert sum(row["clients"] for row in found["roles"].values()) == 6
    assert "held-out scores" not in found["risks"]
    assert "order key" in (tmp_path / "page.html").read_text()
    assert "expected a name and a number of records" in problem(*words, "--site", "ward")


def test_a_broken_folder_is_one_line_and_no_page(finished, tmp_path):
    assert "found neither a folder nor a file" in problem("dossier", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "found no result.json" in problem("dossier", tmp_path / "empty")
    assert "a run knows its settings" in problem("dossier", finished, "--set", "run.seed=3")
    for name in ("edited", "cut", "malformed"):
        shutil.copytree(finished, tmp_path / name)
    lines = (finished / "ledger.jsonl").read_text().splitlines(keepends=True)
    result = json.loads((finished / "result.json").read_text())
    result["privacy"]["epsilon"]["local"] = 1.0
    (tmp_path / "edited" / "result.json").write_text(json.dumps(result))
    (tmp_path / "cut" / "ledger.jsonl").write_text("".join(lines[:-1]))
    (tmp_path / "malformed" / "ledger.jsonl").write_text("{}\n")
    for name in ("edited", "cut", "malformed"):
        (tmp_path / name / "dossier.html").unlink(missing_ok=True)
        assert problem("dossier", tmp_path / name).count("\n") == 0
        assert not (tmp_path / name / "dossier.html").exists()


def test_the_planned_lines_are_charged_as_the_plan_says(experiment):
    from aulait.runs.experiment_file import read_settings
    from aulait.runs.planned_run import planned_run
    from aulait.runs.prepared import SharedCache
    from aulait.runs.setup import prepare

    run = prepare(read_settings(experiment), SharedCache())
    lines = planned_run(run, experiment).run.ledger
    for release in run.privacy.releases:
        own = [line for line in lines if line.stage == release.stage]
        assert [line.round for line in own] == list(range(1, release.rounds + 1))
        assert own[-1].epsilon.value(release.role) == epsilon(release.events, 1e-2)
        assert {line.noise_multiplier for line in own} == {release.noise_multiplier}


def test_records_in_both_stages_are_told_by_the_worst_role(experiment, tmp_path):
    """Votes are not sampled and steps are: the page tells one success, that of the worse of the
    two."""
    changes = {"privacy.unit": "record", "privacy.relation": "zero-out", "algorithm.name": "fedit",
               "data.records_per_client": 30, "privacy.max_rate": 0.5}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    found = told("dossier", experiment, "--out", tmp_path / "page.html", *words)
    best = [found["roles"][role]["best_success"] for role in ("proxy", "local")]
    assert best[0] != best[1]
    text = (tmp_path / "page.html").read_text().replace("\u00a0", " ")
    assert f"right in at most {100 * max(best):.1f} % of cases" in text
    assert "Gaussian noise on each site&#39;s sum of clipped votes, at the site" in text
    assert "(DP-SGD)" in text
    assert "with its own noise" in text
