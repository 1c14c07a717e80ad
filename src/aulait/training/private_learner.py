"""Training that protects single units, for methods that do not know of it.

A method trains its clients by ``Learner.train``. Under ``privacy.unit = "record"`` it is given a
``PrivateLearner`` instead, whose training of a site is DP-SGD, and sites that hold a numbered place
for every unit in the place of records. The learner alone knows the records. So whatever the method
does, its answer and what it remembers at the site follow from noised factors and public things.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from aulait.core.errors import PrivacyError, require
from aulait.core.factors import FactorName
from aulait.core.seeds import Seeds
from aulait.core.types import Record, Site, Tensors
from aulait.core.units import RecordGroup, units
from aulait.privacy.mechanisms import DISTRIBUTED_RECORDS
from aulait.privacy.record_level import SiteNoise
from aulait.training.record_gradients import (
    Mode,
    PrivateSteps,
    PrivateTraining,
    in_step,
    private_steps,
    summing_steps,
)
from aulait.training.trainer import Advance, Learner, LocalTraining, Trained
from aulait.training.unit_sums import UnitSum, UnitSummer, UnitSumWork, sum_units

MODES: Final[dict[str, Mode]] = {"dp-sgd": "records", "gaussian-batch": "batch",
                                 DISTRIBUTED_RECORDS: "records"}


class RecordLearner(Learner):
    """Trains site by site, by clipped gradients of single units; without noise where sigma is 0.

    Args:
        learner: base, settings and encoded records, shared.
        noise: what the steps are.

    Raises:
        PrivacyError: no training here has the steps of that mechanism.
    """

    def __init__(self, learner: Learner, noise: SiteNoise) -> None:
        require(noise.mechanism in MODES, PrivacyError,
                f"training by mechanism '{noise.mechanism}' found, expected one of: "
                f"{', '.join(MODES)}")
        self.base, self.config, self.encode = learner.base, learner.config, learner.encode
        self.dropout = learner.dropout
        self.noise = noise
        # who makes the sums where several processes do; a batch clipped as a whole is one pass
        self._summer = (learner if isinstance(learner, UnitSummer)
                        and MODES[noise.mechanism] == "records" else None)

    def train(self, training: Sequence[LocalTraining],
              advance: Advance | None = None) -> list[Trained]:
        """As ``Learner.train``: one site after the other, or all sites a step at a time where
        several processes make the sums. Each site is trained as if it were alone.

        Raises:
            DataError: a site has no records.
            PrivacyError: a loss has a penalty, which the steps do not know.
        """
        for own in training:
            require(own.penalty is None and own.drift is None, PrivacyError,
                    "a penalty or a drift beside the loss found, expected none where single "
                    "records are protected; use another method, or privacy.unit = 'client'")
        if self._summer is not None:
            done = in_step([self._steps(own) for own in training], self._summer.unit_sums)
            if advance is not None:
                advance(len(training))
            return done
        done = []
        for own in training:
            with own.prepared(self.base):
                done += in_step([self._steps(own)], self._sums_here)
            if advance is not None:
                advance(1)
        return done

    def _sums_here(self, asked: Sequence[UnitSumWork]) -> list[UnitSum]:
        """The sums, made by this process on the base as it is."""
        return [sum_units(self, own) for own in asked]

    def _steps(self, own: LocalTraining) -> PrivateSteps[Trained]:
        """The steps of one site."""
        return private_steps(self, self._work(own, own.records))

    def _work(self, own: LocalTraining, records: Sequence[Record]) -> PrivateTraining:
        """What is asked of a site, within what is accounted."""
        noise = self.noise
        seed = noise.noise_seed
        return PrivateTraining(
            start=own.start, records=records, trainable=own.trainable,
            steps=min(own.steps, noise.most_steps), batch=own.batch, lr=own.lr,
            mode=MODES[noise.mechanism], clip=noise.clip, sigma=noise.sigma, seed=own.seed,
            # the seed of the batches is one of the site and the round, so this is too
            noise_seed=None if seed is None else Seeds(seed).integer("steps", own.seed),
            most=noise.most_rate, turn=own.turn, smoothing=own.smoothing, fold=own.fold,
            basis=own.basis)


class PrivateLearner(RecordLearner):
    """Trains every site at most once, on units that the method does not see; nothing but the
    trained factors comes out.

    Args:
        learner: base and settings.
        noise: what the steps are, and the most that is accounted.
        sites: with their records; sensitive, but for the number of their units.
    """

    def __init__(self, learner: Learner, noise: SiteNoise, sites: Sequence[Site]) -> None:
        super().__init__(learner, noise)
        self._units = {site.name: units(site.train) for site in sites}
        self._trained_sites: set[str] = set()

    def stand_in(self, site: Site) -> Site:
        """The site as a method sees it: a place for every unit, no record, no hold-out."""
        places = (Record(str(number), label=site.name)
                  for number in range(len(self._units[site.name])))
        return replace(site, train=tuple(places), holdout=())

    def _steps(self, own: LocalTraining) -> PrivateSteps[Trained]:
        """The steps of one site, on the units of the places that the method names."""
        name, chosen = self._chosen(own.records)
        require(name not in self._trained_sites, PrivacyError,
                f"site '{name}' is to train twice for one request, expected once: each costs as "
                "much; the method cannot protect single records")
        self._trained_sites.add(name)
        records = tuple(record for unit in chosen for record in unit)
        work = self._work(own, records)
        done = yield from self._carried_out(name, work)
        # Loss, norm and true tokens carry no noise; the number of tokens at most is public.
        tokens = math.ceil(work.steps * work.expected) * self.base.config.context
        return replace(done, loss=math.nan, tokens=tokens, updates=math.nan)

    def _carried_out(self, name: str, work: PrivateTraining) -> PrivateSteps[Trained]:
        """The steps of the site of that name."""
        return private_steps(self, work)

    def _chosen(self, places: Sequence[Record]) -> tuple[str, list[RecordGroup]]:
        """A site's name and the units of its places."""
        names = {place.label for place in places}
        name = names.pop() if len(names) == 1 else None
        require(name in self._units and len(set(places)) == len(places), PrivacyError,
                "training on other records than those of one site found, expected the site's own, "
                "each once; the method cannot protect single records")
        assert name is not None
        return name, [self._units[name][int(place.text)] for place in places]


