"""The operator's view: the journal, the status of a run or a site, the metrics."""

from __future__ import annotations

import errno
import fcntl
import http.client
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w
from tests.fixture_run import write_run
from typer.testing import CliRunner

import aulait.engines.deployment.site
import aulait.engines.deployment.site.account_summary  # first, as its own imports would undo what a test replaces
from aulait import cli
from aulait.core import log_files
from aulait.core.errors import AulaitError, ConfigError, DataError, DeviceError
from aulait.core.process_lock import lock_is_held, only_process_of
from aulait.engines.deployment.coordinator import prometheus_export, status
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.site.site_policy import SitePolicy

CONFIG = '[run]\nname = "ward"\n[synthesis]\nrounds = 3\n[train]\nrounds = 10\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\noff = false\n[engine]\nname = "flower"\n'
ROUNDS = [
    {"stage": "synthesis", "round": 3, "up_bytes": 100, "down_bytes": 50, "refused": 1, "epsilon": {"proxy": 1.5}},
    {"stage": "train", "round": 1, "up_bytes": 1000, "down_bytes": 500, "refused": 0, "epsilon": {"proxy": 1.5, "local": 2.0}, "eval": {"loss": 3.5}},
    {"stage": "train", "round": 2, "up_bytes": 1000, "down_bytes": 500, "refused": 2, "epsilon": {"proxy": 1.5, "local": 3.0}}]
HOSTILE = 'a"b\\c\nd\x1b[31m\u202e'


