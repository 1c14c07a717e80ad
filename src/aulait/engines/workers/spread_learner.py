"""A learner whose passes are trained, and whose units are summed, by several workers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aulait.core.errors import DataError, require
from aulait.core.types import Record
from aulait.engines.workers.contract import TrainWorker, WorkerShare
from aulait.engines.workers.dealing import dealt, divided
from aulait.training.trainer import Advance, Learner, LocalTraining, Trained
from aulait.training.unit_sums import UnitSum, UnitSumWork, check_sum


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
            worker.begin(WorkerShare([[training[i] for i in members] for members in share]))
        done: dict[int, Trained] = {}
        for worker, share in busy:
            for members, found in zip(share, worker.finished().trained, strict=True):
                done.update(zip(members, found, strict=True))
                if advance is not None:
                    advance(len(members))
        return [done[i] for i in range(len(training))]

    def unit_sums(self, asked: Sequence[UnitSumWork]) -> list[UnitSum]:
        """The sums, in the order of what was asked; where there is noise they are those of one
        process, to the last bit.

        The units of one step are divided only where workers would be idle otherwise. What a worker
        gives is checked against the bound and the grid before it is added.

        Raises:
            DeviceError: a worker is gone, or could not do it.
            PrivacyError: what a worker gives is no sum of clipped gradients.
        """
        places = [(number, unit) for number, own in enumerate(asked) for unit in own.units]
        steps: dict[int, list[int]] = {}
        for place, (number, _) in enumerate(places):
            steps.setdefault(number, []).append(place)

        def cost(members: Sequence[int]) -> float:
            """Tokens of these units."""
            return sum(self._tokens(places[i][1]) for i in members)

        workers = self._workers()
        shares = dealt(divided(list(steps.values()), cost, len(workers)), cost, len(workers))
        busy = []
        for worker, share in zip(workers, shares, strict=True):
            if share:
                works = [asked[places[own[0]][0]].of([places[i][1] for i in own]) for own in share]
                worker.begin(WorkerShare(sums=works))
                busy.append((worker, share, works))
        found = [own.empty() for own in asked]
        for worker, share, works in busy:
            for own, work, part in zip(share, works, worker.finished().sums, strict=True):
                check_sum(work, part)
                number = places[own[0]][0]
                found[number] = found[number].and_of(part)
        return found

    def _tokens(self, records: Sequence[Record]) -> int:
        """Of all these records."""
        return sum(self.lengths(records))
