"""``aulait bench scale``: what many registered clients cost, on one machine.

A run of its own for each number of clients, in a fresh process: a file of made-up texts, a tiny
model with random weights, client-level privacy, phones of which a cohort of the same expected size
trains in every round under the virtual clock. What grows from the few to the many is what a
registered client costs that does not take part.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from aulait.core.files import JsonObject
from aulait.engines.inline import InlineEngine
from aulait.models.named import folder_of
from aulait.resources.meters import peak_of_process
from aulait.runs.experiment_file import build_settings
from aulait.runs.loop import run
from aulait.runs.progress import Observer

WORDS = ("read", "write", "open", "close", "file", "line", "name", "value", "list", "sum", "mean")


@dataclass(frozen=True)
class Scale:
    """A federation of made-up clients.

    Attributes:
        clients: registered.
        cohort: expected to train in a round.
        rounds: of stage 2.
        records: texts of a client.
    """

    clients: int
    cohort: int = 1_000
    rounds: int = 10
    records: int = 2


FULL = (Scale(1_000), Scale(10_000), Scale(100_000))
QUICK = (Scale(200, 50, 2), Scale(2_000, 50, 2))


def measure(scales: tuple[Scale, ...]) -> JsonObject:
    """Every scale in a process of its own, and how the last stands beside the first."""
    cases = [_apart(scale) for scale in scales]
    few, many = cases[0], cases[-1]
    more = many["clients"] - few["clients"]
    return {
        "cases": cases, "threads": torch.get_num_threads(),
        "setup_s": many["setup_s"], "round_s": many["round_s"],
        "peak_bytes": many["peak_bytes"], "peak_ratio": many["peak_bytes"] / few["peak_bytes"],
        "bytes_per_client": (many["peak_bytes"] - few["peak_bytes"]) / more,
        "setup_s_per_client": (many["setup_s"] - few["setup_s"]) / more,
    }


def _apart(scale: Scale) -> JsonObject:
    """``here`` in a process of its own, whose peak of memory is its own."""
    place = str(Path(__file__).resolve().parents[1])
    script = (f"import sys; sys.path.insert(0, {place!r}); import json; "
              "from aulait_benchmarks.scale import Scale, here; "
              f"print(json.dumps(here(Scale(**{asdict(scale)!r}))))")
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                          check=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"})
    found: JsonObject = json.loads(done.stdout.splitlines()[-1])
    return found


def here(scale: Scale) -> JsonObject:
    """One run in this process: seconds, memory, and what each round adds to the run folder."""
    with tempfile.TemporaryDirectory() as place:
        folder, stopwatch = Path(place), _Stopwatch()
        with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(_rows(scale))
        _write_model(folder / "model")
        spent_s = time.process_time()
        run(build_settings(_experiment(scale, folder)), folder / "run", InlineEngine(),
            observer=Observer(watch=stopwatch.watch))
        lines = [line for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()
                 if json.loads(line).get("stage") == "train"]
        ledger = (folder / "run" / "ledger.jsonl").read_text().splitlines()
    return asdict(scale) | {
        "setup_s": stopwatch.setup_s, "setup_processor_s": stopwatch.setup_processor_s,
        "round_s": stopwatch.rounds_s / scale.rounds,
        "processor_s": time.process_time() - spent_s, "peak_bytes": peak_of_process(),
        "round_bytes": max(map(len, lines)), "ledger_bytes": max(map(len, ledger))}


class _Stopwatch:
    """Hears of a run how long its set-up and its rounds took."""

    def __init__(self) -> None:
        self._started, self._processor_s = time.perf_counter(), time.process_time()
        self.setup_s = self.setup_processor_s = self.rounds_s = 0.0

    def watch(self, stage: str, done: int, of: int, note: str) -> None:
        """As ``Observer.watch``."""
        spent_s = time.perf_counter() - self._started
        if stage == "prepare" and done == of:
            self.setup_s = spent_s
            self.setup_processor_s = time.process_time() - self._processor_s
        elif stage == "train" and done == of:
            self.rounds_s = spent_s - self.setup_s


def _rows(scale: Scale) -> Iterator[str]:
    """The file of texts, client by client; every text is another one."""
    for client in range(scale.clients):
        for record in range(scale.records):
            number = client * scale.records + record
            words = " ".join(WORDS[number // 11**place % 11] for place in range(7))
            yield json.dumps({"client": f"c{client:07d}", "text": words}) + "\n"


def _write_model(folder: Path) -> None:
    """A decoder of one narrow block with brew's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("brew"))
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _experiment(scale: Scale, folder: Path) -> JsonObject:
    return {
        "run": {"name": "scale"},
        "model": {"name": str(folder / "model"), "context": 16, "device": "cpu",
                  "dtype": "float32"},
        "adapter": {"rank": 2, "targets": ["q_proj", "v_proj"]},
        "data": {"source": str(folder / "data.jsonl"), "client": "client", "holdout": 0.0,
                 "min_records": 1},
        "federation": {"tier": [{"name": "phones", "placement": "local", "machine": "phone"}],
                       "sampling": "poisson", "rate": scale.cohort / scale.clients},
        "algorithm": {"name": "ffa"},
        "train": {"rounds": scale.rounds, "steps": 1, "batch": scale.records, "rows_at_once": 64},
        "privacy": {"epsilon": 8.0, "delta": 1e-7, "relation": "add-remove", "clip": 0.1},
        "evaluate": {"every": scale.rounds},
    }
