"""The loop with PEFT as client app of Flower's own simulation, which runs it in Ray's actors: one
thread each, as many as this process has threads, each with a base of its own.

The server app stays between turns, so that what starts once is told apart from rounds. It asks for
answers fifty times a second: what Flower's strategies wait beyond that (3 s) is no merit of the
comparison. This module is also the program of the process in which Flower runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from aulait.engines.flower import processes
from aulait.engines.flower.hardening.patching import watch
from aulait_benchmarks.deploy_baseline import Turns, put, take
from aulait_benchmarks.peft_loop import PeftLoop, PeftWork, State, mean

_WORK: Final = "work.pt"
_ADAPTER: Final = "adapter.pt"
_LOOK_S: Final = 0.02
client_app = ClientApp()


class FlowerSimulation:
    """A simulation that is up.

    Args:
        folder: where it lies; its server app is asked for all rounds there.
        process: its first process.
        start_s: seconds until it was up.
    """

    def __init__(self, folder: Path, turns: Turns, process: int, start_s: float) -> None:
        self._folder, self._turns, self._process = folder, turns, process
        self.start_s = start_s

    def run(self) -> None:
        """All rounds, from the first adapter on."""
        self._turns.ask()

    def adapter(self) -> State:
        """The last global adapter of the last turn."""
        # a file that the benchmark has written
        found: State = torch.load(self._folder / _ADAPTER)  # nosec B614
        return found

    def peak_bytes(self) -> int | None:
        """The sum of the peaks of all its processes; None where the system does not tell."""
        return peak_of_tree(self._process)

    def processor_s(self) -> float | None:
        """Processor seconds of all its processes so far; None where the system does not tell."""
        return processor_s_of_tree(self._process)


@contextlib.contextmanager
def simulation(work: PeftWork) -> Iterator[FlowerSimulation]:
    """Flower's simulation of some work, as long as the block runs.

    Raises:
        AulaitError: it does not come up.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(work, folder / _WORK)
        started = time.perf_counter()
        log = folder / "log.txt"
        process = processes.start(
            [sys.executable, "-m", "aulait_benchmarks.flower_simulation", str(folder),
             str(torch.get_num_threads())], log, _around())
        try:
            turns = Turns(folder, log)
            turns.ready()
            yield FlowerSimulation(folder, turns, process.pid, time.perf_counter() - started)
            turns.end()
            with contextlib.suppress(TimeoutError):
                take(folder / "ended.json", 30.0)
        finally:
            processes.end(process)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One client's steps of a round."""
    asked = message.content.config_records["asked"]
    loop = _loop(str(asked["folder"]))
    round, client = int(str(asked["round"])), int(context.node_config["partition-id"])
    shared = message.content.array_records["adapter"].to_torch_state_dict()
    state = loop.client(shared, loop.work.batches[round][client])
    return Message(RecordDict({"adapter": ArrayRecord(state)}), reply_to=message)


@lru_cache(maxsize=1)
def _loop(folder: str) -> PeftLoop:
    """The base of an actor, loaded once."""
    torch.set_num_threads(1)
    # a file that the benchmark has written
    return PeftLoop(torch.load(Path(folder) / _WORK, weights_only=False))  # nosec B614


def _serve(grid: Grid, folder: Path, work: PeftWork) -> None:
    """Rounds, as often as they are asked for by files in a folder."""
    nodes: list[int] = []
    while len(nodes) < len(work.batches[0]):
        nodes = sorted(grid.get_node_ids())
        time.sleep(_LOOK_S)
    number = 0
    while True:
        put(folder / f"told-{number}.json", {})
        number += 1
        if take(folder / f"ask-{number}.json").get("end"):
            return
        shared = work.start
        for round in range(len(work.batches)):
            shared = mean(_answers(grid, [
                Message(RecordDict({
                    "adapter": ArrayRecord(shared),
                    "asked": ConfigRecord({"folder": str(folder), "round": round}),
                }), node, "train") for node in nodes]))
        torch.save(shared, folder / _ADAPTER)


def _answers(grid: Grid, messages: list[Message]) -> list[State]:
    """What all clients answer."""
    waiting, found = set(grid.push_messages(messages)), []
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            if reply.has_error():
                raise SystemExit(f"a client failed: {reply.error}")
            waiting.discard(reply.metadata.reply_to_message_id)
            found.append(dict(reply.content.array_records["adapter"].to_torch_state_dict()))
        time.sleep(_LOOK_S)
    return found


def _around() -> dict[str, str]:
    """The environment of its processes: these sources first, one thread each, nothing sent home;
    and actors of ordinary priority, where Ray's default lets every other program go first."""
    places = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, places))}


def peak_of_tree(first: int) -> int | None:
    """Bytes: the sum of the peaks of a process and all below it."""
    parents: dict[int, int] = {}
    peaks: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
            if "VmHWM" in fields:
                own = int(file.parent.name)
                parents[own] = int(fields["PPid"])
                peaks[own] = 1024 * int(fields["VmHWM"].split()[0])
    return sum(peaks[own] for own in _tree(first, parents)) if first in parents else None


def processor_s_of_tree(first: int) -> float | None:
    """Processor seconds of a process and all below it, and of those of them that have ended."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # what stands before the last bracket is the program's name, spaces and all
            fields = file.read_text().rpartition(")")[2].split()
            own = int(file.parent.name)
            # after the name: state, parent, and from the twelfth on the ticks in user and system
            # mode, own and of ended children
            parents[own], ticks[own] = int(fields[1]), sum(map(int, fields[11:15]))
    if first not in parents:
        return None
    return sum(ticks[own] for own in _tree(first, parents)) / os.sysconf("SC_CLK_TCK")


def _tree(first: int, parents: Mapping[int, int]) -> set[int]:
    """A process and all below it."""
    members = {first}
    while more := {own for own, parent in parents.items() if parent in members} - members:
        members |= more
    return members


def main(folder: Path, threads: int) -> None:
    """Run the simulation until it is asked to end, or what asked for it is gone; Ray's processes,
    which are of this process's group, end with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Ray then ends what it has started
    watch(os.getppid(), group=True)
    # a file that the benchmark has written
    work: PeftWork = torch.load(folder / _WORK, weights_only=False)  # nosec B614
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        _serve(grid, folder, work)

    run_simulation(
        server_app, client_app, num_supernodes=len(work.batches[0]),
        backend_config={"init_args": {"num_cpus": threads, "include_dashboard": False},
                        "client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    put(folder / "ended.json", {})


if __name__ == "__main__":
    # imported under its own name, by which the actors find it
    from aulait_benchmarks import flower_simulation

    flower_simulation.main(Path(sys.argv[1]), int(sys.argv[2]))
