"""``aulait watch``: the page and the rounds of a run that goes on, and the server that shows the page."""

from __future__ import annotations

import html
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.fixture_run import write_run
from typer.testing import CliRunner

from aulait import cli
from aulait.cli import watch
from aulait.cli.page_server import PageServer, ServedPage
from aulait.reporting.folder import read_run
from aulait.reporting.so_far import as_it_stands, place_in_words


def going_on(folder: Path, rounds: int) -> dict[str, list[str]]:
    """A run that has come so far; returns the lines that are still to come, and the result."""
    write_run(folder)
    rest = {}
    for name, kept in (("rounds.jsonl", rounds), ("ledger.jsonl", rounds)):
        lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:kept]), encoding="utf-8")
        rest[name] = lines[kept:]
    rest["result.json"] = [(folder / "result.json").read_text(encoding="utf-8")]
    (folder / "result.json").unlink()
    (folder / "synthetic.jsonl").unlink()
    return rest


def go_on(folder: Path, rest: dict[str, list[str]], names: tuple[str, ...] = ("rounds.jsonl", "ledger.jsonl", "result.json")) -> None:
    for name in names:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write("".join(rest[name]))


def test_a_run_that_goes_on_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    going_on(tmp_path, 7)
    run = as_it_stands(read_run(tmp_path))
    assert run.result.privacy.epsilon.max == pytest.approx(run.ledger[-1].epsilon.value("proxy"))
    assert run.result.eval.loss == run.training[-1].eval.loss
    assert run.result.traffic.up_bytes == sum(line.up_bytes or 0 for line in run.rounds)
    done = read_run(write_run(tmp_path / "done"))
    assert as_it_stands(done) is done
    assert place_in_words("train", 2, 10) == "round 2 of 10 of training"
    assert place_in_words(None, None, None) == "before the first round"


@pytest.mark.parametrize("rounds", [0, 3, 7])
def test_once_writes_a_page_that_stands_alone(tmp_path: Path, rounds: int) -> None:
    going_on(tmp_path, rounds)
    done = CliRunner().invoke(cli.app, ["watch", str(tmp_path), "--once"])
    assert done.exit_code == 0, done.output
    text = html.unescape((tmp_path / "watch.html").read_text(encoding="utf-8"))
    assert {0: "before the first round", 3: "round 3 of 5 of synthesis", 7: "round 2 of 10 of training"}[rounds] in text
    assert "What stands below is what there is so far" in text
    assert "connect-src 'none'" in text
    opening = text.partition("<nav")[0].partition("<main>")[2]
    assert "not recorded" not in opening


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_once_in_the_terminal_fits_it(tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on(tmp_path, 7)
    monkeypatch.setenv("COLUMNS", str(columns))
    done = CliRunner().invoke(cli.app, ["watch", str(tmp_path), "--once", "--terminal"])
    lines = done.stdout.splitlines()
    assert "round 2 of 10 of training" in " ".join(lines[:2])
    assert max(map(len, lines)) <= columns
    assert "3.8" in lines[-1] or "3.9" in lines[-1]


def test_it_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = going_on(tmp_path, 7)
    monkeypatch.setattr(watch, "LAST_LOOK_S", 0.1)
    later = threading.Timer(0.5, go_on, (tmp_path, rest))
    later.start()
    done = CliRunner().invoke(cli.app, ["watch", str(tmp_path), "--every", "0.2"])
    later.join()
    assert done.exit_code == 0, done.output
    assert "The run has finished: round 10 of 10 of training." in done.output
    told = CliRunner().invoke(cli.app, ["watch", str(tmp_path), "--terminal"])
    assert told.exit_code == 0


def test_a_run_without_news_is_said_to_be_quiet(tmp_path: Path) -> None:
    going_on(tmp_path, 7)
    past = time.time() - 3600
    os.utime(tmp_path / "rounds.jsonl", (past, past))
    assert "Nothing has been written for 1\u00a0h 0\u00a0min" in watch.RunLook(tmp_path, read_run(tmp_path)).sentence


def got(address: str, **headers: str) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_the_server_answers_this_machine_alone_and_only_under_its_path() -> None:
    page = ServedPage("v1", False, lambda: "<p>ü</p>")
    with PageServer(lambda: page) as server:
        status, body, headers = got(server.address)
        assert (status, body.decode("utf-8")) == (200, "<p>ü</p>")
        assert headers["Cache-Control"] == "no-store"
        assert json.loads(got(server.address + "version")[1]) == {"version": "v1", "over": False}
        root = server.address.rsplit("/", 2)[0]
        for path in (root + "/", root + "/version", server.address + "../", server.address + "etc/passwd", server.address + "page/../page"):
            assert got(path)[0] == 404, path
        assert got(server.address, Host="evil.example:80")[0] == 404  # a name elsewhere that leads here
        assert not server.seen.is_set()
        got(server.address + "seen")
        assert server.seen.is_set()
        port = int(server.address.split(":")[2].split("/")[0])
        outside = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for name in outside:
            if not name.startswith("127."):
                with pytest.raises(OSError), socket.create_connection((name, port), timeout=2):
                    pass
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["watch", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "found no run in" in done.stderr