@pytest.fixture
def run(tmp_path):
    """A deployed run in its second round of training."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.toml").write_text(CONFIG)
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ROUNDS))
    (path / "ledger.jsonl").write_text(json.dumps({"release": 9, "epsilon": {"local": 3.25}}) + "\n")
    told = EventLog(path)
    told.site("ward-a", role="local", tier="gpu", state="answered", last_seen=log_files.timestamp(), round=2, detail="")
    told.site("ward-b", role="proxy", tier="laptop", state="silent", last_seen=time.time() - 90, round=1, detail=HOSTILE)
    told.progress("train", 2, 10, "loss 3.500")
    for number in range(7):
        told.warning("late", site="ward-b", number=number)
    told.event("answered", site="ward-a")
    told.flush()
    return path


class Holding:
    """Holds RUN/serve/lock in another process, as a server does."""

    def __init__(self, run):
        code = ("import fcntl, os, sys, time; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)\n"
                "fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('held', flush=True); time.sleep(60)")
        self.process = subprocess.Popen([sys.executable, "-c", code, str(run / "serve" / "lock")], stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"held\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def call(*words):
    return CliRunner().invoke(cli.app, ["status", *map(str, words)])


# journal


def test_a_line_cannot_be_forged_nor_grow_nor_steer_a_terminal():
    text = log_files.event_line("refused", time="x", event="y", detail=HOSTILE, long="z" * 10_000, odd=float("inf"), path=Path("/a"), some={1: [1.5]})
    assert text.isascii()
    assert "\n" not in text
    assert "\x1b" not in text
    found = json.loads(text)
    assert [*found][:2] == ["time", "event"]
    assert found["event"] == "refused"
    assert found["time"].endswith("+00:00")
    assert "." in found["time"]
    assert (found["detail"], len(found["long"]), found["odd"], found["path"], found["some"]) == (HOSTILE, 2000, None, "/a", {"1": [1.5]})


def test_a_changed_state_is_written_at_once_and_the_rest_within_half_a_second(run):
    told = EventLog(run)
    def written(name, key):
        return json.loads((run / "serve" / "sites.json").read_text()).get(name, {}).get(key)
    told.site("ward-a", state="asked", round=3)
    assert (written("ward-a", "state"), written("ward-b", "state")) == ("asked", "unknown")
    told.site("ward-a", state="asked", round=4)
    assert written("ward-a", "round") == 3
    time.sleep(0.7)  # nobody tells it anything more
    assert written("ward-a", "round") == 4
    told.site("ward-a", round=5)
    told.outcome(True)
    assert written("ward-a", "round") == 5


def test_many_changed_states_are_few_writes(run, monkeypatch):
    told, written = EventLog(run), []
    monkeypatch.setattr(told, "_json", lambda name, value: written.append(name))
    for number in range(500):
        told.site(f"ward-{number}", state="asked")
    assert len(written) < 10
    told.outcome(True)
    assert written[-2:] == ["sites.json", "outcome.json"]


def test_the_outcome_is_taken_away_and_told_again(run):
    told = EventLog(run)
    told.outcome(False, error="no space", kind="AulaitError")
    held = json.loads((run / "serve" / "outcome.json").read_text())
    assert (held["ok"], held["error"], held["kind"]) == (False, "no space", "AulaitError")
    told.begin()
    told.begin()
    assert not (run / "serve" / "outcome.json").exists()


def test_many_threads_tear_no_line(run):
    told = EventLog(run)
    threads = [threading.Thread(target=lambda: [told.event("answered", text="x" * 500) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (run / "serve" / "log.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 8 + 200


def test_a_full_disk_is_one_line(run, monkeypatch):
    told = EventLog(run)
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: told.progress("train", 1, 2, ""), lambda: told.site("ward-a", state="silent"), lambda: told.outcome(True)):
        with pytest.raises(AulaitError, match=r"^no space left in the run folder .*serve; free some space and go on with --resume$"):
            write()


def test_the_folder_is_the_operators_alone(tmp_path):
    EventLog(tmp_path / "run")
    assert (tmp_path / "run" / "serve").stat().st_mode & 0o777 == 0o700


def test_a_long_log_is_set_aside(run, monkeypatch):
    monkeypatch.setattr(log_files, "LARGEST_LOG_BYTES", 10)
    EventLog(run).event("begun")
    assert len((run / "serve" / "log.jsonl").read_text().splitlines()) == 1
    assert len((run / "serve" / "log.1.jsonl").read_text().splitlines()) == 8


def test_a_state_is_one_that_the_event_log_names():
    source = "".join(path.read_text() for path in Path(aulait.engines.__file__).parent.rglob("*.py"))
    written = set(re.findall(r'event_log\.site\([^)]*state="(\w+)"', source))
    assert written == {"there", "asked", "answered", "silent", "refused"}
    assert all(f'"{state}"' in EventLog.site.__doc__ for state in written)
    assert set(prometheus_export.DOWN) < written | {"unknown"}


# status of a run


def test_a_run_with_a_server(run):
    with Holding(run):
        found = status.read_status(run)
    assert (found["name"], found["engine"], found["state"]) == ("ward", "flower", "running")
    assert (found["stage"], found["round"], found["rounds"]) == ("train", 2, 10)
    assert 0 <= found["progress_s"] < 60
    assert found["epsilon"] == {"local": 3.25, "proxy": 1.5}  # the ledger is ahead of the rounds
    assert (found["budget"], found["delta"], found["private"], found["loss"]) == (8.0, 1e-5, True, 3.5)
    assert (found["up_bytes"], found["down_bytes"], found["refused"]) == (2100, 1050, 3)
    first, second = found["sites"]
    assert (first["name"], first["role"], first["tier"], first["state"], first["round"]) == ("ward-a", "local", "gpu", "answered", 2)
    assert first["last_seen_s"] < 60
    assert 89 < second["last_seen_s"] < 150
    assert second["detail"] == 'a"b\\c?d?[31m?'
    assert [event["text"] for event in found["warnings"]] == [f"site ward-b, number {n}" for n in range(2, 7)]


def test_a_server_that_died_says_how_to_go_on(run):
    with Holding(run):
        assert lock_is_held(run / "serve" / "lock")
        assert call(run).exit_code == 0
    assert not lock_is_held(run / "serve" / "lock")
    answer = call(run)
    assert answer.exit_code == 1
    assert "no process holds the run" in answer.stdout
    assert f"aulait serve FILE --keys DIR --out {run} --resume" in answer.stdout


def test_looking_does_not_keep_a_server_out(run):
    with Holding(run):
        pass
    for _ in range(20):
        assert not lock_is_held(run / "serve" / "lock")
        mine = os.open(run / "serve" / "lock", os.O_RDWR)
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert lock_is_held(run / "serve" / "lock")
        os.close(mine)


def test_outcomes(run):
    told = EventLog(run)
    told.outcome(False, error="the ledger cannot be written", kind="PrivacyError")
    answer = call(run)
    assert (status.read_status(run)["state"], answer.exit_code) == ("failed", 1)
    assert "the ledger cannot be written" in answer.stdout
    told.outcome(True)
    (run / "result.json").write_text('{"name": "ward"}')
    assert (status.read_status(run)["state"], call(run).exit_code) == ("finished", 0)


def test_a_server_that_has_just_begun(tmp_path):
    EventLog(tmp_path / "run")
    with Holding(tmp_path / "run"):
        found = status.read_status(tmp_path / "run")
    assert (found["state"], found["stage"], found["epsilon"], found["sites"]) == ("running", None, {}, [])
    assert "none yet" in call(tmp_path / "run").stdout


def test_an_inline_run(tmp_path):
    path = write_run(tmp_path / "inline")
    found = status.read_status(path)
    assert (found["engine"], found["state"], found["stage"], found["round"], found["rounds"]) == ("inline", "finished", "train", 10, 10)
    assert set(found["epsilon"]) >= {"proxy", "local"}
    (path / "result.json").unlink()
    assert status.read_status(path)["state"] == "unknown"  # of a time when nothing was locked
    assert call(path).exit_code == 0
    with only_process_of(path):
        assert status.read_status(path)["state"] == "running"
        assert "a process holds the run" in call(path).stdout
        with pytest.raises(ConfigError, match="another process at work"), only_process_of(path):
            pass
    answer = call(path)
    assert (status.read_status(path)["state"], answer.exit_code) == ("dead", 1)
    assert f"aulait run {path}/config.toml --out {path} --resume" in answer.stdout


def test_rounds_of_synthesis_are_those_of_the_settings(tmp_path):
    path = write_run(tmp_path / "run")
    lines = [line for line in (path / "rounds.jsonl").read_text().splitlines() if '"synthesis"' in line]
    (path / "rounds.jsonl").write_text(lines[0] + "\n")
    config = tomllib.loads((path / "config.toml").read_text())
    for tables, wanted in (({"rounds": 3}, 3), ({"source": "retrieve", "rounds": 3, "retrieve": {"levels": 2}}, 2), ({"rounds": "many"}, None)):
        (path / "config.toml").write_text(tomli_w.dumps({**config, "synthesis": tables}))
        assert status.read_status(path)["rounds"] == wanted
    turns = {**config, "synthesis": {"source": "both", "rounds": 3, "retrieve": {"levels": 2}},
             "run": {**config["run"], "stages": ["synthesis", "training", "synthesis", "training"]}}
    (path / "config.toml").write_text(tomli_w.dumps(turns))
    assert status.read_status(path)["rounds"] == 2 + 3 + 3


def test_infinite_epsilon_stays_infinite(run):
    with (run / "rounds.jsonl").open("a") as file:
        file.write('{"stage": "train", "round": 3, "epsilon": {"local": null}}\n{"stage": "tr')
    assert status.read_status(run)["epsilon"] == {"local": None, "proxy": 1.5}
    assert "infinite" in call(run).stdout


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', '{"ward-a": 3}', '{"a": {"round": "x", "last_seen": "y", "state": 3}}', '{"a":' * 5000])
def test_spoilt_files_stop_nothing(run, text):
    for name in ("sites.json", "progress.json", "outcome.json", "log.jsonl"):
        (run / "serve" / name).write_text(text)
    status.read_status(run)
    assert call(run).exit_code == 1
    assert "aulait_site_up" in prometheus_export.metrics_text(run)
    EventLog(run)


def test_no_run(tmp_path):
    with pytest.raises(DataError):
        status.read_status(tmp_path)
    answer = call(tmp_path / "nothing")
    assert answer.exit_code == 2


def test_json_and_watch(run):
    found = json.loads(call(run, "--json").stdout)
    assert (found["kind"], found["state"], found["rounds"]) == ("run", "dead", 10)
    lines = call(run, "--json", "--watch", "1").stdout.splitlines()
    assert len(lines) == 1  # over: nothing to wait for
    assert json.loads(lines[0])["kind"] == "run"


def test_the_table_shows_no_control_characters(run):
    shown = call(run).stdout
    assert "ward-b" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_help_loads_nothing_heavy():
    """The status itself reads a run folder by the types of its files, so it loads pydantic."""
    code = ("import sys\nfrom aulait import cli\nassert 'pydantic' not in sys.modules\n"
            "from aulait.cli import status\nfrom aulait.engines.deployment.coordinator import event_log\n"
            "heavy = {'torch', 'flwr', 'prometheus_client', 'plotly', 'jinja2'} & set(sys.modules)\nassert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# status of a site


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site file whose worker answers with what the returned function is given."""
    path = tmp_path / "site.toml"
    path.write_text("")
    found = SimpleNamespace(site=SimpleNamespace(name="ward-a", state=tmp_path),
                            data=SimpleNamespace(source="rows.jsonl"), limits=SitePolicy(), peers={})
    read = SimpleNamespace(read=lambda path: found)
    monkeypatch.setattr(aulait.engines.deployment.site, "site_file", read, raising=False)

    def answering(answer):
        def health(_socket):
            if isinstance(answer, Exception):
                raise answer
            return answer
        monkeypatch.setattr(aulait.engines.deployment.site, "worker", SimpleNamespace(health=health, socket_path=lambda site: path), raising=False)
        return path
    return answering


