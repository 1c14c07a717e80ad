"""Workers on one machine: this process and others beside it, or one for each GPU."""

from __future__ import annotations

from dataclasses import replace

from aulait.engines.workers.contract import HereWorker, TrainWorker, WorkerSetup
from aulait.engines.workers.process_worker import ProcessWorker
from aulait.runs.experiment_file import EngineConfig
from aulait.training.trainer import Learner


def open_workers(config: EngineConfig, setup: WorkerSetup, learner: Learner) -> list[TrainWorker]:
    """This process and ``config.workers - 1`` others, all ready.

    Args:
        config: how many.
        setup: what they must know.
        learner: of this process.

    Raises:
        AulaitError: a process cannot load the base.
    """
    count = config.workers
    others: list[ProcessWorker] = []
    try:
        for number, device in enumerate(devices(learner.base.device.type, count)[1:], start=2):
            model = setup.model.model_copy(update={"device": device})
            others.append(ProcessWorker(replace(setup, model=model), f"{number} of {count}"))
        for other in others:
            other.ready()
    except BaseException:
        for other in others:
            other.close()
        raise
    return [HereWorker(learner, setup.threads), *others]


def devices(kind: str, count: int) -> list[str]:
    """The device of every worker: the processor for all of them, or a GPU each."""
    return [f"cuda:{number}" for number in range(count)] if kind == "cuda" else [kind] * count
