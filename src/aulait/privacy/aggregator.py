"""The only way out of a site: clip, sum, account, write the ledger, and only then noise.

A update is sensitive until it has passed here. Read this file with an attacker in mind: under
privacy nothing that it returns or leaves out may depend on one client's update, except through the
noised sum.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import torch

from aulait.core.errors import PrivacyError, require
from aulait.core.types import ClientUpdate, ReleasedSum, Tensors
from aulait.privacy.accounting import Accountant, Event, PrivacyConfig
from aulait.privacy.intake import ExpectedShapes, Refused, Tally, Transform, sift, unsplit
from aulait.privacy.ledger import Ledger, Line
from aulait.privacy.noise import Noise
from aulait.privacy.promise import kept
from aulait.privacy.record_level import RecordMechanism

LARGEST_NORM = 1e4


class BudgetSpent(PrivacyError):  # noqa: N818
    """The next release would spend more than a role may. Nothing was charged or released; stop with
    what there is."""


@dataclass(frozen=True)
class _Request:
    """What is public about a release; ``terms`` of a release whose noise the sites have added,
    record by record."""

    stage: str
    round: int
    role: str
    bound: float
    event: Event
    planned: int
    record_mechanism: RecordMechanism | None = None


class PrivateAggregator:
    """Lets noised and accounted sums over clients out, and the public updates of proxies through.

    Args:
        config: the promise.
        ledger: where every release is written first.
        accountant: accounts of all roles, holding what the ledger holds (``ledger.replay``); None
            only without privacy.
        noise: where the noise comes from.
        proxies: names of the sites on the server; their updates are public.
        largest_norm: a share longer than this is refused where no clipping shortens it (without
            privacy, or with the unit "record", whose updates are public).
        terms: with the unit "record", what a round may ask of any record; every round is charged by
            them.

    Raises:
        PrivacyError: the parts together do not keep the promise.
    """

    def __init__(
        self, config: PrivacyConfig, ledger: Ledger, accountant: Accountant | None, noise: Noise,
        proxies: frozenset[str], largest_norm: float = LARGEST_NORM,
        record_mechanism: RecordMechanism | None = None,
    ) -> None:
        self.config, self.record_mechanism = config, record_mechanism
        self._limit = largest_norm if config.off or config.unit == "record" else math.inf
        self._ledger, self._noise, self._proxies = ledger, noise, frozenset(proxies)
        self._roles_of: dict[str, frozenset[str]] = {}
        if not config.off:
            self._accountant = kept(config, ledger, accountant, noise, record_mechanism)

    @property
    def private(self) -> bool:
        """Whether privacy is on."""
        return not self.config.off

    def release(
        self,
        updates: Iterable[ClientUpdate],
        *,
        stage: str,
        round: int,
        role: str,
        bound: float,
        noise_multiplier: float,
        planned: int,
        template: Tensors,
        sampling_rate: float = 1.0,
        weights: Literal["uniform", "size"] = "uniform",
        expected_shapes: ExpectedShapes | None = None,
        transform: Transform | None = None,
    ) -> ReleasedSum:
        """The sum over clients, one update in memory at a time; the order of the updates does not
        matter.

        Not counted are: proxies, the second update of a client, and shares that differ from their
            form in names or
        shapes or hold anything but finite float32 numbers. Under privacy every summand is clipped
        to ``bound``, the ledger line is on disk before noise is drawn, every coordinate of ``like``
        gets noise even if nobody replied, and nothing else comes out. The accounting neglects the
        rounding of the float64 sum (relative 1e-16 per client).

        Args:
            updates: sensitive.
            stage: "synthesis" or "train".
            round: counted from 1 in its stage.
            role: roles of all clients that may update: "local", or "proxy+local".
            bound: L2 bound of one client's summand, > 0, under privacy finite; it must not depend
                on private data.
            noise_multiplier: sigma / sensitivity, finite, >= 0; without privacy it is not used.
            planned: public number of clients the sum is planned for, at least 1.
            like: names and shapes of the sum; public.
            sampling_rate: probability with which each client took part (Poisson); 1 is everyone.
            weights: "size" weighs a update by its records over the mean; without privacy only.
            forms: client -> names and shapes its share must have; None: those of ``like``. Others
                are refused.
            become: what a sound update adds to the sum, with the names and shapes of ``like``; it
                may look at public things and at that one update only. None: the share itself.

        Returns:
            Totals, float32, CPU. Without privacy also who was counted with which weight, mean
            diagnostics, refusals.

        Raises:
            BudgetSpent: a role would exceed its budget.
            PrivacyError: a condition of the guarantee is not met.
        """
        require(bound > 0, PrivacyError,
                f"clip bound is {bound}, expected a number > 0; set privacy.clip")
        tally = Tally({name: torch.zeros(template[name].shape, dtype=torch.float64)
                       for name in sorted(template)})
        sound = self._sound(updates, expected_shapes or template, expected_shapes is not None,
                            tally.refused)
        if self.config.off:
            for update in sound:
                tally.add(update, transform(update) if transform else update.tensors, bound,
                          update.weight
                          if weights == "size" else 1.0)
            mean = tally.mean_weight()
            counted = {client: weight / mean for client, weight in tally.weights.items()}
            total = {name: (value / mean).to(torch.float32) for name, value in tally.total.items()}
            return ReleasedSum(total, max(1, len(counted)), 0.0, tally.mean_info(),
                            tuple(sorted(tally.refused)), counted)
        text = (
            f"weights = '{weights}' found, expected 'uniform' under privacy; change it, or set "
            "privacy.off = true"
        )
        require(weights == "uniform", PrivacyError, text)
        text = (
            "a release that protects clients found where privacy.unit = 'record'; use a method of "
            "that unit, as 'dplora'"
        )
        require(self.config.unit == "client", PrivacyError, text)
        request = _Request(stage, round, role, bound, Event(noise_multiplier, sampling_rate),
                           planned)
        self._check(request)
        for update in sound:
            self._check_roles(update, role)
            tally.add(update, transform(update) if transform else update.tensors, bound, 1.0)
        line = self._charge(request)
        noise = self._noise.at(line.release)
        noised = {name: total + noise.gaussian(tuple(total.shape), line.sigma) for name,
                  total in tally.total.items()}
        return ReleasedSum({name: value.to(torch.float32) for name, value in noised.items()},
                           planned,
                        line.sigma)

    def release_records(
        self,
        ask: Callable[[], Iterable[ClientUpdate]],
        *,
        stage: str,
        round: int,
        role: str,
        bound: float,
        noise_multiplier: float,
        planned: int,
        template: Tensors,
        expected_shapes: ExpectedShapes,
        weights: Literal["uniform", "size"] = "uniform",
    ) -> ReleasedSum:
        """The sum of updates that carry their own noise, for the unit "record"; see ``records``.

        Such a update is out as soon as a site sends it, so the line is on disk *before* anybody is
        asked, and a round is charged even if nobody answers. After that nothing costs: updates may
        be weighed by the sites' public sizes, and who was refused may be told. Their diagnostics
        carry no noise and are dropped.

        Args: as ``release``, but for these.
            ask: gets the updates; called once, after the charge. The requests must not ask for less
                noise, more steps or more frequent sampling than ``terms`` and ``noise_multiplier``
                say.
            bound: C, the bound of what the sites clip, > 0, under privacy finite and public.
            forms: client that was asked -> names and shapes of its share; others are refused.
            weights: "size" weighs a update by its records over the mean.

        Returns: totals, float32, CPU, over the number counted (at least 1); ``noise_std`` is 0, the
            aggregator adds none.
        Raises: as ``release``; then nobody was asked.
        """
        require(bound > 0, PrivacyError,
                f"clip bound is {bound}, expected a number > 0; set privacy.clip")
        if not self.config.off:
            text = (
                "a release that protects records found where privacy.unit = 'client'; use a method "
                "of that unit, as 'ffa'"
            )
            require(self.record_mechanism is not None, PrivacyError, text)
            assert self.record_mechanism is not None
            request = _Request(stage, round, role, bound,
                               self.record_mechanism.event(noise_multiplier),
                               planned, self.record_mechanism)
            self._check(request)
            self._charge(request)
        tally = Tally({name: torch.zeros(template[name].shape, dtype=torch.float64)
                       for name in sorted(template)})
        for update in self._sound(ask(), expected_shapes, True, tally.refused):
            if not self.config.off:
                self._check_roles(update, role)
            tally.add(update, update.tensors, math.inf, update.weight if weights == "size" else 1.0)
        mean = tally.mean_weight()
        counted = {client: weight / mean for client, weight in tally.weights.items()}
        total = {name: (value / mean).to(torch.float32) for name, value in tally.total.items()}
        info = tally.mean_info() if self.config.off else {}
        return ReleasedSum(total, max(1, len(counted)), 0.0, info, tuple(sorted(tally.refused)),
                        counted)

    def admit(
        self, updates: Iterable[ClientUpdate], template: Tensors,
        expected_shapes: ExpectedShapes | None = None,
        alternate_shapes: ExpectedShapes | None = None
    ) -> tuple[list[ClientUpdate], Refused]:
        """Replies of proxies, which are public: no noise and no cost.

        Returns:
            (sound updates in the order of client names, (client, reason) of the others).

        Raises:
            PrivacyError: a update does not come from a proxy.
        """
        received = list(updates)
        for update in received:
            text = (
                f"client '{update.client}' is not a proxy, expected public replies only; use "
                "door.release"
            )
            require(update.client in self._proxies, PrivacyError, text)
        refused: list[tuple[str, str]] = []
        kept = list(sift(received, expected_shapes or template, expected_shapes is not None,
                         frozenset(), math.inf, refused,
                         alternate_shapes))
        return sorted(kept, key=lambda update: update.client), tuple(sorted(refused))

    def collect(
        self, updates: Iterable[ClientUpdate], method: str, instead: str,
        expected_shapes: ExpectedShapes,
        refused: list[tuple[str, str]],
        alternate_shapes: ExpectedShapes | None = None,
    ) -> Iterator[ClientUpdate]:
        """Single sound updates as they come; only when privacy is off.

        Args:
            updates: sensitive.
            method: name of the method that needs them, for the message.
            instead: name of the nearest method that works on sums.
            forms: client -> names and shapes its share must have.
            refused: (client, reason) of those that are left out are added to it.
            also: client -> a second form that is as good (a client may prune itself).

        Raises:
            PrivacyError: privacy is on.
        """
        text = (
            f"'{method}' reads single replies, which privacy forbids; use '{instead}', or set "
            "privacy.off = true"
        )
        require(self.config.off, PrivacyError, text)
        return sift(updates, expected_shapes, True, self._proxies, self._limit, refused,
                    alternate_shapes)

    def _sound(self, updates: Iterable[ClientUpdate], form: Any, each: bool,
               refused: list[tuple[str, str]]) -> Iterator[ClientUpdate]:
        return sift(updates if self.config.off else unsplit(updates), form, each, self._proxies,
                    self._limit, refused)

    def _check(self, request: _Request) -> None:
        """Conditions of the guarantee that can be seen without looking at a update."""
        text = (
            f"clip bound is {request.bound}, expected a finite number under privacy; set "
            "privacy.clip"
        )
        require(math.isfinite(request.bound), PrivacyError, text)
        text = f"planned cohort is {request.planned}, expected at least 1; check the federation"
        require(request.planned >= 1, PrivacyError, text)
        sampled = (
            request.event.sampling_rate < 1.0
            or (request.record_mechanism is not None and request.record_mechanism.mechanism
                == "dp-sgd")
        )
        text = (
            "relation 'replace' with Poisson sampling found, expected full participation; use "
            "'add-remove'"
        )
        require(self.config.relation == "add-remove" or not sampled, PrivacyError, text)
        for role in self._accountant.budget:
            text = (
                f"role '{role}' is charged differently in ledger and accountant; replay the ledger "
                "once at the start"
            )
            agree = self._accountant.events(role) == Counter(self._ledger.events(role))
            require(agree, PrivacyError, text)

    def _check_roles(self, update: ClientUpdate, role: str) -> None:
        """A client may not appear under roles that do not meet: its releases would be spread over
        two accounts."""
        named = frozenset(self._accountant.roles(role))
        possible = self._roles_of.get(update.client, named) & named
        text = (
            f"client '{update.client}' replies as '{role}' but had another role; name all roles "
            "('proxy+local')"
        )
        require(bool(possible), PrivacyError, text)
        self._roles_of[update.client] = possible

    def _charge(self, request: _Request) -> Line:
        """Check the budget, put the line on disk, charge the accounts."""
        accountant, event = self._accountant, request.event
        spent = {role: accountant.spent(role) for role in accountant.budget}
        for role in accountant.roles(request.role):
            would, budget = accountant.would_spend(role, event), accountant.budget[role]
            if not would <= budget:
                raise BudgetSpent(
                    f"role '{role}' has spent epsilon {spent[role]:.4g} and would spend "
                    f"{would:.4g}, "
                    f"its budget is {budget:.4g}; stop here, or start a new run with fewer "
                    "releases or more noise"
                )
            spent[role] = would
        record_mechanism, rate = request.record_mechanism, event.sampling_rate
        factor = 2.0 if self.config.relation == "replace" else 1.0
        sensitivity = (
            factor * request.bound if record_mechanism is None
            else record_mechanism.sensitivity(request.bound)
        )
        line = Line(
            release=len(self._ledger.lines) + 1,
            stage=request.stage,
            round=request.round,
            role=request.role,
            mechanism="gaussian" if record_mechanism is None else record_mechanism.mechanism,
            sensitivity=sensitivity,
            sigma=event.noise_multiplier * sensitivity,
            noise_multiplier=event.noise_multiplier,
            planned=request.planned,
            sampling={"kind": "all"} if rate == 1.0 else {"kind": "poisson", "rate": rate},
            epsilon=spent,
            delta=accountant.delta,
            relation=str(self.config.relation),
            unit=self.config.unit,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            private=self._noise.private and event.noise_multiplier > 0,
            steps=event.steps,
        )
        self._ledger.append(line)
        accountant.add(request.role, event)
        return line
