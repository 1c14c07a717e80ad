"""``aulait serve`` into a folder that holds a run: nothing is started and nothing overwritten before it is known what is there."""

from __future__ import annotations

import json

import pytest
import tomli_w
from tests.fixture_run import write_run
from typer.testing import CliRunner

from aulait import cli
from aulait.core.errors import AulaitError
from aulait.core.process_lock import only_process_of
from aulait.engines.deployment.pki import keys
from aulait.engines.flower import serving
from aulait.runs import experiment_file

TREE = {"run": {"name": "ward"}, "federation": {"tier": [{"name": "ward", "placement": "local"}]}, "privacy": {"off": True},
        "engine": {"name": "flower"}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of one enrolled site; a SuperLink cannot be started."""
    monkeypatch.setattr(serving, "start_link", lambda *_: (_ for _ in ()).throw(AulaitError("it was started")))
    keys.server(tmp_path / "keys", ["localhost"])
    keys.site(tmp_path / "ward", "ward")
    keys.enrol(tmp_path / "keys", "ward", tmp_path / "ward" / "site-key.pub")
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(tomli_w.dumps(TREE))
    path = write_run(tmp_path / "run")
    (path / "serve").mkdir()
    (path / "serve" / "experiment.toml").write_text(experiment_file.dump_settings(experiment_file.read_settings(experiment)))
    (path / "serve" / "outcome.json").write_text('{"ok": true}')
    (path / "serve" / "superlink.db").write_text("messages")
    (path / "report.html").write_text("kept")
    return path


def serve(run, *words):
    return CliRunner().invoke(cli.app, ["serve", str(run.parent / "experiment.toml"), "--keys", str(run.parent / "keys"), "--out", str(run), *words])


def held(run):
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and not path.name.startswith("superlink.db")}


def test_without_resume_it_is_refused_and_stays_as_it_was(run):
    before = held(run)
    answer = serve(run)
    assert answer.exit_code == 2
    assert answer.stderr == f"error: run folder {run} already holds a run; add --resume to go on with it, or choose another --out\n"
    assert held(run) == before


def test_a_finished_run_is_shown_and_nothing_is_done(run):
    before = held(run)
    answer = serve(run, "--resume", "--json", "--metrics", "1")
    assert answer.exit_code == 0, answer.stderr
    assert answer.stderr == f"the run in {run} is finished; nothing is left to do\n"
    assert json.loads(answer.stdout)["name"] == json.loads((run / "result.json").read_text())["name"]
    assert held(run) == before
    assert not (run / "serve" / "superlink.db").exists()


@pytest.mark.parametrize("told", ["", '{"ok": false, "error": "no space left"}'])
def test_what_the_end_of_a_killed_server_lacked_is_written(run, told):
    (run / "report.html").unlink()
    (run / "serve" / "outcome.json").write_text(told)
    assert serve(run, "--resume", "--json").exit_code == 0
    assert (run / "report.html").is_file()
    assert json.loads((run / "serve" / "outcome.json").read_text())["ok"] is True


def test_other_settings_are_refused_before_anything_starts(run):
    before = held(run)
    answer = serve(run, "--resume", "--set", "run.seed=5")
    assert answer.exit_code == 2
    assert "was started with other settings (serve/experiment.toml); resume with the same file, or choose another --out" in answer.stderr
    assert held(run) == before


def test_what_is_not_finished_goes_on_and_a_server_at_work_is_told(run):
    with only_process_of(run / "serve"):
        assert "it was started" in serve(run, "--resume").stderr
    (run / "result.json").unlink()
    assert "it was started" in serve(run, "--resume").stderr