def test_a_site_at_work(site):
    path = site({"name": "ward-a", "pid": 7, "state": "working", "run": "ab" * 16, "memory_bytes": 2**20, "last_error": HOSTILE})
    answer = call(path)
    assert answer.exit_code == 0
    assert "ward-a: working" in answer.stdout
    assert "1.05" in answer.stdout
    assert "\x1b" not in answer.stdout
    assert json.loads(call(path, "--json").stdout)["pid"] == 7


@pytest.mark.parametrize(("error", "told"), [
    (FileNotFoundError(2, "No such file"), "ward-a is not running; start: aulait join"),
    (ConnectionRefusedError(111, "refused"), "ward-a is not running; start: aulait join"),
    (DeviceError("the worker gave no answer within 5 s"), "ward-a is not running (the worker gave no answer within 5 s); start")])
def test_a_site_that_does_not_answer(site, error, told):
    path = site(error)
    answer = call(path)
    assert answer.exit_code == 1
    assert told in answer.stdout.splitlines()[0]
    assert "rows.jsonl" in answer.stdout  # its accounts are told in any case
    assert json.loads(call(path, "--json").stdout)["state"] == "not running"


def test_a_site_nobody_started(tmp_path, monkeypatch):
    """With the real worker's socket: there is none; then one that nobody listens on."""
    from aulait.engines.deployment.site import worker

    path = tmp_path / "site.toml"
    path.write_text("")
    found = SimpleNamespace(site=SimpleNamespace(name="ward-a", state=tmp_path),
                            data=SimpleNamespace(source="rows.jsonl"), limits=SitePolicy(), peers={})
    monkeypatch.setattr(aulait.engines.deployment.site, "site_file", SimpleNamespace(read=lambda path: found), raising=False)
    assert call(path).stdout.startswith(f"ward-a is not running; start: aulait join {path}\n")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(worker.socket_path(found)))
    assert call(path).stdout.startswith(f"ward-a is not running; start: aulait join {path}\n")


