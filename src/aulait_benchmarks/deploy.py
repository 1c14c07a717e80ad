"""``aulait bench deploy``: what an exchange over Flower takes, beside bare Flower with the same
bytes, in turns.

Both stand on this machine at once: a loopback deployment of aulait with the built-in base, and
Flower's own executables
with two apps of a few lines. They take turns, so that whatever else the machine does falls on both.
An exchange has three
parts: until the site's node has asked for the message (Flower looks every 3 s, so this is chance),
the site's own work
(one optimiser step; none in bare Flower), and the rest, which is compared.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import tomli_w

from aulait.core.errors import AulaitError, ConfigError, require
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.site import site_file, worker
from aulait.engines.flower import serving
from aulait.engines.flower.hardening import supported
from aulait.engines.flower.loopback import Loopback, laid_out
from aulait_benchmarks.deploy_baseline import Turns, bare

NAMES: Final = ("ward-a", "ward-b", "ward-c")
_TAIL_S: Final = 0.01
_LOAD_S: Final = 600.0
_APP: Final = (
    '"""The server app of the benchmark."""\n\nfrom aulait_benchmarks.deploy_app import app as '
    'app\n'
)
_LOAD: Final = """import json, time
began = time.perf_counter()
import torch
from aulait import model
imported = time.perf_counter()
model.load(model.ModelConfig(name="brew", device="cpu"))
print(json.dumps([imported - began, time.perf_counter() - imported]))
"""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        sites: at most three.
        small: exchanges of the small adapter.
        large: exchanges of the large one.
        rank: of the large adapter on every linear layer of the built-in base; 88 makes 10 MB.
        loads: fresh processes that load the base.
    """

    sites: int = 2
    small: int = 9
    large: int = 5
    rank: int = 88
    loads: int = 3


FULL = Sizes()
QUICK = Sizes(small=5, large=1, loads=1)


def measure(sizes: Sizes = FULL, out: Path | None = None) -> dict[str, Any]:
    """Exchanges of both, in turns.

    Args:
        sizes: how much.
        out: a new or empty folder that keeps keys, sites and logs; None: a temporary one.

    Returns:
        small, large: of each bytes, aulait_s, bare_s (median seconds of an exchange with all
            sites), after_poll_s and
        bare_after_poll_s (medians over sites, from the node's asking to the answer at the server),
        work_s, overhead_s (median over
        turns: what is after the asking and not the site's work, less that of bare Flower in the
            same turn); base_loads by site;
        loading (import_s, load_s of a fresh process, messages, saved_s); bytes (of a round by the
        formula and as they travelled; of the whole run, tensors and what Flower counted); wait_s;
        sites; flower (its version).

    Raises:
        ConfigError: no Flower that is known, a folder that is not empty, a path too long for local
            sockets.
        AulaitError: a process failed.
    """
    version = supported.supported()
    require(out is None or not out.exists() or not any(out.iterdir()), ConfigError,
            f"folder {out} is not empty; choose another --out")
    folder = out.absolute() if out is not None else Path(tempfile.mkdtemp(prefix="aulait-"))
    names = NAMES[: sizes.sites]
    rows = {name: [{"text": f"Return the {k}th line of the file of {name}."} for k in range(4)]
            for name in names}
    try:
        with laid_out(folder, rows) as loopback, _ours(loopback, sizes) as (ours, link, number):
            with bare(loopback, folder / "bare") as (plain,
                    plain_logs), _watching(_logs(loopback) | _prefixed(plain_logs)) as seen:
                formula = ours.ready()
                plain.ready()
                rounds = _turns(ours, plain, formula, sizes)
            loads = {name: int((worker.running(site_file.read(path)) or {}).get("loads", -1))
                     for name, path in loopback.sites.items()}
            ours.end()
            traffic = link.control.traffic(number)
            works = {name: _works(path) for name, path in loopback.sites.items()}
        return _document(rounds, seen, works, sizes) | {
            "base_loads": loads,
            "loading": _loading(sizes.loads,
                                len(names) * sum(len(own["aulait"]) for own in rounds.values())),
            "bytes": _bytes(rounds, formula, traffic), "sites": len(names), "flower": version}
    finally:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ours(loopback: Loopback, sizes: Sizes) -> Iterator[tuple[Turns, serving.SuperLinkProcess,
        int]]:
    """A SuperLink with the benchmark's server app, and sites that have joined."""
    folder = loopback.folder
    (folder / "experiments").mkdir()
    for name, table in {"small": {"rank": 2, "targets": "attention"},
                        "large": {"rank": sizes.rank, "targets": "all-linear"}}.items():
        (folder / "experiments" / f"{name}.toml").write_text(tomli_w.dumps(_experiment(name, table,
            folder)), encoding="utf-8")
    with serving.start_link(loopback.keys, folder / "serve", "127.0.0.1", loopback.port) as link:
        link.register(keys.roster(loopback.keys))
        for name in loopback.sites:
            loopback.join(name)
        app = supported.app_folder(folder / "serve" / "app")
        (app / "server_app.py").write_text(_APP, encoding="utf-8")
        turns = Turns(folder / "turns", link.log)
        number = link.submit(app, {"experiment": str(folder / "experiments"),
                                   "out": str(folder / "turns"), "keys": str(loopback.keys)})
        yield turns, link, number


