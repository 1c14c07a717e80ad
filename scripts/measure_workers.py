"""Processor seconds of a round with several numbers of workers on this machine (docs/log.md).

    OMP_NUM_THREADS=1 python scripts/measure_workers.py 1 2 4

A round of `fedit` on brew, 16 clients of four steps of four texts. Processor time is told, as the
clock of a shared machine measures what others do. With a processor for each process a round takes
as long as the busiest of them. Linux only: processor times of other processes come from /proc.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from aulait.engines.workers.pool import WorkerPool
from aulait.engines.workers.process_worker import ProcessWorker
from aulait.runs.prepared import SharedCache
from aulait_benchmarks.simulate import Workload, federated, prepared

REPETITIONS = 5


def processor_s(process: int) -> float:
    """Processor seconds that a process has taken, all its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    torch.set_num_threads(1)
    run = prepared(Workload(), SharedCache())
    for count in map(int, sys.argv[1:] or ("1", "2")):
        engine = run.settings.engine.model_copy(update={"workers": count, "threads": 1})
        asked = replace(run, settings=run.settings.model_copy(update={"engine": engine}))
        pool = WorkerPool()
        learner = pool.learner(asked)
        asked = replace(asked, models=replace(asked.models, learner=learner))
        begun = time.process_time()
        federated(asked, 1)  # starts the workers and warms all of them up
        others = [own.process.pid for own in pool._workers if isinstance(own, ProcessWorker)]
        ready = [time.process_time() - begun, *map(processor_s, others)]
        rows = []
        for _ in range(REPETITIONS):
            before = [time.process_time(), *map(processor_s, others)]
            federated(asked, 1)
            after = [time.process_time(), *map(processor_s, others)]
            rows.append([b - a for a, b in zip(before, after, strict=True)])
        pool.close()
        busiest = statistics.median(max(row) for row in rows)
        whole = statistics.median(sum(row) for row in rows)
        print(f"{count} workers: busiest process {busiest:.2f} s a round, all {whole:.2f} s; "
              f"first round with start {', '.join(f'{own:.1f}' for own in ready)} s")


if __name__ == "__main__":
    main()
