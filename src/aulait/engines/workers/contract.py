"""What a worker is: it holds one base, is given passes of local training or units whose clipped
gradients are to be summed, and gives back what was trained or the sums.

This is the whole of what leaves the run's process and comes back: ``LocalTraining`` and
``UnitSumWork`` out, ``Trained`` and ``UnitSum`` in. Methods, the memory of sites, the aggregator,
draws and noise of private steps, and the ledger stay where they are, so that workers open no second
way around them. A worker is trusted as the simulation itself is: it reads the records of the sites
that it trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from aulait.core.errors import ModelError, require
from aulait.models.fingerprint import fingerprint
from aulait.models.loading import ModelConfig, load_base
from aulait.resources.devices import keep_freed_memory
from aulait.training.trainer import Learner, LocalTraining, TrainConfig, Trained
from aulait.training.unit_sums import UnitSum, UnitSumWork, sum_elsewhere


@dataclass(frozen=True)
class WorkerShare:
    """What one worker is to do.

    Attributes:
        passes: the sites of each train together.
        sums: units of steps that protect them.
    """

    passes: Sequence[Sequence[LocalTraining]] = ()
    sums: Sequence[UnitSumWork] = ()


@dataclass(frozen=True)
class ShareResult:
    """What a share came to.

    Attributes:
        trained: pass by pass.
        sums: one by one.
    """

    trained: list[list[Trained]] = field(default_factory=list)
    sums: list[UnitSum] = field(default_factory=list)


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker must know to train as the run's own process does.

    Attributes:
        model: what its base is loaded from, precision settled and device chosen.
        train: settings of the training.
        dropout: of the adapters.
        threads: processor threads of its arithmetic.
        fingerprint: that its base must have.
    """

    model: ModelConfig
    train: TrainConfig
    dropout: float
    threads: int
    fingerprint: str


class TrainWorker(Protocol):
    """Trains one share after the other."""

    def begin(self, share: WorkerShare) -> None:
        """Hand over a share; returns at once."""

    def finished(self) -> ShareResult:
        """Wait for what the share came to.

        Raises:
            DeviceError: the worker is gone, or could not do it.
        """

    def close(self) -> None:
        """End the worker; a second call does nothing."""


def loaded(setup: WorkerSetup) -> Learner:
    """The learner of a worker, with a base of its own.

    Raises:
        ModelError: the base cannot be loaded here, or is another one.
    """
    torch.set_num_threads(setup.threads)
    base = load_base(setup.model)
    if base.device.type == "cpu":
        keep_freed_memory()
    found = fingerprint(base)
    require(found == setup.fingerprint, ModelError,
            f"a worker loaded another base for model.name = '{setup.model.name}' (fingerprint "
            f"{found}), expected that of the run ({setup.fingerprint}); put the same files on "
            "every machine")
    return Learner(base, setup.train, setup.dropout)


def carried_out(learner: Learner, share: WorkerShare) -> ShareResult:
    """A share, done; the sites of a pass are few enough to be one for ``Learner.train``."""
    return ShareResult([learner.train(own) for own in share.passes],
                       [sum_elsewhere(learner, own) for own in share.sums])


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """So many threads for the arithmetic of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class HereWorker:
    """The run's own process as one of the workers: it trains when it is asked for the result, while
    the others are at work.

    Args:
        learner: of the run.
        threads: processor threads of the arithmetic while it trains.
    """

    def __init__(self, learner: Learner, threads: int) -> None:
        self._learner, self._threads = learner, threads
        self._share = WorkerShare()

    def begin(self, share: WorkerShare) -> None:
        """Keep the share for later."""
        self._share = share

    def finished(self) -> ShareResult:
        """Do it now."""
        with threads_of(self._threads):
            return carried_out(self._learner, self._share)

    def close(self) -> None:
        """Nothing to end."""
