"""A learner whose passes are trained by several workers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aulait.core.errors import DataError, require
from aulait.engines.workers.contract import TrainWorker
from aulait.engines.workers.dealing import dealt, divided
from aulait.training.trainer import Advance, Learner, LocalTraining, Trained


class SpreadLearner(Learner):
    """As ``Learner``; results are in the order given, whoever trained them, and equal those of one
    process to rounding.

    Args:
        learner: of this process; whose base, settings and encoded records it takes.
        workers: gives those who train, when there is something to train; every one of them holds
            the same base.
    """

    def __init__(self, learner: Learner, workers: Callable[[], Sequence[TrainWorker]]) -> None:
        self.base, self.config, self.encode = learner.base, learner.config, learner.encode
        self.dropout = learner.dropout
        self._workers = workers

    def train(self, training: Sequence[LocalTraining],
              advance: Advance | None = None) -> list[Trained]:
        """As ``Learner.train``.

        Raises:
            DataError: a site has no records.
            DeviceError: a worker is gone, or could not train its share.
        """
        for own in training:
            require(bool(own.records), DataError,
                    "a site has no records to train on; give it some or leave it out")

        def cost(members: Sequence[int]) -> float:
            """Tokens that a pass reads, about."""
            return sum(training[i].steps * training[i].batch * self._mean_length(training[i])
                       for i in members)

        workers = self._workers()
        shares = dealt(divided(self.passes(training), cost, len(workers)), cost, len(workers))
        busy = [(worker, share) for worker, share in zip(workers, shares, strict=True) if share]
        for worker, share in busy:
            worker.begin([[training[i] for i in members] for members in share])
        done: dict[int, Trained] = {}
        for worker, share in busy:
            for members, found in zip(share, worker.finished(), strict=True):
                done.update(zip(members, found, strict=True))
                if advance is not None:
                    advance(len(members))
        return [done[i] for i in range(len(training))]
