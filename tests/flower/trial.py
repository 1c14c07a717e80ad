"""A small federation of real processes for faults: laid out, started, hurt, and what must be true of its run afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from safetensors.torch import load_file
from tests.closeness import assert_same_adapters
from tests.flower.chaos import Chaos

from aulait.engines.flower.loopback import COMMAND, Loopback, laid_out
from aulait.engines.inline import InlineEngine
from aulait.runs import experiment_file, loop

NAMES = ("ward-a", "ward-b", "ward-c")
LIMIT_S = 600.0  # for anything that takes seconds on a quiet machine
WORDS = ("read", "write", "open", "close", "file", "line", "name", "value", "list", "sum", "mean", "sort", "join", "split", "parse", "count")
PRIVATE = {"noise_multiplier": 1.0, "delta": 1e-3, "relation": "add-remove"}


def rows(names: tuple[str, ...] = NAMES) -> dict[str, list[dict[str, Any]]]:
    """Four short texts a client."""
    return {name: [{"client": name, "text": " ".join(WORDS[(5 * c + 3 * n + i * (1 + c % 3)) % len(WORDS)] for i in range(5)).capitalize() + "."}
                   for n in range(4)] for c, name in enumerate(names)}


def tree(folder: Path, **tables: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment: three sites that train, a few seconds of work; keyword arguments replace keys of its tables."""
    found: dict[str, Any] = {
        "run": {"name": "trial", "seed": 1},
        "model": {"name": "brew", "context": 24, "device": "cpu"},
        "adapter": {"rank": 1, "targets": "attention", "layers": 2},
        "data": {"source": str(folder / "all.jsonl"), "public": str(folder / "public.txt"), "holdout": 0.25, "records_per_client": 3,
                 "too_long": "cut"},
        "federation": {"tier": [{"name": "ward", "placement": "local"}]},
        "synthesis": {"rounds": 1, "candidates": 4, "variations": 1, "texts": 8, "proxy_count": 2, "generate": {"max_tokens": 12, "min_words": 1}},
        "algorithm": {"name": "fedsa"},
        "train": {"rounds": 3, "steps": 1, "batch": 2, "rows_at_once": 2, "lr": 3e-3},
        "evaluate": {"records_per_client": 1, "every": 10},
        "privacy": {"off": True},
        "engine": {"threads": 1, "wait_s": 300.0, "deadline_s": 300.0, "least_sites": 1},
    }
    for name, table in tables.items():
        found[name] = dict(table) if name in ("privacy", "algorithm") else found.get(name, {}) | dict(table)
    if not found["privacy"].get("off"):  # too few sites to learn anything, and meant
        found["privacy"] = {"noise_acknowledged": True} | found["privacy"]
    return found