# metrics


def parsed(text):
    """(name, labels) -> value, by the library's own reader."""
    from prometheus_client.parser import text_string_to_metric_families

    return {(sample.name, *sorted(sample.labels.items())): sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_metrics_of_a_run(run):
    with Holding(run):
        text = prometheus_export.metrics_text(run)
    found = parsed(text)
    assert found[("aulait_up",)] == 1
    assert (found[("aulait_round",)], found[("aulait_rounds",)], found[("aulait_loss",)]) == (2, 10, 3.5)
    assert found["aulait_stage", ("stage", "train")] == 1
    assert found["aulait_stage", ("stage", "synthesis")] == 0
    assert found["aulait_epsilon", ("role", "local")] == 3.25
    assert found["aulait_site_up", ("role", "local"), ("site", "ward-a")] == 1
    assert found["aulait_site_up", ("role", "proxy"), ("site", "ward-b")] == 0
    assert 89 < found["aulait_site_last_seen_seconds", ("site", "ward-b")] < 150
    assert (found[("aulait_up_bytes_total",)], found[("aulait_down_bytes_total",)], found[("aulait_refused_total",)]) == (2100, 1050, 3)
    for name in ("aulait_round", "aulait_epsilon", "aulait_site_up"):
        assert f"# HELP {name} " in text
        assert f"# TYPE {name} gauge" in text
    assert "# TYPE aulait_up_bytes_total counter" in text


def test_metrics_escape_what_they_are_told(run):
    EventLog(run).site('x"} 1\naulait_epsilon{role="a', role='b"c\\d', state="there")
    found = parsed(prometheus_export.metrics_text(run))
    assert ("aulait_site_up", ("role", 'b"c\\d'), ("site", 'x"} 1?aulait_epsilon{role="a')) in found
    assert ("aulait_epsilon", ("role", "a")) not in found


def test_metrics_without_privacy_are_infinite_and_a_dead_server_takes_its_sites_down(run):
    (run / "ledger.jsonl").write_text('{"epsilon": {"local": null}}\n')
    found = parsed(prometheus_export.metrics_text(run))
    assert found["aulait_epsilon", ("role", "local")] == math.inf
    assert found[("aulait_up",)] == found["aulait_site_up", ("role", "local"), ("site", "ward-a")] == 0
    assert found["aulait_outcome", ("state", "dead")] == 1


def ask(address, path="/metrics", method="GET", **headers):
    connection = http.client.HTTPConnection(*address, timeout=5)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_the_server_answers_one_question(run):
    server = prometheus_export.MetricsServer(run, 0)
    try:
        answer, body = ask(server.address)
        assert answer.status == 200
        assert answer.getheader("Content-Type").startswith("text/plain; version=0.0.4")
        assert "Python" not in answer.getheader("Server")
        assert parsed(body)[("aulait_round",)] == 2
        for path in ("/", "/metrics/../config.toml", "/config.toml"):
            assert ask(server.address, path)[0].status == 404
        for method in ("POST", "PUT", "DELETE"):
            assert ask(server.address, method=method)[0].status == 501
        assert ask(server.address, Host="elsewhere.example:9464")[0].status == 403
        assert ask(server.address, Host="localhost:9464")[0].status == 200
        with pytest.raises(ConfigError, match=r"^metrics port .* is taken, expected a free one; choose another --metrics$"):
            prometheus_export.MetricsServer(run, server.address[1])
    finally:
        server.close()
    with pytest.raises(OSError):
        ask(server.address)


def test_the_server_waits_for_a_run(tmp_path):
    server = prometheus_export.MetricsServer(tmp_path / "later", 0)
    try:
        assert ask(server.address)[0].status == 503
        EventLog(tmp_path / "later")
        assert ask(server.address)[0].status == 200
    finally:
        server.close()
