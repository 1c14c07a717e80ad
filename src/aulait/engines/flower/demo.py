"""The demonstration of a deployment: a server and five sites as real processes over TLS, and beside
it the same run in one process.

Two sites train, two vote, one holds the front of a split model. Afterwards both adapters and both
results are compared.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from safetensors.torch import load_file

from aulait.core.errors import AulaitError, require
from aulait.core.files import JsonMapping, JsonObject
from aulait.core.seeds import Seeds
from aulait.data import client_data
from aulait.engines.deployment.coordinator.event_log import read_table
from aulait.engines.deployment.site import site_file, worker
from aulait.engines.deployment.site.site_log import Say
from aulait.engines.flower.loopback import Loopback, laid_out
from aulait.engines.inline import InlineEngine
from aulait.runfolder.run_folder import read_result
from aulait.runs import experiment_file, loop

SITES = {"ward-a": "local", "ward-b": "local", "clinic-c": "proxy", "clinic-d": "proxy",
         "edge-e": "split"}
LIMIT_S = 900.0


@dataclass(frozen=True)
class Compared:
    """What came of both runs.

    Attributes:
        difference: largest difference of a number of the two adapters.
        differing: what else the two runs do not agree on: "scores", "traffic", "synthetic texts";
            empty where they do.
        loss, loss_inline: held-out loss, nats a token.
        seconds, seconds_inline: wall time of the runs.
        loads: site -> how often it loaded the base.
    """

    difference: float
    differing: tuple[str, ...]
    loss: float
    loss_inline: float
    seconds: float
    seconds_inline: float
    loads: dict[str, int]

    @property
    def same(self) -> bool:
        """Whether the adapters agree to 1e-5, and the rest too."""
        return self.difference <= 1e-5 and not self.differing


def demonstrate(folder: Path, say: Say, *, small: bool = False) -> Compared:
    """Lay everything out in a new folder, run both, compare.

    Args:
        folder: for keys, sites, data and both runs ("deployed", "inline").
        say: told what happens, a line at a time.
        small: fewer rounds and records, for tests.

    Raises:
        AulaitError: a process failed; its log says why.
    """
    rows = _rows(6 if small else 20)
    everything = folder / "all.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    everything.write_text("".join(json.dumps(row) + "\n" for own in rows.values() for row in own),
                          encoding="utf-8")
    experiment = folder / "experiment.toml"
    experiment.write_text(tomli_w.dumps(_experiment(everything, small)), encoding="utf-8")
    roles = {name: {"roles": ["local", "proxy", "split"] if role == "split" else [role]}
             for name, role in SITES.items()}
    with laid_out(folder, rows, roles) as loopback:
        say(f"keys, certificate and {len(rows)} sites in {folder}; the server listens on "
            f"127.0.0.1:{loopback.port}")
        for name in rows:
            loopback.join(name)
            say(f"site '{name}' is there ({SITES[name]})")
        began = time.perf_counter()
        _served(loopback, experiment, folder / "deployed", say)
        seconds = time.perf_counter() - began
        loads = _loads(loopback)
    say("the same run in one process ...")
    began = time.perf_counter()
    here = loop.run(experiment_file.read_settings(experiment), folder / "inline", InlineEngine())
    seconds_inline = time.perf_counter() - began
    away = read_result(folder / "deployed" / "result.json")
    losses = away["eval"]["loss"], here["eval"]["loss"]
    return Compared(_difference(folder), _differing(folder, away, here), *losses, seconds,
                    seconds_inline, loads)


def _rows(records: int) -> dict[str, list[JsonObject]]:
    """Built-in texts of five clients under the names of the five sites."""
    corpus = client_data.load_clients(client_data.DataConfig(records_per_client=records,
        holdout=0.0),
                              Seeds(0))
    clients = [client for client in corpus.clients.values()
               if len(client.train) == records][: len(SITES)]
    return {name: [{"client": name, "text": record.text} for record in client.train]
            for name, client in zip(SITES, clients, strict=True)}


def _experiment(everything: Path, small: bool) -> JsonObject:
    tiers = [{"name": role, "placement": role, "clients": [name for name, own in SITES.items()
        if own == role]}
             for role in ("local", "proxy", "split")]
    return {
        "run": {"name": "deploy-demo", "seed": 0},
        "model": {"name": "brew", "context": 32 if small else 96, "device": "cpu"},
        "adapter": {"rank": 2 if small else 4, "targets": "attention"},
        "data": {"source": str(everything), "records_per_client": 16, "holdout": 0.2,
                 "too_long": "cut"},
        "federation": {"tier": tiers},
        "compute": {"cut": 2},
        "synthesis": {"rounds": 1 if small else 3, "candidates": 8, "variations": 1, "texts": 12
                      if small else 40, "proxy_count": 2,
                      "generate": {"max_tokens": 16, "min_words": 1}},
        "algorithm": {"name": "fedit"},
        "train": {"rounds": 2 if small else 4, "steps": 2, "batch": 4, "lr": 3e-3,
                  "rows_at_once": 4},
        "evaluate": {"every": 2 if small else 1},
        "privacy": {"off": True},
        "engine": {"threads": 1, "wait_s": 120.0, "deadline_s": 300.0, "least_sites": len(SITES)},
    }


def _served(loopback: Loopback, experiment: Path, out: Path, say: Say) -> None:
    process, told = loopback.serve(experiment, out), ""
    until = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < until:
        now = read_table(out / "serve" / "progress.json")
        line = (
            f"{now.get('stage', 'start')} {now.get('done', 0)}/{now.get('total', 0)} "
            f"{now.get('note', '')}".rstrip()
        )
        if line != told:
            told = line
            say(f"  {line}")
        time.sleep(0.5)
    try:
        code = loopback.finished(1.0)
    except subprocess.TimeoutExpired:
        code = None
    ended = "did not end in time" if code is None else f"ended with {code}"
    require(code == 0, AulaitError, f"the server {ended}; see {loopback.log('server')}")


def _loads(loopback: Loopback) -> dict[str, int]:
    """Site -> how often its worker loaded the base; -1 where none answers."""
    return {name: int((worker.running(site_file.read(path)) or {}).get("loads", -1))
            for name, path in loopback.sites.items()}


def _differing(folder: Path, away: JsonMapping, here: JsonMapping) -> tuple[str, ...]:
    """What the reports are made of, beside the adapters."""
    scores = ((away[when][key], here[when][key]) for when in ("base_eval", "eval")
              for key in ("loss", "token_accuracy", "worst_client_loss", "mean_client_loss",
                          "tokens"))
    texts = [(folder / run / "synthetic.jsonl").read_bytes() for run in ("deployed", "inline")]
    same = {"scores": all(math.isclose(one, two, rel_tol=1e-5) for one, two in scores),
            "traffic": away["traffic"] == here["traffic"],
            "synthetic texts": texts[0] == texts[1]}
    return tuple(name for name, agrees in same.items() if not agrees)


def _difference(folder: Path) -> float:
    one, two = (load_file(folder / run / "adapter" / "adapter_model.safetensors")
                for run in ("deployed", "inline"))
    require(one.keys() == two.keys(), AulaitError, "the two adapters have different layers")
    return max(float((one[name] - two[name]).abs().max()) for name in one)
