"""Strangers among real processes: a wrong key, another coordinator's key of requests, a site that was taken out of the roster.

What a server ships never runs at a site, and what the SuperLink answers to strangers: test_processes.py. What a message may
say: test_refusals.py. What an answer may say: test_evil_replies.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import tomli_w

pytest.importorskip("flwr")
from aulait.engines.deployment.pki import keys
from aulait.engines.flower.loopback import COMMAND, laid_out

NAMES = ("ward-a", "ward-b", "doubting", "forger")
SECRETS = ("zyxxandra", "qvelmoor", "brintopax", "ulvharrow")


def experiment(folder: Path, rounds: int, wait_s: float) -> Path:
    """Sites that train; nobody votes, so that no embedder is loaded."""
    tables = {
        "run": {"name": "strangers", "seed": 1}, "model": {"name": "brew", "context": 24, "device": "cpu"},
        "adapter": {"rank": 1, "targets": "attention", "layers": 1},
        "data": {"source": "docstrings", "public": "stdlib", "holdout": 0.25, "records_per_client": 3, "too_long": "cut"},
        "federation": {"tier": [{"name": "ward", "placement": "local"}]}, "algorithm": {"name": "fedit"},
        "train": {"rounds": rounds, "steps": 1, "batch": 2}, "evaluate": {"records_per_client": 1, "every": 100}, "privacy": {"off": True},
        "engine": {"threads": 1, "wait_s": wait_s, "deadline_s": 120.0, "least_sites": 2}}
    path = folder / f"experiment-{rounds}.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def told(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(true, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


@pytest.mark.slow
def test_strangers_are_turned_away_and_a_site_taken_out_of_the_roster_is_heard_no_more(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    rows = {name: [{"text": f"{secret} number {n} of {name}."} for n in range(4)] for name, secret in zip(NAMES, SECRETS, strict=True)}
    with laid_out(folder, rows) as federation:
        keys.server(folder / "other", ["127.0.0.1"])
        (folder / "doubting" / "order-key.pub").write_bytes((folder / "other" / "order-key.pub").read_bytes())
        (folder / "forger" / "site-key").unlink()
        keys.site(folder / "new", "forger")
        (folder / "new" / "site-key").rename(folder / "forger" / "site-key")
        for name in NAMES:
            federation.join(name)
        federation.serve(experiment(folder, 2, 60.0), folder / "run")
        assert federation.finished(560) == 0, federation.log("server").read_text()[-2000:]

        events = told(folder / "run" / "serve" / "log.jsonl")
        assert {line["site"] for line in events if line["event"] == "absent"} == {"doubting", "forger"}
        assert any(line["event"] == "refused" and line["site"] == "doubting" and "not signed" in line["reason"] for line in events)
        own = told(folder / "doubting" / "state" / "log.jsonl")
        assert any(line["event"] == "refused" and "not signed by the coordinator" in line["reason"] for line in own)
        assert not list((folder / "doubting" / "state").glob("runs/*")), "nothing was begun for a coordinator it does not know"
        assert "does not know this key" in federation.log("forger").read_text()
        assert json.loads((folder / "run" / "result.json").read_text())["clients"] == 2
        for path in (folder / "run").rglob("*"):
            assert not path.is_file() or not any(secret.encode() in path.read_bytes() for secret in SECRETS), path

        federation.kill("doubting", 15)
        federation.kill("forger", 15)
        for name in ("doubting", "forger"):
            (folder / "server" / "roster" / f"{name}.pub").unlink()
        federation.serve(experiment(folder, 4, 60.0), folder / "second", "--set", "engine.least_sites=2")
        rounds = folder / "second" / "rounds.jsonl"
        until(lambda: any(line.get("stage") == "train" for line in told(rounds)) or federation.running["server"].poll() is not None, 400)
        (folder / "server" / "roster" / "ward-b.pub").unlink()
        assert federation.finished(560) == 0, federation.log("server").read_text()[-2000:]
        sites = json.loads((folder / "second" / "serve" / "sites.json").read_text())
        assert sites["ward-a"]["state"] == "answered"
        assert sites["ward-b"]["state"] == "silent"


@pytest.mark.slow
def test_the_command_line_refuses_to_go_without_tls_beyond_loopback(tmp_path):
    rows = {"ward-a": [{"text": "a"}]}
    with laid_out(tmp_path, rows) as federation:
        around = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        words = ["serve", str(experiment(tmp_path, 1, 1.0)), "--keys", str(tmp_path / "server"), "--insecure", "--host", "0.0.0.0"]
        served = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=100, env=around)
        assert served.returncode == 2
        assert "expected loopback where there is no TLS" in served.stderr
        file = federation.sites["ward-a"]
        file.write_text(file.read_text().replace("127.0.0.1", "192.0.2.1"))
        joined = subprocess.run([*COMMAND, "join", str(file), "--insecure"], capture_output=True, text=True, timeout=100, env=around)
        assert joined.returncode == 2
        assert "expected loopback where there is no TLS" in joined.stderr
        (tmp_path / "server" / "order-key.pem").chmod(0o640)
        words = ["serve", str(experiment(tmp_path, 1, 1.0)), "--keys", str(tmp_path / "server"), "--host", "127.0.0.1", "--port",
                 str(federation.port), "--out", str(tmp_path / "run")]
        served = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=200, env=around)
        assert served.returncode == 2
        assert "others must not read it" in served.stderr
