"""The benchmark of a deployment: its arithmetic, its table, and once the whole of it with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")
from typer.testing import CliRunner

from aulait import cli
from aulait.core.errors import AulaitError, ConfigError
from aulait_benchmarks import deploy, deploy_baseline

MESSAGE = """
import sys
from aulait.engines.flower.hardening import clientapp
clientapp.clients = lambda adjust: None
real = clientapp.part
clientapp.part = lambda module, name: (lambda: None) if name == "flwr_clientapp" else real(module, name)
clientapp.clientapp("aulait.engines.flower.client_app:app")
import aulait.engines.flower.client_app
import flwr.supernode.cli.flwr_clientapp
print(*sorted({"torch", "transformers", "sqlalchemy", "alembic", "uvicorn", "aulait.engines.deployment.protocol.tensor_codec", "aulait.engines.deployment.site.handler"} & set(sys.modules)))
"""


def letter(sent, heard, node=7):
    return {"node": node, "sent": sent, "heard": heard}


def told(letters, **more):
    return {"began": letters[0]["sent"], "ended": max(each["heard"] for each in letters), "letters": letters, "sent_bytes": 100, "received_bytes": 80} | more


def rounds():
    ours = {"aulait": [told([letter(0.0, 5.0)]), told([letter(20.0, 24.0)])], "bare": [told([letter(10.0, 14.0, 9)]), told([letter(30.0, 34.0, 9)])], "first": []}
    return {"small": ours, "large": {**ours, "first": []}}


SEEN = {"7": ("ward-a", [1.0, 22.0]), "9": ("bare ward-a", [12.0, 32.0])}
WORKS = {"ward-a": [(1.5, 2.5), (22.5, 23.0)]}


def test_seconds_are_cut_where_the_node_asks_and_the_sites_work_is_taken_off():
    assert deploy._part(letter(0.0, 5.0), SEEN, WORKS) == (1.0, 4.0, 1.0)
    assert deploy._part(letter(10.0, 14.0, 9), SEEN, WORKS) == (2.0, 2.0, 0)
    found = deploy._document(rounds(), SEEN, WORKS, deploy.Sizes(sites=1))
    small = found["small"]
    assert (small["aulait_s"], small["bare_s"]) == (4.5, 4.0)
    assert (small["after_poll_s"], small["bare_after_poll_s"], small["work_s"]) == (3.0, 2.0, 0.75)
    assert small["overhead_s"] == pytest.approx(((3.0 - 2.0) + (1.5 - 2.0)) / 2), "turn by turn"
    with pytest.raises(AulaitError, match="does not tell"):
        deploy._part(letter(50.0, 51.0), SEEN, WORKS)


def test_works_are_read_from_the_sites_own_log(tmp_path, monkeypatch):
    (tmp_path / "state").mkdir()
    lines = [{"event": "asked", "time": "2026-11-21T10:00:00.500+00:00"}, {"event": "answered", "time": "2026-11-21T10:00:01.750+00:00"},
             {"event": "asked", "time": "2026-11-21T10:00:02.000+00:00"}, {"event": "measured", "time": "2026-11-21T10:00:03.000+00:00"}]
    (tmp_path / "state" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    class Read:
        site = type("Site", (), {"state": tmp_path / "state"})

    monkeypatch.setattr(deploy.site_file, "read", lambda path: Read)
    (begin, end), = deploy._works(tmp_path)
    assert end - begin == pytest.approx(1.25)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(ConfigError, match="not empty"):
        deploy.measure(out=tmp_path)


def test_turns_say_why_nothing_came(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy_baseline, "ASK_S", 0.1)
    (tmp_path / "log").write_text("the last word\n")
    with pytest.raises(AulaitError, match="the last word"):
        deploy_baseline.Turns(tmp_path / "turns", tmp_path / "log").ask(bytes=3)
    assert json.loads((tmp_path / "turns" / "ask-1.json").read_text()) == {"bytes": 3}


@pytest.mark.parametrize(("words", "said"), [
    (("--repetitions", "3"), "found --repetitions with benchmark 'deploy'"), (("--clients", "3"), "found --clients with benchmark 'deploy', expected it with 'simulate'")])
def test_what_it_would_not_heed_is_refused(words, said):
    told = CliRunner().invoke(cli.app, ["bench", "deploy", *words])
    assert told.exit_code == 2
    assert said in told.stderr


def test_a_process_that_does_not_load_the_base_is_one_line(monkeypatch):
    monkeypatch.setattr(deploy, "_LOAD", "import time; time.sleep(60)")
    monkeypatch.setattr(deploy, "_LOAD_S", 0.2)
    with pytest.raises(AulaitError, match="a fresh process did not load the base"):
        deploy._loading(1, 1)


def test_the_command_shows_what_was_found(monkeypatch):
    found = deploy._document(rounds(), SEEN, WORKS, deploy.Sizes(sites=1)) | {
        "base_loads": {"ward-a": 1}, "loading": {"import_s": 1.0, "load_s": 2.0, "messages": 4, "saved_s": 12.0}, "sites": 1, "flower": "1.41.0",
        "bytes": deploy._bytes(rounds(), {size: {"down": 100, "up": 80} for size in ("small", "large")}, (440, 330))}
    assert found["bytes"]["bodies_down"] == 400
    monkeypatch.setattr(deploy, "measure", lambda sizes, out: found)
    shown = CliRunner().invoke(cli.app, ["bench", "deploy"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "are those of the method's formula" in shown.output.replace("\n", " ")
    assert json.loads(CliRunner().invoke(cli.app, ["bench", "deploy", "--json"]).stdout) == found


@pytest.mark.slow
def test_the_process_of_a_message_loads_neither_torch_nor_the_supernode():
    around = {**os.environ, "AULAIT_PASS": "x", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", MESSAGE], env=around, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.split() == []


@pytest.mark.slow
def test_an_exchange_costs_half_a_second_more_than_bare_flower_at_most(tmp_path):
    found = deploy.measure(deploy.Sizes(small=5, large=1, loads=1), Path(tmp_path))
    print(json.dumps(found, indent=1))
    assert set(found["base_loads"].values()) == {1}
    assert found["small"]["overhead_s"] <= 0.5  # a single turn of the large one is told, not judged
    for size in ("small", "large"):
        moved = found["bytes"][size]
        assert (moved["down"], moved["up"]) == (moved["formula_down"], moved["formula_up"])
    assert found["bytes"]["flower_down"] < 1.02 * found["bytes"]["bodies_down"] + 100_000
    assert found["large"]["bytes"] == 10_002_432
