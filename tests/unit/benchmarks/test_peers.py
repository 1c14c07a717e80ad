"""The benchmark beside a loop with PEFT: both do the same work, and the figures are told as they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tests.tiny_bases import write
from typer.testing import CliRunner

from aulait import cli
from aulait.runs.prepared import SharedCache
from aulait_benchmarks import peers, simulate
from aulait_benchmarks.peft_loop import PeftLoop, peft_work
from aulait_benchmarks.simulate import METHODS, Workload


@pytest.fixture
def model(tmp_path):
    return str(write(tmp_path, "llama"))


@pytest.mark.parametrize("method", ["fedit", "ffa"])
def test_the_loop_learns_what_aulait_learns(model, method):
    work = Workload(model=model, method=method, clients=3, steps=2, batch=2)
    run = simulate.prepared(work, SharedCache())
    loop = PeftLoop(peft_work(run, METHODS[method], rounds=2))
    own = run.settings.method.result(run.context, simulate.federated(run, rounds=2))
    found = loop.run()
    assert len(found) == 2 * len(own.factors)
    moved = 0.0
    for name, (a, b) in own.factors.items():
        for kind, wanted in (("A", a), ("B", b)):
            key = f"base_model.model.{name}.lora_{kind}.weight"
            torch.testing.assert_close(found[key], wanted, rtol=1e-3, atol=1e-5)
            moved += float((wanted - loop.work.start[key]).abs().sum())
    assert moved > 0.01


@pytest.mark.slow  # Ray takes half a minute to begin and to end
def test_flowers_simulation_learns_what_the_loop_learns(model):
    pytest.importorskip("ray")
    from aulait_benchmarks import flower_simulation

    run = simulate.prepared(Workload(model=model, clients=3, steps=2, batch=2), SharedCache())
    work = peft_work(run, METHODS["fedit"], rounds=2)
    wanted = PeftLoop(work).run()
    with flower_simulation.simulation(work) as up:
        up.run()
        found = up.adapter()
        assert up.peak_bytes() > 5 * 10**8
        assert up.start_s > 0
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


class StandIn:
    """A simulation of Flower's that is up and does nothing."""

    start_s, calls = 4.0, 0

    def run(self):
        self.calls += 1

    def peak_bytes(self):
        return 5

    def processor_s(self):
        return 2.0 * self.calls  # whatever the clock on the wall says


def test_flowers_figures_stand_beside_the_others(model, monkeypatch):
    up = StandIn()
    monkeypatch.setattr(peers, "_flower", lambda work, takes_part: nullcontext(up if takes_part else None))
    work = Workload(model=model, method="cores", clients=2, steps=1, batch=1)
    found = peers.compare(peers.PeerScope([work], repetitions=3, flower=True))
    assert up.calls == 4  # the first turn is told apart
    assert found["ratio_to_flower"] == pytest.approx(found["aulait_tokens_per_s"] / found["flower_tokens_per_s"])
    assert (found["flower_start_s"], found["flower_peak_rss_bytes"]) == (4.0, 5)
    if found["clock"] == "processor time":
        assert found["flower_tokens_per_s"] == pytest.approx(found["tokens"] / 2.0)
    assert min(found[f"{name}_first_s"] for name in ("aulait", "loop", "flower", "floor")) > 0
    said = []
    found = peers.compare(peers.PeerScope([work], repetitions=3), said.append)
    assert "Flower's simulation is left out" in said[0]
    assert "[peers]" in said[0]
    assert (found["flower_tokens_per_s"], found["ratio_to_flower"], found["flower_start_s"]) == (None, None, None)


def test_the_processor_time_of_a_process_and_its_children():
    pytest.importorskip("flwr")
    from aulait_benchmarks.flower_simulation import processor_s_of_tree

    before = processor_s_of_tree(os.getpid())
    if before is None:
        pytest.skip("no /proc")
    work = "import time; [None for _ in iter(lambda: time.process_time() < 0.3, False)]; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert processor_s_of_tree(os.getpid()) > before + 0.25
        child.stdin.close()
    assert processor_s_of_tree(os.getpid()) > before + 0.25  # it has ended and counts still
    assert processor_s_of_tree(child.pid) is None


