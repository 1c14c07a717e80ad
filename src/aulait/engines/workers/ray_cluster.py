"""Workers on a Ray cluster, an actor each: many machines, or one.

An actor holds one base for as long as the run lasts, and Ray places it where there is room: a GPU
each where the base is on one, else as many processors as the arithmetic has threads. The run's own
process, which need not have a GPU, trains nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast

import ray
from ray.exceptions import GetTimeoutError, RayError

from aulait.core.errors import ConfigError, DeviceError
from aulait.engines.workers.contract import (
    ShareResult,
    TrainWorker,
    WorkerSetup,
    WorkerShare,
    carried_out,
    loaded,
)
from aulait.engines.workers.messages import WorkerReply, packed, unpacked
from aulait.runs.experiment_file import EngineConfig
from aulait.training.trainer import Learner

PLACED_S = 600.0  # within which a cluster with room for them has placed all workers


class RayActor:
    """What runs on the cluster."""

    def __init__(self) -> None:
        self._learner: Learner | None = None

    def node(self) -> str:
        """Where it was placed."""
        return str(ray.get_runtime_context().get_node_id())

    def load(self, setup: bytes) -> bytes:
        """Load the base."""
        try:
            self._learner = loaded(cast(WorkerSetup, unpacked(setup)))
            return packed(WorkerReply())
        except Exception as error:  # told to the run, which ends with it
            return packed(WorkerReply.failed(error))

    def train(self, share: bytes) -> bytes:
        """Do a share."""
        try:
            assert self._learner is not None
            done = carried_out(self._learner, cast(WorkerShare, unpacked(share)))
            return packed(WorkerReply(done))
        except Exception as error:  # told to the run, which ends with it
            return packed(WorkerReply.failed(error))


class RemoteMethod(Protocol):
    """A method of an actor, as it is called from elsewhere."""

    def remote(self, *given: bytes) -> ray.ObjectRef[bytes]:
        """Begin it; the reply can be waited for."""


class RemoteActor(Protocol):
    """An actor, as it is seen from elsewhere."""

    node: RemoteMethod
    load: RemoteMethod
    train: RemoteMethod


class RayWorker:
    """An actor that holds a base.

    Args:
        actor: placed on the cluster, or about to be.
        label: which of the workers it is, as "2 of 4"; for messages.
    """

    def __init__(self, actor: RemoteActor, label: str) -> None:
        self.actor, self._label = actor, label
        self._reply: ray.ObjectRef[bytes] | None = None

    def load(self, setup: WorkerSetup) -> None:
        """Begin to load the base; ``finished`` waits for it."""
        self._reply = self.actor.load.remote(packed(setup))

    def begin(self, share: WorkerShare) -> None:
        """Send the share."""
        self._reply = self.actor.train.remote(packed(share))

    def finished(self) -> ShareResult:
        """Wait for the reply.

        Raises:
            DeviceError: the actor or its node is gone, or could not do it.
        """
        assert self._reply is not None
        try:
            reply = cast(WorkerReply, unpacked(ray.get(self._reply)))
        except RayError as error:
            raise DeviceError(
                f"worker {self._label} of the Ray cluster is gone in the middle of the run "
                f"({type(error).__name__}), expected it to live as long; nothing on disk is lost: "
                "go on with --resume") from error
        if reply.error is not None:
            raise reply.error
        return reply.result

    def close(self) -> None:
        """End the actor."""
        with contextlib.suppress(RayError, ValueError):  # it is gone, or Ray is
            ray.kill(self.actor)


def open_workers(config: EngineConfig, setup: WorkerSetup,
                 learner: Learner) -> Sequence[TrainWorker]:
    """As many actors as asked for, all ready.

    Args:
        config: how many, and where the cluster is.
        setup: what they must know.
        learner: of this process, which trains nothing; its base says whether GPUs may be taken.

    Raises:
        ConfigError: there is no cluster at that address, or it has no room for all of them.
        AulaitError: a worker cannot load the base.
    """
    connect(config.address)
    # this process may be without a GPU where the cluster has some
    gpu = setup.model.device == "cuda" or (
        learner.base.config.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    device = {"device": "cuda" if gpu else setup.model.device}
    setup = replace(setup, model=setup.model.model_copy(update=device))
    check_room(config.workers, setup.threads, gpu)
    actor = ray.remote(RayActor).options(num_cpus=setup.threads, num_gpus=int(gpu))
    workers = [RayWorker(actor.remote(), f"{number} of {config.workers}")
               for number in range(1, config.workers + 1)]
    try:
        ray.get([worker.actor.node.remote() for worker in workers], timeout=PLACED_S)
        for worker in workers:
            worker.load(setup)
        for worker in workers:
            worker.finished()
    except GetTimeoutError as error:
        _end(workers)
        raise DeviceError(
            f"the Ray cluster has not placed {config.workers} workers within {PLACED_S:g} s, "
            "expected free processors for all of them; wait until other work has ended, or lower "
            "engine.workers, then go on with --resume") from error
    except BaseException:
        _end(workers)
        raise
    return workers


def check_room(workers: int, threads: int, gpu: bool) -> None:
    """Raise unless the nodes of the cluster are large enough for all workers, were they empty.

    Raises:
        ConfigError: they are not.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(most_on(node, threads, gpu) for node in nodes)
    if room < workers:
        has = "; ".join(f"{node.get('CPU', 0):g} processors and {node.get('GPU', 0):g} GPUs"
                        for node in nodes)
        raise ConfigError(
            f"engine.workers = {workers} found, each with {threads} "
            f"processor{'' if threads == 1 else 's'}{' and a GPU' if gpu else ''}, and the Ray "
            f"cluster has room for {room} ({has}); lower engine.workers or engine.threads")


def most_on(node: Mapping[str, float], threads: int, gpu: bool) -> int:
    """How many workers fit on a node with these resources."""
    processors = int(node.get("CPU", 0) // threads)
    return min(processors, int(node.get("GPU", 0))) if gpu else processors


def connect(address: str | None) -> None:
    """Join the cluster, or start one on this machine; this process may be joined already.

    Raises:
        ConfigError: nothing answers there.
    """
    if ray.is_initialized():
        return
    # a warning of Ray's about a change to come, of no concern here: devices are named
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR,
                 include_dashboard=None if address else False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            f"engine.address = '{address}' found, and no Ray cluster can be joined there ({said}); "
            "expected HOST:PORT of its head, 'auto', or nothing for one on this machine") from error


def _end(workers: Sequence[RayWorker]) -> None:
    for worker in workers:
        worker.close()
