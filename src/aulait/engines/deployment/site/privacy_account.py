"""A site's account of one run: it believes no request about its guarantee.

Where the site adds the noise itself (``privacy.unit = "record"``) it computes, before it answers,
from the request, its own number of records and its own steps what the answer spends. It refuses
what would go beyond the promise of the terms (an epsilon, or a noise multiplier for so many
rounds), beyond its own limit for a run, or beyond the lifetime account of its data source. Where
the server adds the noise a run is charged once, with what it promises; of secure sums each is held
against that promise too. The charge is on disk before the answer leaves.
"""

from __future__ import annotations

import math
from dataclasses import replace

from aulait.core.errors import PrivacyError, require
from aulait.core.files import JsonMapping
from aulait.core.types import Site
from aulait.engines.deployment.protocol.heads import SumStage
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site import sum_policy
from aulait.engines.deployment.site.lifetime_account import Charge, LifetimeAccount
from aulait.engines.deployment.site.policy import SITE, site_plan, told_plan
from aulait.engines.deployment.site.site_policy import SitePolicy
from aulait.methods.contract import record_mechanism
from aulait.privacy.accounting import Accountant, Event, calibrate
from aulait.privacy.record_level import VOTES, RecordMechanism, SiteNoise

CLIPS = (1e-6, 1e6)  # outside of them single precision rounds the noise or the gradients away
_ROUNDING = 1 + 1e-6