@dataclass
class Federation:
    """Sites that stay, each behind a proxy, for one run after another.

    Attributes:
        folder: of everything.
        loopback: its processes.
        ways: name -> the proxy between the site and the server.
        slowest_s: longest start of a site so far; it tells how busy this machine is.
    """

    folder: Path
    loopback: Loopback
    ways: dict[str, Chaos]
    slowest_s: float = 0.0

    @property
    def deadline_s(self) -> float:
        """A deadline that a healthy site keeps on this machine, busy as it is."""
        return 10.0 + 3.0 * self.slowest_s

    @property
    def names(self) -> tuple[str, ...]:
        """Of its sites."""
        return tuple(self.ways)

    def begin(self, name: str, there: Sequence[str] | None = None, **tables: Mapping[str, Any]) -> Trial:
        """A new run: sites (those of ``there``) that are gone are started again, proxies behave."""
        for way in self.ways.values():
            way.calm()
        for own in self.names if there is None else there:
            if own not in self.loopback.running or self.loopback.running[own].poll() is not None:
                self.join(own)
        experiment = self.folder / f"{name}.toml"
        experiment.write_text(tomli_w.dumps(tree(self.folder, **tables)))
        return Trial(self, name, experiment)

    def join(self, name: str, command: Sequence[str] = COMMAND, **around: str) -> None:
        """Start a site."""
        began_s = time.monotonic()
        self.loopback.join(name, command, **around)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    def stop(self, name: str) -> None:
        """End a site in good order, if it runs."""
        if name in self.loopback.running and self.loopback.running[name].poll() is None:
            self.loopback.kill(name, signal.SIGTERM)

    def kill(self, name: str) -> None:
        """kill -9 of a site's ``aulait join``; what it had started must be gone soon."""
        below = descendants(self.loopback.running[name].pid)
        self.loopback.kill(name)
        until(lambda: not any(map(alive, below)), "the end of what a killed site had started", 30)

    def apps(self, name: str) -> list[int]:
        """Flower's processes of a site that answer a message now."""
        return [pid for pid in descendants(self.loopback.running[name].pid) if " flwr-clientapp " in _words(pid)]

    def own_events(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Of a site's own log, all runs."""
        return [line for line in lines(self.folder / name / "state" / "log.jsonl") if line["event"] == kind]

    def last(self, name: str, kind: str) -> dict[str, Any]:
        """The last of them; nothing if there is none."""
        return next(reversed(self.own_events(name, kind)), {})

    def worked(self, kind: str) -> int:
        """Messages of a kind that workers were asked."""
        return sum(line.get("what") == kind for name in self.names for line in self.own_events(name, "asked"))


@dataclass
class Trial:
    """One run of a federation.

    Attributes:
        federation: its sites.
        name: of the run.
        experiment: its file.
    """

    federation: Federation
    name: str
    experiment: Path

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.federation.folder / "runs" / self.name

    def serve(self, *words: str) -> subprocess.Popen[bytes]:
        """Start the coordinator."""
        return self.federation.loopback.serve(self.experiment, self.out, *words)

    def kill_server(self, *, children: bool) -> None:
        """kill -9 of the coordinator: of itself alone, or of all that it started too. Nothing of it may go on."""
        leader = self.federation.loopback.running["server"]
        below = descendants(leader.pid)
        for pid in [leader.pid, *(below if children else ())]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        leader.wait(30)
        until(lambda: not any(map(alive, below)), "the end of what a killed server had started", 30)

    def seen(self) -> dict[str, Any]:
        """progress.json, or nothing."""
        return read(self.out / "serve" / "progress.json")

    def at(self, stage: str, done: int | None = None) -> bool:
        """Whether the run is in this stage, after so many rounds."""
        now = self.seen()
        return now.get("stage") == stage and done in (None, now.get("done"))

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Of the coordinator's log."""
        return [line for line in lines(self.out / "serve" / "log.jsonl") if not kind or line["event"] == kind]

    def rounds(self) -> list[dict[str, Any]]:
        """rounds.jsonl so far."""
        return lines(self.out / "rounds.jsonl")

    def ledger(self) -> list[str]:
        """Lines of the ledger so far."""
        path = self.out / "ledger.jsonl"
        return [line.decode() for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []

    def until(self, true: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
        """Wait while the server goes on.

        Raises:
            AssertionError: it did not happen, with what the log says.
        """
        try:
            until(lambda: true() or self.federation.loopback.running["server"].poll() is not None, what, limit_s)
            assert true(), f"the server ended before {what}"
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.story()}") from None

    def asked(self, stage: str, done: int, kind: str = "") -> None:
        """Wait until a worker was asked in this stage, after so many rounds."""
        self.until(lambda: self.at(stage, done), f"round {done + 1} of {stage}")
        kind = kind or {"synthesis": "vote", "train": "train"}[stage]
        before = self.federation.worked(kind)
        self.until(lambda: self.federation.worked(kind) > before, f"a message of round {done + 1} of {stage}")

    def caught(self, stage: str, done: int, name: str) -> list[int]:
        """Wait until a site works on a message of this round; Flower's processes that answer it."""
        found: list[int] = []

        def there() -> bool:
            if self.at(stage, done):
                since_s = time.time() - (self.out / "serve" / "progress.json").stat().st_mtime
                found[:] = [pid for pid in self.federation.apps(name) if age_s(pid) < since_s]
            return bool(found)

        self.until(there, f"work of {name} in round {done + 1} of {stage}")
        return found

    def finished(self, limit_s: float = LIMIT_S) -> int:
        """The server's exit code; nothing of it is left."""
        try:
            code = self.federation.loopback.finished(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end; {self.story()}") from None
        left = gone(self.out)
        assert not left, f"left behind by the server: {left}"
        return code

    def said(self) -> str:
        """What servers wrote to their terminal; of all runs."""
        return self.federation.loopback.log("server").read_text()

    def story(self) -> str:
        """What a reader of a failure needs."""
        told = [f"{line['time'][11:19]} {line['event']} {line.get('site', '')} {line.get('reason', '')}" for line in self.events()[-15:]]
        done = [(line.get("stage"), line.get("round")) for line in self.rounds()]
        return f"progress {self.seen()}, rounds {done}, log: {'; '.join(told)}; server: {self.said()[-1500:]}"


@contextmanager
def federation(folder: Path, names: tuple[str, ...] = NAMES, **limits: Any) -> Iterator[Federation]:
    """Sites behind proxies, not started yet; whatever is left of them in the end is said, and ended."""
    own = rows(names)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for each in own.values() for row in each))
    (folder / "public.txt").write_text("".join(f"Return the {a} of a {b}.\n" for a in WORDS[:5] for b in WORDS[5:10]))
    try:
        with ExitStack() as stack:
            loopback = stack.enter_context(laid_out(folder, own, {name: limits for name in names}))
            ways = {name: stack.enter_context(Chaos(loopback.port)) for name in names}
            for name, way in ways.items():
                point(loopback.sites[name], way.port)
            yield Federation(folder, loopback, ways)
            loopback.stop()
        left = gone(folder)
        assert not left, f"left behind: {left}"
    finally:
        for pid in traces(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until(true: Callable[[], Any], what: str, limit_s: float) -> None:
    """Wait.

    Raises:
        AssertionError: it did not happen.
    """
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, f"{what} did not happen within {limit_s:g} s"
        time.sleep(0.02)


def point(site_file: Path, port: int) -> None:
    """Let a site look for its server at another port."""
    text = site_file.read_text()
    site_file.write_text(re.sub(r'(server = "127\.0\.0\.1:)\d+', rf"\g<1>{port}", text))


def alone(trial: Trial) -> Path:
    """The same run in this process; its folder."""
    out = trial.federation.folder / "alone" / trial.name
    loop.run(experiment_file.read_settings(trial.experiment), out, InlineEngine())
    return out


def personal(trial: Trial, alone: Path) -> None:
    """The adapters that sites keep for themselves are those of the run in one process."""
    run = read(trial.out / "serve" / "run.json")["run"]
    own = sorted((alone / "personal").iterdir())
    assert own
    for path in own:
        same(path, trial.federation.folder / path.name / "state" / "runs" / run / "adapter")


def same(one: Path, two: Path, relative: float = 2e-3) -> None:
    """Two folders with an adapter each hold the same one."""
    a, b = (load_file(path / "adapter_model.safetensors") for path in (one, two))
    assert_same_adapters(a, b, relative)


def sound(trial: Trial, rounds: int) -> dict[str, Any]:
    """What is true of every finished run, whatever happened to it; its result."""
    result = read(trial.out / "result.json")
    assert result, trial.story()
    assert result["rounds"] == rounds
    assert [line["round"] for line in trial.rounds() if line["stage"] == "train"] == [*range(1, rounds + 1)]
    stage_one = [line["round"] for line in trial.rounds() if line["stage"] == "synthesis"]
    assert stage_one == sorted(set(stage_one))
    assert (trial.out / "adapter" / "adapter_model.safetensors").is_file()
    assert (trial.out / "report.html").is_file()
    assert read(trial.out / "serve" / "outcome.json")["ok"] is True
    assert not list((trial.out / "serve").glob("superlink.db*"))
    return result


def kept(trial: Trial, before: list[str] = [], *, rounds: int, restarts: int = 0) -> list[dict[str, Any]]:  # noqa: B006
    """What is true of the ledger of a finished private run: nothing lost, nothing released twice under one line."""
    raw = (trial.out / "ledger.jsonl").read_text().splitlines()
    assert raw[: len(before)] == before, "a line of the ledger is gone or changed"
    found = [json.loads(line) for line in raw]
    assert [line["release"] for line in found] == [*range(1, len(found) + 1)]
    assert rounds <= len(found) <= rounds + restarts, f"{len(found)} lines for {rounds} rounds and {restarts} restarts"
    assert {line["round"] for line in found} == {*range(1, rounds + 1)}
    checked = subprocess.run([*COMMAND, "account", str(trial.out)], capture_output=True, text=True, timeout=LIMIT_S)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return found


def gone(folder: Path, limit_s: float = 20.0) -> list[str]:
    """Wait until no process has to do with a folder; what is left after the limit."""
    end = time.monotonic() + limit_s
    while (left := traces(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    return [f"{pid}: {_words(pid)[:200]}" for pid in left]


def traces(folder: Path) -> list[int]:
    """Processes with this folder in their words or their environment; not this one."""
    name = f"{folder}/"
    found = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
    return [pid for pid in found if (name in _words(pid) or name in _around(pid)) and alive(pid)]


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    return (state := _stat(pid)) != [] and state[0] != "Z"


def age_s(pid: int) -> float:
    """How long ago a process began."""
    stat = _stat(pid)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK") if stat else float("inf")


def descendants(pid: int) -> list[int]:
    """Children, and theirs."""
    parents = {int(entry): int(stat[1]) for entry in os.listdir("/proc") if entry.isdigit() and (stat := _stat(int(entry)))}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {pid})


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def read(path: Path) -> dict[str, Any]:
    """A JSON object; empty when it is not there."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _words(pid: int) -> str:
    return _file(pid, "cmdline")


def _around(pid: int) -> str:
    return _file(pid, "environ")


def _file(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