def _experiment(name: str, adapter: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    # the coordinator reads no record; the experiment names a source all the same
    everything = folder / "everything.jsonl"
    everything.write_text('{"client": "x", "text": "unused"}\n', encoding="utf-8")
    return {"run": {"name": f"bench-{name}"}, "model": {"name": "brew", "context": 16,
        "device": "cpu"}, "adapter": dict(adapter),
            "data": {"source": str(everything), "holdout": 0.0, "too_long": "cut"},
            "federation": {"tier": [{"name": "site", "placement": "local"}]},
            "algorithm": {"name": "fedit"},
            "train": {"rounds": 500, "steps": 1, "batch": 1}, "privacy": {"off": True},
            "engine": {"name": "flower", "threads": 1, "deadline_s": 300.0}}


def _turns(ours: Turns, plain: Turns, formula: Mapping[str, Any], sizes: Sizes) -> dict[str,
        dict[str, list[dict[str, Any]]]]:
    """size -> who -> exchanges; the first small one of each is set aside under "first"."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for size, count in (("small", sizes.small), ("large", sizes.large)):
        own = found[size] = {"aulait": [], "bare": [], "first": []}
        for turn in range(count + (size == "small")):
            order = ("aulait", "bare") if turn % 2 == 0 else ("bare", "aulait")
            for who in order:
                told = (
                    ours.ask(size=size) if who == "aulait"
                    else plain.ask(bytes=formula[size]["down"])
                )
                if turn or size != "small":
                    own[who].append(told)
                elif who == "aulait":
                    own["first"].append(told)
    return found


def _logs(loopback: Loopback) -> dict[str, Path]:
    return {name: site_file.read(path).site.state / "supernode.log"
            for name, path in loopback.sites.items()}


def _prefixed(logs: Mapping[str, Path]) -> dict[str, Path]:
    return {f"bare {name}": path for name, path in logs.items()}


@contextlib.contextmanager
def _watching(logs: Mapping[str, Path]) -> Iterator[dict[str, tuple[str, list[float]]]]:
    """Node number -> whose it is and when it asked for its messages, as its log tells while the
    block runs."""
    found: dict[str, tuple[str, list[float]]] = {}
    stop = threading.Event()

    def watch() -> None:
        at, node = dict.fromkeys(logs, 0), dict[str, str]()
        while not stop.wait(_TAIL_S):
            for name, path in logs.items():
                if not path.exists() or path.stat().st_size == at[name]:
                    continue
                now = time.time()
                with path.open("rb") as file:
                    file.seek(at[name])
                    read = file.read()
                whole = read[: read.rfind(b"\n") + 1]
                at[name] += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    if "SuperNode ID: " in line:
                        node[name] = line.rpartition(" ")[2].strip()
                        found.setdefault(node[name], (name, []))
                    elif "Receiving: " in line and name in node:
                        found[node[name]][1].append(now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _works(path: Path) -> list[tuple[float, float]]:
    """When a site's worker began and ended the work of its orders, by its own log."""
    found, began = [], 0.0
    for text in (site_file.read(path).site.state / "log.jsonl").read_text(
        encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["event"] == "asked":
            began = datetime.fromisoformat(line["time"]).timestamp()
        elif line["event"] == "answered":
            found.append((began, datetime.fromisoformat(line["time"]).timestamp()))
    return found


def _document(
    rounds: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    seen: Mapping[str, tuple[str, list[float]]],
    works: Mapping[str, Sequence[tuple[float, float]]], sizes: Sizes,
) -> dict[str, Any]:
    """Medians of both sizes."""
    found: dict[str, Any] = {}
    waits: list[float] = []
    for size, own in rounds.items():
        parts = {who: [[_part(letter, seen, works) for letter in told["letters"]]
                       for told in own[who]] for who in ("aulait", "bare")}
        flat = {who: [part for exchange in each for part in exchange]
                for who, each in parts.items()}
        waits += [wait for each in flat.values() for wait, _, _ in each]
        beyond = {who: [statistics.fmean(rest - work for _, rest, work in exchange)
                        for exchange in each] for who, each in parts.items()}
        whole = {who: [told["ended"] - told["began"] for told in own[who]]
                 for who in ("aulait", "bare")}
        found[size] = {
            "bytes": own["aulait"][0]["sent_bytes"] // sizes.sites, "exchanges": len(own["aulait"]),
            "aulait_s": statistics.median(whole["aulait"]),
            "bare_s": statistics.median(whole["bare"]),
            "after_poll_s": statistics.median(rest for _, rest, _ in flat["aulait"]),
            "bare_after_poll_s": statistics.median(rest for _, rest, _ in flat["bare"]),
            "work_s": statistics.median(work for _, _, work in flat["aulait"]),
            "overhead_s": statistics.median(a - b for a, b in zip(beyond["aulait"], beyond["bare"],
                strict=True)),
            "each": whole, "each_beyond_work": beyond}
    return {**found, "wait_s": statistics.median(waits)}


def _part(
    letter: Mapping[str, Any], seen: Mapping[str, tuple[str, list[float]]],
    works: Mapping[str, Sequence[tuple[float, float]]]
) -> tuple[float, float, float]:
    """Seconds until the node asked, from there to the answer, and of the site's own work in it.

    Raises:
        AulaitError: the logs do not tell.
    """
    name, times = seen.get(str(letter["node"]), ("", []))
    asked = next((at for at in times if letter["sent"] <= at <= letter["heard"]), None)
    if asked is None:
        raise AulaitError(
            f"the log of node {letter['node']} does not tell when it asked for a message; see "
            "logs/")
    work = sum(end - begin for begin, end in works.get(name, ()) if letter["sent"] <= begin
               and end <= letter["heard"])
    return asked - letter["sent"], letter["heard"] - asked, work


def _loading(times: int, messages: int) -> dict[str, Any]:
    """What every message would pay if its process loaded the base: measured in fresh processes."""
    words = [sys.executable, "-c", _LOAD]
    try:
        found = [json.loads(subprocess.run(words, capture_output=True, text=True, check=True,
            timeout=_LOAD_S).stdout.splitlines()[-1])
                 for _ in range(times)]
    except subprocess.SubprocessError as error:
        raise AulaitError(f"a fresh process did not load the base ({error})") from error
    imports, load = (statistics.median(each[part] for each in found) for part in (0, 1))
    return {"import_s": imports, "load_s": load, "messages": messages,
            "saved_s": (imports + load) * messages}


def _bytes(rounds: Mapping[str, Any], formula: Mapping[str, Any],
           traffic: tuple[int, int]) -> dict[str, Any]:
    """A round's bytes by the method's formula and as they travelled; of the whole run, those of
    tensors and what Flower counted."""
    found: dict[str, Any] = {}
    for size, own in rounds.items():
        sites = len(own["aulait"][0]["letters"])
        found[size] = {"formula_down": sites * formula[size]["down"],
                       "formula_up": sites * formula[size]["up"],
                       "down": statistics.median(told["sent_bytes"] for told in own["aulait"]),
                       "up": statistics.median(told["received_bytes"] for told in own["aulait"])}
    told = [each for own in rounds.values() for who in ("first", "aulait") for each in own[who]]
    bodies = {"bodies_down": sum(each["sent_bytes"] for each in told),
              "bodies_up": sum(each["received_bytes"] for each in told)}
    return {**found, **bodies, "flower_down": traffic[0], "flower_up": traffic[1]}