class SiteAccount:
    """What this site has spent in one run, and in its lifetime.

    Args:
        lifetime: the account of the site's data source, over all runs.
        terms: with the promise.
        limits: of the site.
    """

    def __init__(self, lifetime: LifetimeAccount, terms: RunTerms, limits: SitePolicy) -> None:
        self._lifetime, self._terms, self._limits = lifetime, terms, limits
        told = terms.privacy
        self._limit = min(limits.epsilon, math.inf if told.epsilon is None else told.epsilon)
        if told.secure and told.epsilon is None:
            self._limit = min(self._limit, self._promised())
        self._accountant = Accountant(told.delta or 0.5, {SITE: self._limit})
        for charge in lifetime.of_run(terms.run):
            if charge.event is not None:
                self._accountant.add(SITE, charge.event)

    @property
    def spent(self) -> float:
        """Epsilon of the run's events so far."""
        return self._accountant.spent(SITE)

    def room(self, records: int | None = None) -> None:
        """Look whether the whole run, as its terms promise it, still fits into the lifetime
        account; nothing is charged.

        Args:
            records: that the site trains on; None where they have not been read.

        Raises:
            PrivacyError: it does not.
        """
        privacy = self._terms.privacy
        if privacy.off or self._lifetime.of_run(self._terms.run):
            return  # of a run that goes on each charge is looked at
        if privacy.unit == "client":
            self._fits([self._run_charge()])
        elif privacy.epsilon is not None and privacy.delta is not None:
            # A forecast: one event that spends what is promised.
            event = Event(calibrate(privacy.epsilon, privacy.delta, 1))
            self._fits([self._event_charge(event, "")])
        elif privacy.noise_multiplier is not None:
            plan = told_plan(self._terms, privacy.noise_multiplier, records)
            events = [replace(event, steps=event.steps * count) for release in plan.releases
                      for event, count in release.events.items()]
            self._fits([self._event_charge(event, "") for event in events])

    def charge_run(self) -> None:
        """Charge the promise of a run whose noise is the server's, or that has none, at its first
        answer; later ones are paid.

        Raises:
            PrivacyError: the lifetime account does not cover it; nothing was charged.
        """
        if self._terms.privacy.unit == "record" and not self._terms.privacy.off:
            return  # each answer is charged
        if self._lifetime.of_run(self._terms.run):
            return
        charge = self._run_charge()
        self._fits([charge])
        self._lifetime.add(charge)

    def sum_room(self, stage: SumStage) -> None:
        """Look whether the promise of the run covers one more secure sum; nothing is charged.

        Raises:
            PrivacyError: it does not.
        """
        spends = self._accountant.would_spend(SITE, self._sum_event(stage))
        require(spends <= self._limit * _ROUNDING, PrivacyError,
                f"one more secure sum would bring this site to epsilon {spends:.3f}, the run "
                f"promises {self._limit:.3f}; refused")

    def charge_sum(self, stage: SumStage) -> None:
        """Charge one secure sum, before this site's vector leaves it.

        Raises:
            PrivacyError: as ``sum_room``; or the lifetime account does not cover the run.
        """
        self.sum_room(stage)
        self.charge_run()
        event = self._sum_event(stage)
        self._lifetime.add(Charge(run=self._terms.run, unit="client",
                                  noise_multiplier=event.noise_multiplier, stage=stage))
        self._accountant.add(SITE, event)

    def _sum_event(self, stage: SumStage) -> Event:
        assert self._terms.sums is not None
        return sum_policy.sum_event(self._terms.sums, stage)

    def _promised(self) -> float:
        """Epsilon of all releases of the run, each with the noise multiplier that it promises."""
        terms, multiplier = self._terms, self._terms.privacy.noise_multiplier
        if terms.sums is not None:
            return sum_policy.planned_epsilon(terms, terms.sums)
        assert multiplier is not None
        return told_plan(terms, multiplier, None).epsilon[SITE]

    def charge(self, settings: JsonMapping, site: Site, terms: RunTerms) -> SiteNoise:
        """Check one request for training with noise of the site's own, and charge it.

        Args:
            settings: of the request, which hold what noise it asks for (``SiteNoise``).
            site: with its records and plan.
            terms: name the method, and with it what a round asks of a unit at most.

        Returns:
            What the site is to add to its steps.

        Raises:
            PrivacyError: the request asks for an answer that the promise does not cover; nothing
                was charged.
        """
        noise = self._asked(settings)
        privacy, method = terms.privacy, terms.method
        require("record" in method.TRAITS.units, PrivacyError,
                "a request with noise of this site's own found, expected of a method that protects "
                "records only; refused")
        own = record_mechanism(method, terms.method_config, privacy, [site])
        most = record_mechanism(method, terms.method_config, privacy, ()).rate
        require(noise.mechanism == own.mechanism and noise.most_rate <= most, PrivacyError,
                "a request of another mechanism or a larger sampling rate than the terms' found; "
                "refused")
        self._charge_noise(noise, own, "train", own)
        # A request may ask for less than what was charged, never for more.
        return noise.model_copy(update={"most_rate": min(noise.most_rate, own.rate),
                                        "most_steps": min(noise.most_steps, own.steps)})

    def charge_votes(self, settings: JsonMapping, site: Site) -> SiteNoise:
        """Check one request for votes with noise of the site's own, and charge it.

        Args:
            settings: of the request, which hold what noise it asks for (``SiteNoise``).
            site: with its records and plan.

        Returns:
            What the site is to add to its votes, and the bound of a unit's votes.

        Raises:
            PrivacyError: the request asks for an answer that the promise does not cover; nothing
                was charged.
        """
        noise, terms = self._asked(settings), self._terms
        require(noise.mechanism == VOTES, PrivacyError,
                f"a request for votes by another mechanism than '{VOTES}' found; refused")
        own = record_mechanism(terms.method, terms.method_config, terms.privacy, [site])
        self._charge_noise(noise, RecordMechanism(VOTES, 1), "synthesis", own)
        return noise

    def _asked(self, settings: JsonMapping) -> SiteNoise:
        """The noise that a request asks for, once it is some, and from no seed."""
        noise = SiteNoise.read(settings)
        valid = noise is not None and noise.noise_seed is None and 0 < noise.sigma < math.inf
        require(valid, PrivacyError,
                "a request without noise of this site's own found, the terms promise it; refused")
        assert noise is not None
        require(CLIPS[0] <= noise.clip <= CLIPS[1], PrivacyError,
                f"a request with clip = {noise.clip:g} found, expected {CLIPS[0]:g} to "
                f"{CLIPS[1]:g}; refused")
        return noise

    def _charge_noise(self, noise: SiteNoise, asked: RecordMechanism, stage: str,
                      training: RecordMechanism) -> None:
        """Charge an answer of this stage.

        Args:
            noise: that the request asks for.
            asked: what the answer asks of a unit.
            stage: "synthesis" or "train".
            training: what a round of training asks of a unit, for the promise of the whole run.
        """
        privacy = self._terms.privacy
        if privacy.relation is None:
            raise PrivacyError("terms without privacy.relation found; refused")
        multiplier = noise.sigma / asked.sensitivity(noise.clip, privacy.relation)
        limit, told = math.inf, privacy.noise_multiplier
        if told is not None and privacy.epsilon is None:
            require(multiplier >= told / _ROUNDING, PrivacyError,
                    f"a request with noise multiplier {multiplier:.4f} found, the terms promise "
                    f"{told:.4f}; refused")
            limit = site_plan(self._terms, told, training).epsilon[SITE]
        self.charge_event(asked.event(multiplier), stage, limit)

    def charge_event(self, event: Event, stage: str, limit: float = math.inf) -> None:
        """Charge one noised answer about this site's records, before it is sent.

        Args:
            event: what the answer spends.
            stage: "synthesis" or "train".
            limit: largest epsilon of the run after it, beside the promise and the site's own limit.

        Raises:
            PrivacyError: the run's promise, the site's limit or its lifetime account does not cover
                it; nothing was charged.
        """
        limit, spends = min(limit, self._limit), self._accountant.would_spend(SITE, event)
        require(spends <= limit * _ROUNDING, PrivacyError,
                f"the request would bring this site's records to epsilon {spends:.3f}, allowed are "
                f"{limit:.3f}; refused")
        charge = self._event_charge(event, stage)
        self._fits([charge])
        self._lifetime.add(charge)
        self._accountant.add(SITE, event)

    def _fits(self, charges: list[Charge]) -> None:
        """Hold the lifetime account with these charges against its limits."""
        if not charges or charges[0].unit == "none":
            return
        unit, limits = charges[0].unit, self._limits
        after = self._lifetime.spent(unit, charges)
        require(after.epsilon <= limits.lifetime_epsilon * _ROUNDING, PrivacyError,
                f"the lifetime account of unit '{unit}' would come to epsilon {after.epsilon:.3f}, "
                f"allowed are {limits.lifetime_epsilon:g} (limits.lifetime_epsilon); refused")
        require((after.delta or 0.0) <= limits.lifetime_delta * _ROUNDING, PrivacyError,
                f"the lifetime account of unit '{unit}' would come to delta {after.delta:.3g}, "
                f"allowed are {limits.lifetime_delta:g} (limits.lifetime_delta); refused")

    def _run_charge(self) -> Charge:
        privacy = self._terms.privacy
        if privacy.off:
            return Charge(run=self._terms.run, unit="none")
        spends = privacy.epsilon
        if spends is None:
            spends = self._promised()
        return Charge(run=self._terms.run, unit="client", delta=privacy.delta, epsilon=spends)

    def _event_charge(self, event: Event, stage: str) -> Charge:
        return Charge(run=self._terms.run, unit="record", delta=self._terms.privacy.delta,
                      noise_multiplier=event.noise_multiplier, rate=event.sampling_rate,
                      steps=event.steps, stage=stage)
