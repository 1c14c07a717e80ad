"""Processor seconds of a round with several numbers of workers on this machine (docs/log.md).

    OMP_NUM_THREADS=1 python scripts/measure_workers.py 1 2 4
    OMP_NUM_THREADS=1 python scripts/measure_workers.py --records 1 2

A round of `fedit` on brew, 16 clients of four steps of four texts; with --records the steps of
DP-SGD of as many clients. Processor time is told, as the
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

from aulait.core.cohort import everyone
from aulait.core.factors import Trainable
from aulait.core.lora import initial
from aulait.engines.workers.pool import WorkerPool
from aulait.engines.workers.process_worker import ProcessWorker
from aulait.privacy.record_level import DP_SGD, SiteNoise
from aulait.runs.prepared import PreparedRun, SharedCache
from aulait.training.private_learner import RecordLearner
from aulait_benchmarks.simulate import Workload, federated, prepared, site_work

REPETITIONS = 5


def processor_s(process: int) -> float:
    """Processor seconds that a process has taken, all its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def trained(run: PreparedRun, records: bool) -> None:
    """One round."""
    if not records:
        federated(run, 1)
        return
    context = run.context
    start = initial(context.shapes, context.rank, context.alpha, context.seeds)
    noise = SiteNoise(mechanism=DP_SGD, clip=1.0, sigma=1.0, most_rate=1.0, most_steps=4,
                      noise_seed=1)
    names = everyone(run.federation.trainers)
    RecordLearner(run.models.learner, noise).train(
        [site_work(run, name, start, Trainable.AB, 1) for name in names])


def main() -> None:
    torch.set_num_threads(1)
    run = prepared(Workload(), SharedCache())
    records = "--records" in sys.argv
    for count in [int(own) for own in sys.argv[1:] if own != "--records"] or [1, 2]:
        engine = run.settings.engine.model_copy(update={"workers": count, "threads": 1})
        asked = replace(run, settings=run.settings.model_copy(update={"engine": engine}))
        pool = WorkerPool()
        learner = pool.learner(asked)
        asked = replace(asked, models=replace(asked.models, learner=learner))
        begun = time.process_time()
        trained(asked, records)  # starts the workers and warms all of them up
        others = [own.process.pid for own in pool._workers if isinstance(own, ProcessWorker)]
        ready = [time.process_time() - begun, *map(processor_s, others)]
        rows = []
        for _ in range(REPETITIONS):
            before = [time.process_time(), *map(processor_s, others)]
            trained(asked, records)
            after = [time.process_time(), *map(processor_s, others)]
            rows.append([b - a for a, b in zip(before, after, strict=True)])
        pool.close()
        busiest = statistics.median(max(row) for row in rows)
        whole = statistics.median(sum(row) for row in rows)
        print(f"{count} workers: busiest process {busiest:.2f} s a round, all {whole:.2f} s; "
              f"first round with start {', '.join(f'{own:.1f}' for own in ready)} s")


if __name__ == "__main__":
    main()
