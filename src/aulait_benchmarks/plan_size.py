"""``aulait bench plan``: what a plan takes on a file of many rows, in a process of its own.

The rows are made from the built-in texts: windows of 20 to 78 words, each with a number at its end
so that no two are the same, dealt at random to clients.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from aulait.core.files import JsonObject
from aulait.data import builtin
from aulait.resources.meters import peak_of_process
from aulait.runs.experiment_file import build_settings
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare


@dataclass(frozen=True)
class Sizes:
    """How many rows, and how many clients own them."""

    rows: int
    clients: int


FULL, QUICK = Sizes(740_920, 25_000), Sizes(60_000, 2_000)
_FEW = Sizes(2_000, 60)


def measure(sizes: Sizes) -> JsonObject:
    """Seconds and memory of a plan of so many rows, beside those of a plan of 2,000.

    Returns:
        rows, clients, file_bytes; few and many: seconds, processor_s and peak_bytes of the process
        up to the end of a plan of few rows and of one of many after it (the first imports the
        libraries and loads the base); processor_us_row and bytes_row: what a row adds; threads.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("few.jsonl", "many.jsonl")]
        for file, size in zip(files, (_FEW, sizes), strict=True):
            write_rows(file, size)
        place = str(Path(__file__).resolve().parents[1])
        script = (f"import sys; sys.path.insert(0, {place!r}); import json; "
                  "import aulait.cli.plan; from aulait_benchmarks.plan_size import here; "
                  f"print(json.dumps(here({[str(file) for file in files]})))")
        done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                              check=True)
        few, many = json.loads(done.stdout)
        size_bytes = files[1].stat().st_size
    return {"rows": sizes.rows, "clients": sizes.clients, "file_bytes": size_bytes, "few": few,
            "many": many,
            "processor_us_row": 1e6 * (many["processor_s"] - few["processor_s"]) / sizes.rows,
            "bytes_row": (many["peak_bytes"] - few["peak_bytes"]) / sizes.rows,
            "threads": torch.get_num_threads()}


def write_rows(file: Path, sizes: Sizes) -> None:
    """The rows of a made-up corpus, an object a line."""
    words = [word for row in (*builtin.docstrings(), *builtin.standard_library())
             for word in str(row["text"]).split()]
    dice = random.Random(0)  # nosec B311  # made-up rows
    with file.open("w", encoding="utf-8") as out:
        for number in range(sizes.rows):
            count = dice.randint(20, 78)
            at = dice.randrange(len(words) - count)
            out.write(json.dumps({"user": f"u{dice.randrange(sizes.clients)}", "date": "2024-01-01",
                                  "text": " ".join((*words[at : at + count], str(number)))},
                                 ensure_ascii=False) + "\n")


def here(files: list[str]) -> list[JsonObject]:
    """What this process has taken when the plan of each file is made, one after the other."""
    found: list[JsonObject] = []
    cache, started = SharedCache(), time.perf_counter()  # the base is loaded once
    for file in files:
        tree = {"run": {"name": "many"},
                "data": {"source": file, "client": "user", "public": "stdlib", "too_long": "drop"},
                "federation": {"tier": [{"name": "everyone", "placement": "local"}]},
                "privacy": {"off": True}}
        plan = summarise_plan(prepare(build_settings(tree), cache))
        found.append({"planned_clients": plan["clients"], "processor_s": time.process_time(),
                      "seconds": time.perf_counter() - started, "peak_bytes": peak_of_process()})
    return found
