"""Every fault of a deployment, done for real: processes killed and stopped, connections cut, disks full, clocks wrong.

One federation of three sites, each behind a proxy that can misbehave, lives through all of it: every test is one run, and
the next one begins with what the last one left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

pytest.importorskip("flwr")
from tests import tiny_run
from tests.flower import trial as trials
from tests.flower.local_transport import LocalTransport, deploy, site
from tests.flower.trial import PRIVATE, Federation
from tests.flower.wire import Seen

from aulait.engines.deployment.coordinator.outbox import Delivery
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.flower.hardening import supernode

pytestmark = pytest.mark.slow
A, B, C = trials.NAMES
TIERS = {"tier": [{"name": "ward", "clients": [A, B], "placement": "local"}, {"name": "clinic", "clients": [C], "placement": "proxy"}]}
EVIL = [sys.executable, "-c", """
import signal, sys, threading
from pathlib import Path
from aulait.engines.deployment.site import site_file
from aulait.engines.flower import joining
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
joining.join(site_file.read(Path(sys.argv[2])), False, print, stop, app="evil_app:app")
"""]


class Disk:
    """A small file system in memory."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        words = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0700", "aulait-test", str(folder)]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs")

    def fill(self) -> None:
        """Leave no byte free."""
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def free(self) -> None:
        """Give the space back."""
        (self.folder / "filler").unlink()


@pytest.fixture
def small_disk():
    """(folder, megabytes) -> a disk that can be full; gone afterwards."""
    made: list[Disk] = []

    def mounted(folder: Path, size_mb: int) -> Disk:
        made.append(Disk(folder, size_mb))
        return made[-1]

    yield mounted
    for disk in made:
        subprocess.run(["umount", "-l", str(disk.folder)], check=True)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    with trials.federation(tmp_path_factory.mktemp("f"), privacy=False, epsilon=1000.0) as made:
        for name in trials.NAMES:
            made.join(name)
        yield made


def test_a_server_killed_at_any_moment_goes_on_with_resume_and_the_adapters_are_those_of_one_process(sites: Federation):
    """While it waits, during votes, training and evaluation, and after the last round; alone and with all it started."""
    run = sites.begin("moments", federation=TIERS)
    sites.ways[C].stalled = True
    run.serve()
    run.until(lambda: run.at("wait"), "the wait for a site that a partition keeps away")
    run.kill_server(children=True)
    sites.ways[C].stalled = False

    run.serve("--resume")
    run.asked("synthesis", 0)
    run.kill_server(children=False)

    run.serve("--resume")
    run.asked("train", 1)
    run.kill_server(children=True)

    run.serve("--resume")
    run.asked("train", 2, "evaluate")
    run.kill_server(children=False)
    assert [line["round"] for line in run.rounds() if line["stage"] == "train"] == [1, 2], "the third has no scores yet"

    run.serve("--resume")
    run.until(lambda: run.at("finish") or len(run.rounds()) == 4, "the end of the last round")
    run.kill_server(children=True)
    assert not (run.out / "result.json").exists()

    run.serve("--resume")
    assert run.finished() == 0
    result = trials.sound(run, 3)
    here = trials.alone(run)
    trials.same(here / "adapter", run.out / "adapter")
    trials.personal(run, here)
    assert result["eval"]["loss"] == pytest.approx(trials.read(here / "result.json")["eval"]["loss"], rel=1e-5)
    assert result["traffic"] == trials.read(here / "result.json")["traffic"]


def short(sites: Federation) -> dict:
    """An engine whose rounds close soon without those who are silent."""
    return {"threads": 1, "wait_s": 300.0, "deadline_s": sites.deadline_s, "least_sites": 1}


def silent(run: trials.Trial, name: str) -> list[str]:
    """Why a site was left out, as often as it was."""
    return [line["reason"] for line in run.events("silent") if line["site"] == name]


