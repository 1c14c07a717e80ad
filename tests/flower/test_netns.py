"""A run over a link of 20 Mbit/s, 100 ms round trip (50 ms each way) and 0.5 % loss, beside what the planner's formula says."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr")
import tomli_w
from tests.flower import slow_link

from aulait.core.types import Profile
from aulait.engines.deployment.site import site_file, worker
from aulait.engines.flower import processes
from aulait.engines.flower.loopback import COMMAND, laid_out
from aulait.resources.links import round_trip_s

WHY = slow_link.hindrance()
MBIT_PER_S, DELAY_S, LOSS = 20.0, 0.05, 0.005
SITES, LIMIT_S = ("ward", "lab"), 900.0
RANKS = {"small": 1, "large": 44}  # of every linear layer of the built-in base: 114 kB and 5.0 MB each way
PULL = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 7777))
print("there", flush=True)
connection, _ = server.accept()
began, size = time.time(), 0
while part := connection.recv(1 << 20):
    size += len(part)
print(time.time() - began)
"""
PUSH = """
import socket, sys
with socket.create_connection((sys.argv[1], 7777), 60) as connection:
    if len(sys.argv) > 3:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[3].encode())
    connection.sendall(bytes(int(sys.argv[2])))
"""


def plain_s(near, far, size, congestion=()):
    """Seconds of so many bytes over one TCP connection and nothing else."""
    pull = subprocess.Popen(near.words(sys.executable, "-c", PULL, near.address), stdout=subprocess.PIPE, text=True)
    try:
        pull.stdout.readline()
        subprocess.run(far.words(sys.executable, "-c", PUSH, near.address, str(size), *congestion), check=True, timeout=300)
        return float(pull.communicate(timeout=300)[0])
    finally:
        pull.kill()
        pull.wait()


def experiments(folder, rows):
    """One with small adapters, one with large ones."""
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for own in rows.values() for row in own))
    for size, rank in RANKS.items():
        (folder / f"{size}.toml").write_text(tomli_w.dumps({
            "run": {"name": size}, "model": {"name": "brew", "context": 16, "device": "cpu"}, "adapter": {"rank": rank, "targets": "all-linear"},
            "data": {"source": str(folder / "all.jsonl"), "records_per_client": 4, "holdout": 0.25, "too_long": "cut"},
            "federation": {"tier": [{"name": "ward", "placement": "local"}]}, "algorithm": {"name": "fedit"},
            "train": {"rounds": 4, "steps": 1, "batch": 2, "rows_at_once": 2}, "evaluate": {"records_per_client": 1, "every": 10},
            "privacy": {"off": True}, "engine": {"threads": 1, "wait_s": 300.0, "deadline_s": 300.0, "least_sites": 2}}))


def served(there, near, size):
    """Seconds of the training rounds of a run that must end well, and its bytes each way of one site in a round."""
    out = there.folder / "runs" / size
    there.serve(there.folder / f"{size}.toml", out, command=near.words(*COMMAND))
    code = there.finished(LIMIT_S)
    assert code == 0, f"{processes.last_words(there.log('server'), 5)}; {processes.last_words(out / 'serve' / 'superlink.log', 5)}"
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return [line["wall_s"] for line in lines], lines[0]["down_bytes"] // len(SITES), lines[0]["up_bytes"] // len(SITES)


@pytest.mark.slow
@pytest.mark.skipif(bool(WHY), reason=WHY)
def test_a_run_over_a_slow_link_ends_well_and_no_faster_than_the_link(tmp_path):
    """What does not depend on size (Flower's looking for work, its processes, arithmetic) is told by the same run with a tiny adapter.

    Both sites are behind the one link, so each has half of its rate. Plan and measurement are printed, not judged: how much
    of a lossy link a connection gets is TCP's affair. The upper bound says only that nothing hung until a deadline.
    """
    rows = {name: [{"client": name, "text": f"Return the {k}th line of {name}."} for k in range(4)] for name in SITES}
    with slow_link.link(MBIT_PER_S, DELAY_S, LOSS) as (near, far, how):
        with laid_out(tmp_path, rows, host=near.address) as there:
            experiments(tmp_path, rows)
            for name in SITES:
                there.join(name, far.words(*COMMAND))
            (small, *_), (large, down, up) = served(there, near, "small"), served(there, near, "large")
            loads = {name: worker.running(site_file.read(path))["loads"] for name, path in there.sites.items()}
        size = len(SITES) * down
        plain = plain_s(near, far, size)
        cubic = plain_s(near, far, size, ("cubic",))
    half = MBIT_PER_S * 1e6 / 8 / len(SITES)
    planned = round_trip_s(Profile("slow", up_bytes_per_s=half, down_bytes_per_s=half, latency_s=DELAY_S), down, up)
    measured = statistics.median(large) - statistics.median(small)
    used = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    print(f"\nlink: {MBIT_PER_S:g} Mbit/s, {2e3 * DELAY_S:g} ms round trip, {100 * LOSS:g} % loss; {how}; TCP {used}; load {os.getloadavg()[0]:.1f}")
    print(f"{size:,} bytes over one plain connection: {plain:.1f} s with {used}, {cubic:.1f} s with cubic; at the link's rate {8 * size / MBIT_PER_S / 1e6:.1f} s")
    print(f"rounds with {RANKS['small']}-rank adapters: {', '.join(f'{s:.1f}' for s in small)} s")
    print(f"rounds with {down:,} bytes down and {up:,} up a site: {', '.join(f'{s:.1f}' for s in large)} s")
    print(f"transfer: plan {planned:.1f} s, measured {measured:.1f} s (difference of medians)")
    print(f"round: plan {planned + statistics.median(small):.1f} s with what the small one took, measured {statistics.median(large):.1f} s")
    assert set(loads.values()) == {1}, "one base for both runs"
    assert down == up == 44 * 28416 * 4
    assert min(large) > 0.9 * planned, "no message is faster than the link"
    assert statistics.median(large) < 6 * planned + 3 * statistics.median(small) + 20, "nothing hangs until a deadline"


@pytest.mark.skipif(bool(WHY), reason=WHY)
def test_the_link_is_as_slow_as_it_says():
    with slow_link.link(MBIT_PER_S, DELAY_S, 0.0) as (near, far, _):
        assert plain_s(near, far, 1_000_000) > 8e6 / MBIT_PER_S / 1e6
        began = time.monotonic()
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run(far.words(sys.executable, "-c", "import socket; socket.create_connection(('10.77.0.1', 1), 9)"), check=True,
                           stderr=subprocess.DEVNULL, timeout=60)
        assert time.monotonic() - began > 2 * DELAY_S, "a refusal takes the round trip"