class SummingLearner(PrivateLearner):
    """Does not step: it keeps, for each site, the sum of the clipped gradients of one batch, to
    which noise is added where it is masked. The method is told that nothing has moved; what it
    answers is replaced by the sum, so that no arithmetic of the method touches what the account
    counts on.
    """

    def __init__(self, learner: Learner, noise: SiteNoise, sites: Sequence[Site]) -> None:
        super().__init__(learner, noise, sites)
        self._sums: dict[str, Tensors] = {}

    def _carried_out(self, name: str, work: PrivateTraining) -> PrivateSteps[Trained]:
        """The sum of one batch, kept; the factors as they were sent."""
        trained = [FactorName(layer, factor) for layer in work.start.factors
                   for factor in work.trainable_at(0).factors]
        parts = yield from summing_steps(self, work)
        self._sums[name] = {str(factor): part for factor, part in zip(trained, parts, strict=True)}
        return Trained(work.start, math.nan, 0, math.nan)

    def sum_of(self, name: str, update: Tensors) -> Tensors:
        """The sum of a site.

        Args:
            name: of the site.
            update: what the method answers for it, whose names and shapes the sum must have.

        Raises:
            PrivacyError: the method answers for anything but the factors that it trains.
        """
        found = self._sums.get(name, {})
        alike = {key: value.shape for key, value in found.items()} == {
            key: value.shape for key, value in update.items()}
        require(alike, PrivacyError,
                f"an update of site '{name}' that is not of the factors it trains found, expected "
                "those alone under privacy.trust = 'secure' with privacy.unit = 'record'; use "
                "algorithm 'ffa' or 'fedit'")
        return found