def updates(run: trials.Trial) -> list[int]:
    """How many updates each round counted."""
    bytes_up = [line["up_bytes"] for line in run.rounds()]
    return [round(sent / (max(bytes_up) / len(run.federation.names))) for sent in bytes_up]


def killed(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_under_privacy_kills_of_server_and_sites_lose_no_line_of_the_ledger(sites: Federation):
    """A site dies and comes back, a site's answering process dies, the server dies between a ledger line and its checkpoint."""
    run = sites.begin("private", privacy=PRIVATE, algorithm={"name": "ffa"}, engine=short(sites), train={"rounds": 4})
    run.serve()
    run.caught("train", 0, B)
    sites.kill(B)
    sites.join(B)
    killed(run.caught("train", 1, A))
    run.caught("train", 2, A)
    before = run.ledger()
    assert len(before) >= 2
    run.kill_server(children=False)

    run.serve("--resume")
    run.until(lambda: len(run.ledger()) > len(before), "the line of the third release")
    run.kill_server(children=True)
    before = run.ledger()
    assert len(run.rounds()) <= 3

    run.serve("--resume")
    assert run.finished() == 0, run.story()
    trials.sound(run, 4)
    trials.kept(run, before, rounds=4, restarts=2)
    assert silent(run, B), "what it was asked when it died got no answer"
    assert silent(run, A), run.story()
    assert len(silent(run, B)) + len(silent(run, A)) <= 4, "both took part again"


def test_a_site_that_hangs_or_is_cut_off_is_left_out_its_late_answer_not_counted_and_takes_part_again(sites: Federation):
    run = sites.begin("late", algorithm={"name": "fedit"}, engine=short(sites), train={"rounds": 6})
    run.serve()
    run.caught("train", 0, B)
    hung = sites.loopback.running[B].pid
    os.kill(hung, signal.SIGSTOP)
    run.until(lambda: run.rounds(), "the end of a round that one site does not answer")
    os.kill(hung, signal.SIGCONT)
    run.until(lambda: sites.last(B, "answered").get("round") == 1, "the late answer")
    run.until(lambda: len(run.rounds()) == 2, "the second round")
    run.until(lambda: run.at("train", 2), "the third round")
    sites.ways[C].stalled = True
    run.until(lambda: len(run.rounds()) == 3, "the end of a round during a partition")
    sites.ways[C].stalled = False
    assert run.finished() == 0, run.story()
    trials.sound(run, 6)
    counted = updates(run)
    assert counted[0] == 2, "the late answer is no answer"
    assert counted[2] == 2
    assert counted[-1] == 3, "whoever was away takes part again"
    assert any("deadline" in reason for reason in silent(run, B))
    assert any("deadline" in reason or "heartbeat" in reason for reason in silent(run, C))


def test_a_split_site_that_dies_or_hangs_sits_its_round_out_and_takes_part_again(tmp_path):
    with trials.federation(tmp_path / "f", (A, B), privacy=False, epsilon=1000.0, roles=["local", "split"]) as pair:
        tiers = [{"name": "ward", "clients": [A], "placement": "local"}, {"name": "half", "clients": [B], "placement": "split"}]
        for name in (A, B):
            pair.join(name)
        run = pair.begin("split", federation={"tier": tiers}, adapter={"layers": "all"}, algorithm={"name": "fedit"},
                         synthesis={"proxies": "absent"}, engine=short(pair), train={"rounds": 3, "steps": 2})
        run.serve()
        run.asked("train", 0, "split_step")
        pair.kill(B)
        pair.join(B)
        run.until(lambda: len(run.rounds()) == 1, "the end of a round whose split site died")
        run.asked("train", 1, "split_step")
        hung = pair.loopback.running[B].pid
        os.kill(hung, signal.SIGSTOP)
        run.until(lambda: len(run.rounds()) == 2, "the end of a round whose split site hangs")
        os.kill(hung, signal.SIGCONT)
        assert run.finished() == 0, run.story()
        trials.sound(run, 3)
        assert not silent(run, A), "the other site's answers were there when the server had done with the split one"
        assert len(silent(run, B)) >= 2


def test_delays_partitions_cuts_and_flipped_bits_change_nothing_but_the_time(sites: Federation):
    run = sites.begin("network", train={"rounds": 4})
    run.serve()
    run.until(lambda: run.at("train", 0), "the first round")
    for way in sites.ways.values():
        way.delay_s = 0.1
    run.until(lambda: run.at("train", 1), "a slow round")
    for way in sites.ways.values():
        way.calm()
    run.caught("train", 1, A)
    for way in sites.ways.values():
        way.stalled = True
    time.sleep(8.0)
    for way in sites.ways.values():
        way.stalled = False
    run.caught("train", 2, A)
    sites.ways[A].flip = 4
    run.caught("train", 2, B)
    cut = sum(way.cut() for name, way in sites.ways.items() if name != A)
    assert run.finished() == 0, run.story()
    assert sites.ways[A].flipped
    assert cut
    trials.sound(run, 4)
    assert updates(run) == [3] * 4
    here = trials.alone(run)
    trials.same(here / "adapter", run.out / "adapter")
    trials.personal(run, here)


def test_garbage_and_halves_are_left_out_and_a_message_worked_on_twice_counts_once(sites: Federation):
    """A client app of the site's own that misbehaves; Flower itself takes one answer to a message, so twice is at the worker."""
    fault = {name: sites.folder / f"fault-{name}.txt" for name in (B, C)}
    for name, path in fault.items():
        path.write_text("honest")
        sites.stop(name)
        sites.join(name, EVIL, TRIAL_FAULT=str(path), PYTHONPATH=str(Path(__file__).parent))
    run = sites.begin("garbage", train={"rounds": 4})
    fault[B].write_text("twice")
    run.serve()
    for done, what in ((1, "garbage"), (2, "torn"), (3, "honest")):
        run.until(lambda done=done: run.at("train", done), f"round {done + 1}")
        fault[C].write_text(what)
    assert run.finished() == 0, run.story()
    trials.sound(run, 4)
    assert updates(run)[0] == 3
    assert 2 in updates(run)
    assert updates(run)[-1] == 3
    assert any("no message of aulait" in reason for reason in silent(run, C)), silent(run, C)
    assert any("ended early" in reason for reason in silent(run, C)), silent(run, C)
    assert not silent(run, B)
    assert len(sites.own_events(B, "repeated")) >= 4
    for name in fault:
        sites.stop(name)


def test_a_full_disk_at_a_site_costs_its_rounds_and_no_more(sites: Federation, small_disk):
    sites.stop(C)
    run = sites.begin("full-site", there=(A, B), algorithm={"name": "fedit"}, engine=short(sites), train={"rounds": 4})
    disk = small_disk(sites.folder / C / "state", 8)
    sites.join(C)
    run.serve()
    run.until(lambda: run.at("train", 1), "the second round")
    disk.fill()
    run.until(lambda: silent(run, C) or run.events("refused"), "an answer that a full disk kept away")
    disk.free()
    assert run.finished() == 0, run.story()
    trials.sound(run, 4)
    counted = updates(run)
    assert counted[0] == 3
    assert 2 in counted
    assert counted[-1] == 3
    sites.stop(C)


def test_a_full_disk_at_the_server_stops_the_run_with_one_line_and_resume_finishes_it(sites: Federation, small_disk):
    run = sites.begin("full-server")
    disk = small_disk(run.out, 72)
    run.serve()
    run.until(lambda: len(run.rounds()) == 1, "the first round")
    disk.fill()
    assert run.finished() == 2, run.story()
    told = [line for line in run.said().splitlines() if "no space left" in line]
    assert told, run.story()
    disk.free()
    run.serve("--resume")
    assert run.finished() == 0, run.story()
    trials.sound(run, 3)
    here = trials.alone(run)
    trials.same(here / "adapter", run.out / "adapter")
    trials.personal(run, here)


def test_clocks_may_differ_by_minutes_and_beyond_that_the_site_is_told(sites: Federation):
    """Clocks of Python and of Flower's signatures; not those of OpenSSL, for which certificates begin a day early."""
    for name, by in ((A, "240"), (B, "-240"), (C, "600")):
        sites.stop(name)
        sites.join(name, TRIAL_CLOCK_S=by, PYTHONPATH=str(Path(__file__).parent / "wrong_clock"))
    run = sites.begin("clocks", federation={"tier": [{"name": "ward", "clients": [A, B], "placement": "local"}]},
                      engine={"threads": 1, "wait_s": sites.deadline_s, "deadline_s": 120.0, "least_sites": 2})
    run.serve()
    assert run.finished() == 0, run.story()
    trials.sound(run, 3)
    assert set(trials.read(run.out / "serve" / "roll.json")) == {A, B}
    assert any("differ by more than 5 minutes" in line for line in sites.loopback.log(C).read_text().splitlines())
    assert not silent(run, A) + silent(run, B)
    for name in sites.names:
        sites.stop(name)


def test_answers_that_come_twice_or_after_their_round_count_once(tmp_path):
    """What Flower itself would not let through: one process, messages as bytes, every answer twice, and old ones again."""
    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(tmp_path, federation={"tier": [{"name": "gpu", "placement": "local"}]}, algorithm={"name": "fedit"},
                                 engine={"name": "flower", "threads": 1, "wait_s": 5.0})
    own = {f"c{c}": [row for row in trials.lines(tmp_path / "data.jsonl") if row["client"] == f"c{c}"] for c in range(8)}

    class Echo(LocalTransport):
        """Every answer twice, and with it the last one of the same site once more."""

        last: ClassVar[dict] = {}

        def collect(self, message_ids, limit):
            for heard in super().collect(message_ids, limit):
                name = Seen(heard.packet).head.get("client", "")
                yield from (Delivery(heard.message_id + "-old", old.packet) for old in [self.last.get(name)] if old)
                yield heard
                yield heard
                yield Delivery(heard.message_id, self.last[name].packet) if name in self.last else heard
                self.last[name] = heard

    for where, kind in (("plain", LocalTransport), ("echo", Echo)):
        post = kind({name: SiteHandler(site(tmp_path / where, name, rows), lambda *_a, **_k: None) for name, rows in own.items()})
        deploy(post, settings, tmp_path / where, tmp_path / where / "run")
    trials.same(tmp_path / "plain" / "run" / "adapter", tmp_path / "echo" / "run" / "adapter", 0.0)
    assert [line["up_bytes"] for line in trials.lines(tmp_path / "plain" / "run" / "rounds.jsonl")] == [
        line["up_bytes"] for line in trials.lines(tmp_path / "echo" / "run" / "rounds.jsonl")]


def test_an_answer_left_over_from_a_server_that_died_does_not_keep_a_node_one_message_behind(monkeypatch):
    """Flower's loop sends once a turn whatever is there."""
    ready, sent = [["of a dead run"], ["other", "asked now"]], []

    def push(send, **_):
        for name in ready.pop(0):
            send(SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=name)), None, 0.0)

    monkeypatch.setitem(supernode._asked, "message", "asked now")
    supernode._pushed(push, {"send": lambda message, *_: sent.append(message.metadata.reply_to_message_id)})
    assert sent == ["of a dead run", "other", "asked now"]


@pytest.mark.parametrize(("text", "passes"), [
    ("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol", True),
    ("[SSL: SSLV3_ALERT_BAD_RECORD_MAC] ssl/tls alert bad record mac", True),
    ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate", False),
])  # fmt: skip
def test_a_connection_that_broke_is_tried_again_and_a_wrong_certificate_is_not(text, passes):
    import httpx

    request = httpx.Request("POST", "https://127.0.0.1/v1/fleet/pull-messages")
    found = str(supernode._passing(httpx.ConnectError(text, request=request), request)).lower()
    assert passes is not any(word in found for word in ("ssl", "tls", "certificate")), "by these words Flower gives up"
