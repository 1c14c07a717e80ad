"""The logs of a site and of processes: what a person is shown, and that none grows without bound."""

from __future__ import annotations

import json
import stat
import subprocess
import sys

from aulait.core import log_files
from aulait.engines.deployment.site.site_log import SiteLog
from aulait.engines.flower import processes


def test_a_refusal_is_shown_with_its_reason_and_a_failure_without(tmp_path):
    said = []
    note = SiteLog(tmp_path / "log.jsonl", said.append)
    note.event("refused", why="refused", reason="rank 300 found,\x1b[31m this site allows 256")
    note.event("refused", why="failed", reason="the text 'a name of somebody' is odd")
    note.event("answered", stage="train", round=1)
    assert said == ["refused: rank 300 found,?[31m this site allows 256", f"failed: the reason is in {tmp_path / 'log.jsonl'}"]
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event.get("reason", "")[-3:] for event in events] == ["256", "odd", ""]


def test_a_long_log_of_a_site_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(log_files, "LARGEST_LOG_BYTES", 1000)
    note = SiteLog(tmp_path / "log.jsonl", print)
    for number in range(100):
        note.event("asked", number=number)
    kept = [json.loads(line)["number"] for name in ("log.1.jsonl", "log.jsonl") for line in (tmp_path / name).read_text().splitlines()]
    assert kept == [*range(kept[0], 100)]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2200
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_the_log_of_a_process_is_set_aside_while_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_LARGE_LOG_BYTES", 50)
    log = tmp_path / "node.log"
    code = "import sys\nfor line in sys.stdin:\n    print('x' * 40 + line.strip(), flush=True)"
    with open(log, "ab", opener=lambda name, flags: processes.os.open(name, flags, 0o600)) as output:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=output, text=True)
    try:
        for number in range(6):
            size = log.stat().st_size
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            while log.stat().st_size == size:
                assert process.poll() is None
            processes.set_aside(log)
    finally:
        process.communicate(timeout=30)
    assert log.read_text() == ""
    aside = log.with_name("node.log.1")
    assert [line[40:] for line in aside.read_text().splitlines()] == ["4", "5"]
    assert b"\0" not in aside.read_bytes(), "it goes on at the beginning"
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    processes.set_aside(tmp_path / "none")
