"""The workers of a run: opened when clients are first asked, closed when the run is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from aulait.core.registry import Registry
from aulait.engines.workers.contract import TrainWorker, WorkerSetup
from aulait.engines.workers.spread_learner import SpreadLearner
from aulait.models.fingerprint import fingerprint
from aulait.runs.experiment_file import EngineConfig
from aulait.runs.prepared import PreparedRun
from aulait.training.trainer import Learner

OpenWorkers = Callable[[EngineConfig, WorkerSetup, Learner], Sequence[TrainWorker]]
# engine -> what opens its workers; imported when it is asked for, as Ray is an extra
OPENERS: Final[Registry[OpenWorkers]] = Registry("workers", {
    name: f"aulait.engines.workers.{module}:open_workers"
    for name, module in (("inline", "processes"), ("flower", "processes"), ("ray", "ray_cluster"))})


class WorkerPool:
    """The workers of one run at a time; none until there is something to train."""

    def __init__(self) -> None:
        self._workers: Sequence[TrainWorker] = ()

    def learner(self, run: PreparedRun) -> Learner:
        """What trains the sites of a run: its own learner, or one whose passes workers share."""
        config, own = run.settings.engine, run.models.learner
        if not config.spreads:
            return own

        def opened() -> Sequence[TrainWorker]:
            if not self._workers:
                opener = OPENERS.find(config.name)
                self._workers = opener(config, worker_setup(config, own), own)
            return self._workers

        return SpreadLearner(own, opened)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.close()
        self._workers = ()


def worker_setup(config: EngineConfig, learner: Learner) -> WorkerSetup:
    """What the workers of a run must know."""
    here = learner.base.device.type
    model = learner.base.config.model_copy(update={"device": here})
    dealt = 1 if config.name == "ray" else max(1, torch.get_num_threads() // config.workers)
    threads = config.threads or dealt
    return WorkerSetup(model, learner.config, learner.dropout, threads, fingerprint(learner.base))