def test_the_peak_of_a_process_and_its_children():
    pytest.importorskip("flwr")
    from aulait_benchmarks.flower_simulation import peak_of_tree

    own = peak_of_tree(os.getpid())
    if own is None:
        pytest.skip("no /proc")
    with subprocess.Popen([sys.executable, "-c", "x = bytearray(10**8); print(1, flush=True); input()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert peak_of_tree(os.getpid()) > own + 9 * 10**7
        child.stdin.close()
    assert peak_of_tree(child.pid) is None


def test_a_simulation_ends_with_the_process_that_started_it(tmp_path, monkeypatch):
    """It looks for that process before Flower and Ray begin, and ends its whole group."""
    pytest.importorskip("flwr")
    pytest.importorskip("ray")
    from aulait_benchmarks import flower_simulation as own

    seen = []
    monkeypatch.setattr(own.torch, "load", lambda *_, **__: SimpleNamespace(batches=[[]]))
    monkeypatch.setattr(own, "watch", lambda parent, group: seen.append((parent, group)))
    monkeypatch.setattr(own, "run_simulation", lambda *_, **__: seen.append("begun"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        own.main(tmp_path, 1)
        with pytest.raises(SystemExit):
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [(os.getppid(), True), "begun"]


def test_every_contender_begins_a_turn(model):
    run = simulate.prepared(Workload(model=model, clients=2, steps=1, batch=1), SharedCache())
    called = []
    spent = peers.turns(run, {name: peers.Contender(lambda name=name: called.append(name), lambda: 2.0 * len(called))
                              for name in "abc"}, 4)
    assert called == [*"abc", *"bca", *"cab", *"abc"]
    assert {name: [turn.spent_s for turn in own] for name, own in spent.items()} == {name: [2.0] * 4 for name in "abc"}


def test_a_search_is_told_apart_from_the_training(model):
    """Of ``cores``, whose clients search for the server's step unless the settings say otherwise."""
    run = simulate.prepared(Workload(model=model, method="cores", clients=2, steps=1, batch=1), SharedCache())
    settled = run.settings.method_config
    alone = simulate.without_search(settled)
    assert (settled.server, alone.server) == ("search", "plain")
    assert "search/scale" in simulate.federated(run, 1).tensors
    assert "search/scale" not in simulate.federated(run, 1, alone).tensors
    works = [Workload(model=model, method=method, clients=2, steps=1, batch=1) for method in ("cores", "ffa")]
    cores, ffa = peers.compare(peers.PeerScope(works, repetitions=3))["cases"]
    assert cores["search_share"] == pytest.approx(1 - cores["searching_ratio_to_loop"] / cores["ratio_to_loop"])
    assert 0 < cores["search_share"] < 1
    assert (ffa["search_share"], ffa["searching_ratio_to_loop"]) == (None, None)
    assert set(cores["wall_s"]) == {"aulait", "loop", "floor", "searching"}


def test_the_figures(model):
    works = [Workload(model=model, clients=2, steps=1, batch=batch) for batch in (1, 2)]
    found = peers.compare(peers.PeerScope(works, repetitions=3))
    assert [case["batch"] for case in found["cases"]] == [1, 2]
    for case in found["cases"]:
        assert case["ratio_to_loop"] == pytest.approx(case["aulait_tokens_per_s"] / case["loop_tokens_per_s"])
        assert case["ratio_to_floor"] == pytest.approx(case["aulait_tokens_per_s"] / case["floor_tokens_per_s"])
        assert case["tokens"] > 0
    assert found["ratio_to_loop"] == min(case["ratio_to_loop"] for case in found["cases"])
    assert found["peak_rss_bytes"] > 10**8


def test_the_command(model, monkeypatch):
    monkeypatch.setattr(peers, "flower_is_here", lambda: False)  # which takes minutes
    told = CliRunner().invoke(cli.app, ["bench", "simulate", "--peers", "--model", model, "--batches", "2", "--clients", "2", "--quick",
                                    "--repetitions", "3", "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert {(case["batch"], case["clients"], case["dtype"]) for case in found["cases"]} == {(2, 2, "float32"), (2, 2, "bfloat16")}
    wrong = CliRunner().invoke(cli.app, ["bench", "aggregate", "--peers"])
    assert wrong.exit_code == 2


def test_the_scope():
    every = peers.scope("brew", (), None, 5, False).workloads
    assert {(w.method, w.targets, w.batch) for w in every} == {
        (method, targets, batch) for method in peers.PEER_METHODS for targets in ("all-linear", "attention") for batch in (1, 2, 4, 8)}
    assert all(w.model == "brew" and w.dtype == "float32" for w in every)
    some = peers.scope("smollm2", (1, 4), 3, 5, False).workloads
    assert {(w.dtype, w.batch, w.clients) for w in some} == {(dtype, batch, 3) for dtype in ("float32", "bfloat16") for batch in (1, 4)}
