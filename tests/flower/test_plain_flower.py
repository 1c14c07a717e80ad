"""The bundle of `aulait serve` under Flower's own commands: flower-superlink, flower-supernode, flwr run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from tests import tiny_run

from aulait.engines.deployment.site import site_file, worker
from aulait.engines.flower import loopback, processes
from aulait.engines.flower.hardening import supported
from aulait.runs import experiment_file

BIN = Path(sys.executable).parent


@contextlib.contextmanager
def started(words, log, environment):
    with log.open("ab") as out:
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.mark.slow
def test_flwr_run_carries_a_run_out(tmp_path):
    tiny_run.write_data(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    own = {name: [row for row in rows if row["client"] == name] for name in ("c0", "c1")}
    run = tmp_path / "run"
    settings = tiny_run.settings(tmp_path, federation={"tier": [{"name": "all", "placement": "local"}]}, train={"rounds": 1, "steps": 1, "batch": 2},
                                 engine={"name": "flower", "threads": 1, "wait_s": 120.0, "least_sites": 2, "deadline_s": 120.0})
    (tmp_path / "experiment.toml").write_text(experiment_file.dump_settings(settings))
    home = tmp_path / "home"
    around = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0",
              "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    home.mkdir()
    with loopback.laid_out(tmp_path / "sites", own) as places, contextlib.ExitStack() as stack:
        port, keys = processes.free_port(), places.keys
        stack.enter_context(started(["flower-superlink", "--ssl-ca-certfile", str(keys / "ca.pem"), "--ssl-certfile", str(keys / "server.pem"),
                                     "--ssl-keyfile", str(keys / "server-key.pem"), "--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(port)],
                                    tmp_path / "link.txt", around))
        until = time.monotonic() + 60
        while not processes.answers("127.0.0.1", port):
            assert time.monotonic() < until, (tmp_path / "link.txt").read_text()
            time.sleep(0.2)
        link = {"superlink": {"here": {"address": f"127.0.0.1:{port}", "root-certificates": str(keys / "ca.pem")}}}
        (home / "config.toml").write_text(tomli_w.dumps(link))
        for name, path in places.sites.items():
            done = subprocess.run(["flwr", "supernode", "register", str(path.parent / "site-key.pub"), "here"], env=around, capture_output=True, text=True, timeout=90)
            assert done.returncode == 0, done.stdout + done.stderr
            words = "import sys, threading; from aulait.engines.deployment.site import site_file, worker; worker.serve(site_file.read(__import__('pathlib').Path(sys.argv[1])), threading.Event())"
            stack.enter_context(started([sys.executable, "-c", words, str(path)], tmp_path / f"{name}.txt", around))
            where = worker.socket_path(site_file.read(path))
            stack.enter_context(started(["flower-supernode", "--root-certificates", str(keys / "ca.pem"), "--superlink", f"127.0.0.1:{port}",
                                         "--auth-supernode-private-key", str(path.parent / "site-key"), "--port", str(processes.free_port()),
                                         "--node-config", f'socket="{where}"'], tmp_path / f"{name}-node.txt", around))
        told = f'experiment="{tmp_path / "experiment.toml"}" out="{run}" keys="{keys}" resume=false'
        app = supported.app_folder(tmp_path / "app")
        done = subprocess.run(["flwr", "run", str(app), "here", "--run-config", told], env=around, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        until = time.monotonic() + 240
        while not (run / "serve" / "outcome.json").exists():
            assert time.monotonic() < until, (tmp_path / "link.txt").read_text()[-3000:]
            time.sleep(0.5)
        assert json.loads((run / "serve" / "outcome.json").read_text())["ok"] is True
        assert json.loads((run / "result.json").read_text())["rounds"] == 1
