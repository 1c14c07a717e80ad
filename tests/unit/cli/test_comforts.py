"""What makes the terminal easy: completion, the one nearest name, next steps, the log, --open, --verbose."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from tests import tiny_run
from tests.fixture_run import write_run
from typer.testing import CliRunner

from aulait.cli import app
from aulait.cli.next_steps import next_steps
from aulait.engines.inline import InlineEngine
from aulait.methods import METHODS, ffa
from aulait.runs import loop
from aulait.runs.experiment_file import dump_settings
from aulait.runs.prepared import SharedCache

CACHE = SharedCache()


def test_a_shell_completes_commands_and_their_options(tmp_path: Path) -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
    program = tmp_path / "aulait"
    program.write_text(f"#!{sys.executable}\nfrom aulait.cli import main\nmain()\n")
    program.chmod(0o755)
    for line, offered in (("aulait pl", "plan"), ("aulait init --st", "--strong")):
        done = subprocess.run([str(program)], capture_output=True, text=True, env={
            **os.environ, "_AULAIT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}, check=False)
        assert offered in done.stdout.split(), done.stderr


def test_one_nearest_command_is_told_once() -> None:
    told = CliRunner().invoke(app, ["runn"]).stderr
    assert told.count("Did you mean") == 1
    assert told.count("'run'") == 1
    assert "'runs'" not in told


@pytest.mark.parametrize(("elsewhere", "here"), [("fedavgm", "algorithm.server = 'momentum'"), ("LA-LoRA", "'lalora'"),
                                                 ("fedadam", "algorithm.server = 'adam'")])
def test_names_of_elsewhere_lead_to_settings_that_exist(elsewhere: str, here: str) -> None:
    assert here in METHODS.unknown(elsewhere)
    named = here.partition("'")[2].partition("'")[0]
    if "server" in here:
        assert METHODS.find("fedavg").Config(server=named).server == named
    else:
        assert named in METHODS.names()


def test_next_steps_follow_from_what_was_learnt(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    result = json.loads((path / "result.json").read_text())
    (first, _), *rest = next_steps(result, path)
    begun = json.loads((path / "synthetic.jsonl").read_text().splitlines()[0])["text"].split()[:3]
    assert first == f"aulait generate {path} '{' '.join(begun)}'"
    assert [command.split()[1] for command, _ in rest] == ["export", "dossier"]
    (path / "synthetic.jsonl").unlink()
    assert next_steps(result, path)[0][0].endswith(" The")
    config = path / "config.toml"
    config.write_text(config.read_text().replace("[data]", '[data]\nformat = "pairs"'))
    (path / "personal" / "ward-1").mkdir(parents=True)
    (path / "personal" / "ward-1" / "adapter_config.json").write_text("{}")
    result["privacy"]["off"] = True
    assert [command for command, _ in next_steps(result, path)] == [
        f"aulait generate {path} --chat", f"aulait generate {path} --client ward-1 --chat", f"aulait export {path} --to exported"]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    tiny_run.write_data(tmp_path)
    path = tmp_path / "tiny.toml"
    alone = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "synthesis": {"proxies": "absent"}}
    path.write_text(dump_settings(tiny_run.settings(tmp_path, train={"rounds": 1, "steps": 1}, **alone)))
    return path


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_log_and_opens_its_page(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    result = CliRunner().invoke(app, ["run", str(experiment), "--out", str(tmp_path / "run"), "--open"])
    assert result.exit_code == 0, result.stderr
    assert opened == [(tmp_path / "run" / "report.html").as_uri()]
    found = events(tmp_path / "run")
    assert found[0]["event"] == "begun"
    assert found[-1]["event"] == "finished"
    assert {"train", "finish"} <= {event.get("stage") for event in found}
    assert (tmp_path / "run" / "log.jsonl").stat().st_mode & 0o777 == 0o600
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--open"]).exit_code == 0
    assert len(opened) == 2


def test_a_log_says_where_it_failed_and_what_libraries_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        logging.getLogger("some.package").warning("it creaks")
        raise RuntimeError("it broke")

    tiny_run.write_data(tmp_path)
    alone = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "synthesis": {"proxies": "absent"}}
    settings = tiny_run.settings(tmp_path, train={"rounds": 1, "steps": 1}, **alone)
    with monkeypatch.context() as patched:
        patched.setattr(ffa, "step", fails)
        with pytest.raises(RuntimeError):
            loop.run(settings, tmp_path / "run", InlineEngine(), cache=tiny_run.fresh(CACHE))
    found = events(tmp_path / "run")
    assert found[-1]["event"] == "failed"
    assert found[-1]["reason"] == "RuntimeError: it broke"
    assert any("in fails" in line for line in found[-1]["where"])
    assert {"event": "library", "name": "some.package", "message": "it creaks"}.items() <= found[-2].items()
    loop.run(settings, tmp_path / "run", InlineEngine(), cache=tiny_run.fresh(CACHE), resume=True)
    assert [event["event"] for event in events(tmp_path / "run")].count("resumed") == 1
    logging.getLogger("some.package").warning("after the run")
    assert events(tmp_path / "run")[-1]["event"] == "finished"


def test_under_privacy_a_log_repeats_no_words_that_may_be_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(["secret", "words"])

    def fails(*_: object) -> None:
        logging.getLogger("some.package").warning(words)
        raise RuntimeError(words)

    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(
        tmp_path, train={"rounds": 1, "steps": 1}, federation={"tier": [{"name": "all", "placement": "local"}]},
        synthesis={"proxies": "absent"}, privacy={"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 0.1})
    monkeypatch.setattr(ffa, "step", fails)
    with pytest.raises(RuntimeError):
        loop.run(settings, tmp_path / "run", InlineEngine(), cache=tiny_run.fresh(CACHE))
    found = events(tmp_path / "run")
    assert found[-1]["reason"] == "RuntimeError"
    assert {event["note"] for event in found if event["event"] == "progress"} == {""}
    assert words not in (tmp_path / "run" / "log.jsonl").read_text()


def test_verbose_shows_where_an_error_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AULAIT_TRACEBACK", "0")
    quiet = CliRunner().invoke(app, ["run", str(tmp_path / "none.toml")])
    assert quiet.exit_code == 2
    loud = CliRunner().invoke(app, ["run", str(tmp_path / "none.toml"), "--verbose"])
    assert type(loud.exception).__name__ == "ConfigError"
