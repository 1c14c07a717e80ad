"""The only way out of a site: clip, sum, account, write the ledger, and only then noise.

An update is sensitive until it has passed here. Read this file with an attacker in mind: under
privacy nothing that it returns or leaves out may depend on one client's update, except through the
noised sum.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import torch

from aulait.core.cohort import Cohort
from aulait.core.cohort_turn import CohortTurn
from aulait.core.errors import PrivacyError, require
from aulait.core.types import ClientRequest, ClientUpdate, ReleasedSum, Tensors
from aulait.privacy.accounting import Accountant, Event
from aulait.privacy.adaptive_sum import joint_template, parted, with_answer
from aulait.privacy.banded import Banded
from aulait.privacy.clipping import ClippedSum
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.ledger_line import LedgerLine, UnitSampling
from aulait.privacy.mechanisms import Mechanism, find_mechanism
from aulait.privacy.noise_grid import MOST_SUMMANDS, check_exact
from aulait.privacy.noise_source import NoiseSource
from aulait.privacy.record_level import RecordMechanism, same_relation
from aulait.privacy.robust_sums import RobustRule, RobustSum
from aulait.privacy.sealed import Seal, SealedUpdate, forgotten_after
from aulait.privacy.secure.encoding import vector_of
from aulait.privacy.secure.quorum import Quorum
from aulait.privacy.secure.summation import BeginSecureSum, SecureSumRequest
from aulait.privacy.update_checks import (
    Alike,
    ExpectedShapes,
    Rejections,
    UpdateChecks,
    unsplit,
)

LARGEST_NORM = 1e4
# what is remembered beside a mechanism's own names: the release and the round that left it
_LINE, _ROUND = "aulait.release", "aulait.round"
# beside the stages: the bound of the next round where it follows the norms, which is public
_CLIP, _BOUND = "clip", "bound"

Transform = Callable[[ClientUpdate], Tensors]
Weights = Literal["uniform", "size"]


class BudgetSpent(PrivacyError):  # noqa: N818
    """The next release would spend more than a role may. Nothing was charged or released; stop with
    what there is."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is decided about a release before any update is seen; all of it public.

    Attributes:
        stage: "synthesis" or "train".
        round: counted from 1 in its stage.
        role: roles of all clients that may answer: "local", or "proxy+local".
        bound: L2 bound of what one unit adds, > 0, under privacy finite; it must not depend on
            private data. For the unit "record": C, the bound of what the sites clip.
        noise_multiplier: sigma / sensitivity, finite, >= 0; without privacy it is not used.
        planned: number of clients the sum is planned for, at least 1.
        template: names and shapes of the sum.
        sampling_rate: probability with which each client took part (Poisson); 1 is everyone. For
            the unit "record" it is not used: every round counts for every record.
        clients: those who are asked; used under secure aggregation alone, where they share keys
            before one of them answers.
        turn: of the fixed cohort that may answer, where cohorts take turns.
        discounts: client -> the factor in (0, 1] by which what it adds is shortened once it is
            clipped; who is missing counts whole.
        most: in how many rounds of the stage any one client answers at most; None: in all.
    """

    stage: str
    round: int
    role: str
    bound: float
    noise_multiplier: float
    planned: int
    template: Tensors
    sampling_rate: float = 1.0
    clients: tuple[str, ...] = ()
    turn: CohortTurn | None = None
    discounts: Mapping[str, float] = field(default_factory=dict)
    most: int | None = None

    @classmethod
    def of_cohort(cls, cohort: Cohort, *, stage: str, bound: float, template: Tensors) -> Release:
        """The release of a round's cohort."""
        buffer = cohort.buffer
        return cls(stage=stage, round=cohort.round, role=cohort.role, bound=bound,
                   noise_multiplier=cohort.noise_multiplier, planned=cohort.planned,
                   template=template, sampling_rate=cohort.sampling_rate, clients=cohort.local,
                   turn=cohort.turn, discounts={} if buffer is None else buffer.discounts,
                   most=None if buffer is None else buffer.most)


@dataclass(frozen=True)
class KnownSites:
    """What is known of the sites.

    Attributes:
        proxies: names of the sites on the server; their updates are public.
        largest_norm: an update longer than this is rejected where no clipping shortens it (without
            privacy, or with the unit "record", whose updates are public).
        secure_sum: begins a round of secure aggregation with them; None where there is none.
        most_units: units (records, or those of a field) of the site that has most; public, and used
            where they are summed before the noise.
        robust: what takes the place of the mean in training, as some of them may be hostile; None
            for the mean.
    """

    proxies: frozenset[str] = frozenset()
    largest_norm: float = LARGEST_NORM
    secure_sum: BeginSecureSum | None = None
    robust: RobustRule | None = None
    most_units: int = 1


@dataclass(frozen=True)
class WantedUpdates:
    """What single updates must look like.

    Attributes:
        expected_shapes: client -> names and shapes its update must have.
        alternate_shapes: client -> second names and shapes that are as good (a client may prune
            itself); None for none.
    """

    expected_shapes: ExpectedShapes
    alternate_shapes: ExpectedShapes | None = None


@dataclass(frozen=True)
class _Charge:
    """A release with its mechanism: what the accounts are charged and the ledger says."""

    release: Release
    mechanism: str
    event: Event
    sampling_rate: float


class PrivateAggregator:
    """Lets noised and accounted sums over clients out, and the public updates of proxies through.

    Args:
        config: the promise.
        ledger: where every release is written first.
        accountant: accounts of all roles, holding what the ledger holds (``ledger.replay``); None
            only without privacy.
        noise: where the noise comes from.
        sites: which sites are public, and how long an update may be.
        record_mechanisms: with the unit "record", stage -> what a round of it may ask of any unit;
            every round is charged by it.

    Attributes:
        noise_state: stage -> what the mechanism remembers of its noise in that stage, by name; as
            secret as the noise. Under "clip": the bound that updates are clipped to next, where it
            follows their norms.

    Raises:
        PrivacyError: the parts together do not keep the promise.
    """

    def __init__(
        self, config: PrivacyConfig, ledger: Ledger, accountant: Accountant | None,
        noise: NoiseSource, sites: KnownSites,
        record_mechanisms: Mapping[str, RecordMechanism] | None = None,
    ) -> None:
        self.config, self._record_mechanisms = config, record_mechanisms
        self.noise_state: dict[str, Tensors] = {}
        self._seal = Seal()
        limited = config.off or config.noised_at_sites
        self._largest_norm = sites.largest_norm if limited else math.inf
        self._ledger, self._noise, self._proxies = ledger, noise, frozenset(sites.proxies)
        self._begin_secure_sum, self._robust = sites.secure_sum, sites.robust
        self._most_units = sites.most_units
        self._roles_of: dict[str, frozenset[str]] = {}
        self._turn_of: dict[str, CohortTurn] = {}
        self._answered: dict[str, set[tuple[str, int]]] = {}
        if not config.off:
            self._accountant = _checked(config, accountant)
            _check_noise(config, noise)
            _check_trust(config, sites)
            _check_unit(config, record_mechanisms)
            _check_ledger(config, ledger)

    @property
    def private(self) -> bool:
        """Whether privacy is on."""
        return not self.config.off

    @property
    def planned_only(self) -> bool:
        """Whether nothing is told of who took part but the planned number, because single updates
        are protected."""
        return self.private and not self.config.noised_at_sites

    @property
    def adaptive_bound(self) -> float | None:
        """The bound of the next release of training, where it follows the norms of updates; None
        where it does not. It is public."""
        rule = self.config.adaptive
        if rule is None:
            return None
        return float(self.noise_state.get(_CLIP, {}).get(_BOUND, rule.start))

    def sealing(
        self, ask: Callable[[Sequence[ClientRequest]], Iterable[ClientUpdate]], planned: bool
    ) -> Callable[[Sequence[ClientRequest]], Iterable[ClientUpdate]]:
        """What a method asks with in one round: under privacy it is given updates that only this
        aggregator opens. Nobody is asked before the first update is read.

        Proxies that are asked by themselves answer in the open. Whether an update is public is
        decided by who was asked, not by the name that it bears.

        Args:
            ask: gets the updates.
            planned: whether the privacy plan has a release in this round.

        Returns:
            As ``ask``. Reading from it raises PrivacyError where the unit is "record" and the
            round is not charged yet, or a client was asked before in this round; and where an
            update of a client holds tensors in a round without a release.
        """
        if self.config.off:
            return ask
        before, asked = len(self._ledger.lines), Counter[str]()

        def asking(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
            clients = [r.client for r in requests if r.client not in self._proxies]
            public, charged = not clients, len(self._ledger.lines) > before
            if self.config.noised_at_sites and planned:
                require(public or charged, PrivacyError,
                        "clients are asked before the round is charged, expected the charge first "
                        "as privacy.unit = 'record'; give server.ask(requests), unread, to the "
                        "aggregator")
                again = [name for name, times in (Counter(clients) + asked).items() if times > 1]
                require(not again, PrivacyError,
                        f"client '{''.join(again[:1])}' is asked twice in a round, expected once "
                        "as privacy.unit = 'record' and a round is charged once; ask again in the "
                        "next round")
            asked.update(clients)
            for update in ask(requests):
                if public and update.client in self._proxies:
                    yield update
                    continue
                require(planned or not update.tensors, PrivacyError,
                        f"the update of client '{update.client}' holds tensors and the privacy "
                        "plan has no release here, as the method's 'travels' says that clients "
                        "send nothing; let it say what they send")
                yield self._seal.close(update)

        return asking

    def release(
        self, updates: Iterable[ClientUpdate], release: Release, *, weights: Weights = "uniform",
        expected_shapes: ExpectedShapes | None = None, transform: Transform | None = None,
    ) -> ReleasedSum:
        """The sum over clients, one update in memory at a time; the order of the updates does not
        matter.

        Not counted are: proxies, the second update of a client, and updates that differ from what
        is expected in names or shapes or hold anything but finite float32 numbers. Under privacy
        every summand is clipped to the bound, the ledger line is on disk before noise is drawn,
        every coordinate of the template gets noise even if nobody answered, and nothing else comes
        out. Sum and noise lie on one public grid (``aulait.privacy.noise``), where sums are exact.

        With the unit "record" updates carry their own noise and are out as soon as a site sends
        them. So the line is on disk *before* the first of the updates is read, and a round is
        charged even if nobody answers. After that nothing costs: nothing is clipped, updates may
        be weighed by the sites' public sizes, and who was counted and rejected may be told. Their
        diagnostics carry no noise and are dropped.

        Where the bound follows the norms of updates, ``adaptive_bound`` takes the place of the
        release's in training, and moves.

        Args:
            updates: sensitive; with the unit "record" an iterator that asks the sites when it is
                read, for no less noise, no more steps and no more frequent sampling than charged.
            release: what was decided about it.
            weights: "size" weighs an update by its records over the mean; not where the unit is the
                client.
            expected_shapes: client -> names and shapes its update must have; None: those of the
                template. Others are rejected.
            transform: what a valid update adds to the sum, with the names and shapes of the
                template; it may look at public things and at that one update only. None: the
                update itself.

        Returns:
            Totals, float32, CPU. Without privacy and with the unit "record" also who was counted
            with which weight, and rejections; without privacy mean diagnostics.

        Raises:
            BudgetSpent: a role would exceed its budget.
            PrivacyError: a condition of the guarantee is not met.
        """
        _check_bound(release)
        if transform is not None and not self.config.off:
            transform = forgotten_after(transform)
        rule, bound = self.config.adaptive, self.adaptive_bound
        if rule is None or bound is None or release.stage != "train":
            return self._released(updates, release, weights, expected_shapes, transform)
        joint = replace(release, bound=rule.joint_bound(bound),
                        template=joint_template(release.template))
        released = self._released(
            updates, joint, weights,
            Alike(release.template) if expected_shapes is None else expected_shapes,
            with_answer(rule, bound, transform))
        total, answers = parted(released.total)
        following = rule.next_bound(bound, rule.within(answers, bound, release.planned))
        self.noise_state[_CLIP] = {_BOUND: torch.tensor(following, dtype=torch.float64)}
        return replace(released, total=total)

    def _released(
        self, updates: Iterable[ClientUpdate], release: Release, weights: Weights,
        expected_shapes: ExpectedShapes | None, transform: Transform | None,
    ) -> ReleasedSum:
        """As ``release``, of exactly the sum that ``release`` describes."""
        if self.config.noised_at_sites:
            self._charge_records(release)
            total = self._empty_sum(release)
            for update in self._valid(updates, release, expected_shapes, total):
                self._check_roles(update, release.role)
                total.add(update, transform(update) if transform else update.tensors, math.inf,
                          update.weight if weights == "size" else 1.0,
                          release.discounts.get(update.client, 1.0))
            return total.weighted(private=True)
        require(self.config.off or weights == "uniform", PrivacyError,
                f"weights = '{weights}' found, expected 'uniform' under privacy; change it, or set "
                "privacy.off = true")
        if self.config.secure:
            return self._release_securely(updates, release, expected_shapes, transform)
        if self.config.off:
            total = self._empty_sum(release)
            for update in self._valid(updates, release, expected_shapes, total):
                total.add(update, transform(update) if transform else update.tensors,
                          release.bound, update.weight if weights == "size" else 1.0,
                          release.discounts.get(update.client, 1.0))
            return total.weighted(private=False)
        charge, mechanism = self._charge_of(release)
        self._check(charge, mechanism)
        total = ClippedSum.zero(release.template, self._grid(release, mechanism))
        for update in self._valid(updates, release, expected_shapes, total):
            self._check_roles(update, release.role)
            self._check_turn(update, release.turn)
            self._check_most(update, release)
            total.add(update, transform(update) if transform else update.tensors, release.bound,
                      1.0, release.discounts.get(update.client, 1.0))
        state = self._state_before(release)
        line = self._charge(charge, mechanism)
        noised, state = mechanism.add_noise(total.total, line.sigma, self._noise.at(line.release),
                                            state)
        self._remember(release.stage, line, state)
        deviation = line.sigma
        if isinstance(mechanism, Banded):
            deviation = mechanism.deviation(line.sigma, state)
        return ReleasedSum({name: value.to(torch.float32) for name, value in noised.items()},
                           release.planned, deviation)

    def _empty_sum(self, release: Release) -> ClippedSum:
        """The sum over nobody, of updates that are public or not protected."""
        if self._robust is None or release.stage != "train":
            return ClippedSum.zero(release.template)
        return RobustSum.under(self._robust, release.template)

    def _charge_of(self, release: Release) -> tuple[_Charge, Mechanism]:
        """What a release over clients costs those who may take part in it, or their records."""
        if self.config.protects_records:
            terms = self._terms(release.stage)
            return (_Charge(release, terms.mechanism, terms.event(release.noise_multiplier),
                            terms.rate), find_mechanism(terms.mechanism, "record"))
        turn = release.turn
        # votes are everybody's in every round
        name = self.config.client_mechanism(1 if turn is None else turn.cohorts)
        mechanism = find_mechanism(name, "client")
        event = mechanism.event(release.noise_multiplier, release.sampling_rate, 1)
        if turn is not None:
            require(turn == CohortTurn.of_round(release.round, turn.cohorts), PrivacyError,
                    f"round {release.round} with cohort {turn.number} of {turn.cohorts} found, "
                    "expected them to take turns; report this as a defect")
            event = replace(event, turn=turn.number)
        if not any((line.stage, line.round) == (release.stage, release.round)
                   for line in self._ledger.lines):
            # a round that is made again counts for everybody, whoever takes part how often
            event = replace(event, most=release.most)
        return _Charge(release, name, event, release.sampling_rate), mechanism

    def _state_before(self, release: Release) -> Tensors:
        """What the mechanism remembers of its noise, if this release is the first that is made of
        it and follows upon the one that left it; else nothing, and the noise begins anew."""
        held = dict(self.noise_state.get(release.stage, {}))
        number, round = held.pop(_LINE, None), held.pop(_ROUND, None)
        if number is None or round is None:
            return {}
        last = max((line.release for line in self._ledger.lines if line.stage == release.stage),
                   default=0)
        return held if last == int(number) and release.round == int(round) + 1 else {}

    def _remember(self, stage: str, line: LedgerLine, state: Tensors) -> None:
        """Keep what the mechanism remembers, with the release that left it."""
        self.noise_state[stage] = state if not state else {
            **state, _LINE: torch.tensor(line.release), _ROUND: torch.tensor(line.round)}

    def _release_securely(
        self, updates: Iterable[ClientUpdate], release: Release,
        expected_shapes: ExpectedShapes | None, transform: Transform | None,
    ) -> ReleasedSum:
        """As ``release``, where the clients clip, add their part of the noise and mask: nothing but
        their noised sum is ever computed here. A client that was asked and does not answer has
        dropped out of the round; one whose update cannot be counted adds its noise alone."""
        charge, mechanism = self._charge_of(release)
        assert self.config.relation is not None
        sensitivity, event = (mechanism.sensitivity(release.bound, self.config.relation),
                              charge.event)
        self._check(charge, mechanism)
        quorum = Quorum.of(release.planned, self.config.dropouts, self.config.colluders)
        if problem := quorum.problem(release.planned, "clients"):
            raise PrivacyError(problem)
        total = ClippedSum.zero(release.template)
        numbers = sum(value.numel() for value in total.total.values())
        noise = self._noise.at(len(self._ledger.lines) + 1)
        assert self._begin_secure_sum is not None  # looked at when this was made
        self._affordable(charge)  # clients that are away charge themselves before they answer
        parties = self._begin_secure_sum(SecureSumRequest(
            stage=release.stage, round=release.round, clients=release.clients,
            planned=release.planned, quorum=quorum, numbers=numbers,
            bound=self._vector_bound(release), sensitivity=sensitivity,
            sigma=release.noise_multiplier * sensitivity, accounted=event.noise_multiplier,
            words=noise.client_words))
        for update in (self._heard(updates) if parties.away
                       else self._valid(updates, release, expected_shapes, total)):
            self._check_roles(update, release.role)
            self._check_turn(update, release.turn)
            if not parties.away:
                parties.add(update.client,
                            vector_of(transform(update) if transform else update.tensors))
        for client, _ in total.rejected:  # it still takes part, or its absence would tell why
            parties.add(client, torch.zeros(numbers, dtype=torch.float64))
        parties.close()
        self._charge(charge, mechanism)
        noised, survivors = parties.total()
        shapes = [value.shape for value in total.total.values()]
        parts = torch.split(noised, [shape.numel() for shape in shapes])
        return ReleasedSum(
            {name: part.view(shape).to(torch.float32)
             for name, part, shape in zip(total.total, parts, shapes, strict=True)},
            release.planned, parties.noise_std(survivors))

    def _heard(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """Whose masked vectors have come: they bear a name alone."""
        for update in self._seal.opened(updates):
            require(not update.tensors, PrivacyError,
                    f"an open update of client '{update.client}' found where masked vectors are "
                    "summed, expected none; report this as a defect")
            yield update

    def _vector_bound(self, release: Release) -> float:
        """A norm that no client's vector exceeds: of one clipped update, or of the sum over the
        units of a site, each clipped and on the grid already, so that nothing is clipped again."""
        if self.config.protects_records:
            return (self._most_units + 1) * release.bound
        return release.bound

    def admit(
        self, updates: Iterable[ClientUpdate], template: Tensors,
        expected_shapes: ExpectedShapes | None = None,
        alternate_shapes: ExpectedShapes | None = None
    ) -> tuple[list[ClientUpdate], Rejections]:
        """Updates of proxies, which are public: no noise and no cost.

        Returns:
            (valid updates in the order of client names, (client, reason) of the others).

        Raises:
            PrivacyError: an update does not come from a proxy.
        """
        received = list(updates)
        for update in received:
            public = update.client in self._proxies and not isinstance(update, SealedUpdate)
            require(public, PrivacyError,
                    f"client '{update.client}' is not a proxy, or was asked together with clients, "
                    "expected public updates only; use aggregator.release")
        checks = UpdateChecks(template, expected_shapes, alternate_shapes)
        rejected: list[tuple[str, str]] = []
        valid = list(checks.valid(received, rejected))
        return sorted(valid, key=lambda update: update.client), tuple(sorted(rejected))

    def collect(
        self, updates: Iterable[ClientUpdate], method: str, instead: str,
        wanted: WantedUpdates, rejected: list[tuple[str, str]], release: Release | None = None,
    ) -> Iterator[ClientUpdate]:
        """Single valid updates as they come; not where the unit is the client.

        With the unit "record" they carry their own noise: the round is charged here, before the
        first is read, and their diagnostics are dropped.

        Args:
            updates: sensitive, as those of ``release``.
            method: name of the method that needs them, for the message.
            instead: name of the nearest method that works on sums.
            wanted: what they must look like.
            rejected: (client, reason) of those that are left out are added to it.
            release: what was decided about the round; None for a method that protects nothing.

        Raises:
            BudgetSpent: as ``release``; then nobody was asked.
            PrivacyError: privacy is on, and the unit is the client or no release was decided.
        """
        checks = UpdateChecks({}, wanted.expected_shapes, wanted.alternate_shapes, self._proxies,
                              self._largest_norm)
        if self.config.off:
            return checks.valid(updates, rejected)
        require(self.config.noised_at_sites, PrivacyError,
                f"'{method}' reads single updates, which privacy forbids; use '{instead}', or set "
                "privacy.off = true")
        if release is None:
            raise PrivacyError(
                f"'{method}' reads single updates without a release, expected one that is charged; "
                f"use '{instead}', or set privacy.off = true")
        self._charge_records(release)
        opened = unsplit(self._seal.opened(updates))
        return self._public(checks.valid(opened, rejected), release.role)

    def _public(self, updates: Iterable[ClientUpdate], role: str) -> Iterator[ClientUpdate]:
        """Updates that carry their own noise, without the diagnostics, which do not."""
        for update in updates:
            self._check_roles(update, role)
            yield ClientUpdate(update.client, update.tensors, update.weight)

    def _valid(self, updates: Iterable[ClientUpdate], release: Release,
               expected_shapes: ExpectedShapes | None, total: ClippedSum) -> Iterator[ClientUpdate]:
        """Valid updates of clients as they come; the others are noted in the sum."""
        checks = UpdateChecks(release.template, expected_shapes, forbidden=self._proxies,
                              largest_norm=self._largest_norm)
        if self.config.off:
            return checks.valid(updates, total.rejected)
        return checks.valid(unsplit(self._seal.opened(updates)), total.rejected)

    def _grid(self, release: Release, mechanism: Mechanism) -> float:
        """The step of the grid on which this release's sum and noise lie; known before any update
        is read."""
        assert self.config.relation is not None
        sigma = release.noise_multiplier * mechanism.sensitivity(release.bound,
                                                                 self.config.relation)
        step = self._noise.step(sigma)
        check_exact(MOST_SUMMANDS * release.bound, step)
        return step

    def _charge_records(self, release: Release) -> None:
        """Account for a release of updates whose noise the sites add."""
        charge, mechanism = self._charge_of(release)
        self._check(charge, mechanism)
        self._charge(charge, mechanism, charge.event.steps)

    def _terms(self, stage: str) -> RecordMechanism:
        """What a round of a stage may ask of any unit, by the privacy plan."""
        terms = (self._record_mechanisms or {}).get(stage)
        if terms is None:
            raise PrivacyError(
                f"a release of stage '{stage}' found, expected none by the privacy plan; release "
                "once a round, in a stage of the plan")
        return terms

    def _check(self, charge: _Charge, mechanism: Mechanism) -> None:
        """Conditions of the guarantee that can be seen without looking at an update."""
        release, relation = charge.release, self.config.relation
        require(math.isfinite(release.bound), PrivacyError,
                f"clip bound is {release.bound}, expected a finite number under privacy; set "
                "privacy.clip")
        require(release.planned >= 1, PrivacyError,
                f"planned cohort is {release.planned}, expected at least 1; check the federation")
        accounted = relation in mechanism.relations and (
            relation != "replace" or charge.event.sampling_rate == charge.sampling_rate == 1.0)
        require(accounted, PrivacyError,
                f"relation '{relation}' with Poisson sampling or mechanism '{charge.mechanism}' "
                f"found, expected full participation; use '{mechanism.relations[0]}'")
        for role in self._accountant.budget:
            agree = self._accountant.events(role) == Counter(self._ledger.events(role))
            require(agree, PrivacyError,
                    f"role '{role}' is charged differently in ledger and accountant; replay the "
                    "ledger once at the start")

    def _check_roles(self, update: ClientUpdate, role: str) -> None:
        """A client may not appear under roles that do not meet: its releases would be spread over
        two accounts."""
        named = frozenset(self._accountant.roles(role))
        possible = self._roles_of.get(update.client, named) & named
        require(bool(possible), PrivacyError,
                f"client '{update.client}' answers as '{role}' but had another role; name all "
                "roles ('proxy+local')")
        self._roles_of[update.client] = possible

    def _check_turn(self, update: ClientUpdate, turn: CohortTurn | None) -> None:
        """A client of one cohort may not appear in another: only one of them is its account."""
        if turn is None:
            return
        require(self._turn_of.setdefault(update.client, turn) == turn, PrivacyError,
                f"client '{update.client}' answers in a round of another cohort than before; "
                "report this as a defect")

    def _check_most(self, update: ClientUpdate, release: Release) -> None:
        """A client may not answer in more rounds than it is charged for."""
        if release.most is None:
            return
        rounds = self._answered.setdefault(update.client, set())
        rounds.add((release.stage, release.round))
        require(len(rounds) <= release.most, PrivacyError,
                f"client '{update.client}' answers in more than {release.most} rounds, for which "
                "it is charged; report this as a defect")

    def _affordable(self, charge: _Charge) -> dict[str, float]:
        """Role -> the epsilon that it will have spent after a release.

        Raises:
            BudgetSpent: it is more than the role may spend.
        """
        accountant = self._accountant
        spent = {role: accountant.spent(role) for role in accountant.budget}
        for role in accountant.roles(charge.release.role):
            would, budget = accountant.would_spend(role, charge.event), accountant.budget[role]
            if not would <= budget:
                raise BudgetSpent(
                    f"role '{role}' has spent epsilon {spent[role]:.4g} and would spend "
                    f"{would:.4g}, its budget is {budget:.4g}; stop here, or start a new run with "
                    "fewer releases or more noise")
            spent[role] = would
        return spent

    def _charge(self, charge: _Charge, mechanism: Mechanism, steps: int = 1) -> LedgerLine:
        """Check the budget, put the line on disk, charge the accounts."""
        accountant, release, relation = self._accountant, charge.release, self.config.relation
        assert relation is not None
        spent = self._affordable(charge)
        sensitivity, rate = mechanism.sensitivity(release.bound, relation), charge.sampling_rate
        line = LedgerLine(
            release=len(self._ledger.lines) + 1,
            stage=release.stage,
            round=release.round,
            role=release.role,
            mechanism=charge.mechanism,
            sensitivity=sensitivity,
            sigma=release.noise_multiplier * sensitivity,
            noise_multiplier=release.noise_multiplier,
            planned=release.planned,
            sampling=UnitSampling.at_rate(
                rate, None if charge.event.turn is None else release.turn, charge.event.most),
            epsilon=spent,
            delta=accountant.delta,
            relation=relation,
            unit=self.config.unit,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            private=self._noise.private and release.noise_multiplier > 0,
            steps=steps,
        )
        # A resumed run charges what it reads in the ledger.
        require(line.event == charge.event, PrivacyError,
                f"mechanism '{charge.mechanism}' is accounted differently in ledger and accountant")
        self._ledger.append(line)
        accountant.add(release.role, charge.event)
        return line


def _check_bound(release: Release) -> None:
    require(release.bound > 0, PrivacyError,
            f"clip bound is {release.bound}, expected a number > 0; set privacy.clip")


def _checked(config: PrivacyConfig, accountant: Accountant | None) -> Accountant:
    """The accountant, once it keeps the promise."""
    if accountant is None or config.delta is None or config.relation is None:
        raise PrivacyError("privacy is on without an accountant, delta or relation; write them, or "
                           "privacy.off = true")
    require(accountant.delta == config.delta, PrivacyError,
            f"accountant has delta {accountant.delta}, expected privacy.delta = {config.delta}; "
            "build it from that")
    promised = math.inf if config.epsilon is None else config.epsilon
    for role, budget in accountant.budget.items():
        require(budget <= promised, PrivacyError,
                f"role '{role}' has budget {budget}, expected at most privacy.epsilon = "
                f"{promised}; lower it")
    return accountant


def _check_noise(config: PrivacyConfig, noise: NoiseSource) -> None:
    require(noise.private or config.noise_seed is not None, PrivacyError,
            "the noise is seeded but privacy.noise_seed is not set; set it (the run is not "
            "private) or use SystemNoise")


def _check_trust(config: PrivacyConfig, sites: KnownSites) -> None:
    problems = config.secure_problems() if config.secure else []
    require(not problems, PrivacyError, "; ".join(problems))
    require(sites.robust is None or config.off or config.noised_at_sites, PrivacyError,
            f"robust rule '{sites.robust.name if sites.robust else ''}' found where clients are "
            "protected, expected none: no noise covers what it gives; set federation.robust = "
            "\"none\"")
    require(not config.secure or sites.secure_sum is not None, PrivacyError,
            "privacy.trust = 'secure' found without a way to sum securely, expected one; report "
            "this as a defect")


def _check_unit(config: PrivacyConfig,
                record_mechanisms: Mapping[str, RecordMechanism] | None) -> None:
    require((record_mechanisms is not None) == (config.unit == "record"), PrivacyError,
            f"privacy.unit = '{config.unit}' {'with' if record_mechanisms else 'without'} terms "
            "for records; give terms for 'record' only")


def _check_ledger(config: PrivacyConfig, ledger: Ledger) -> None:
    """A resumed run goes on under the promise that it was started with."""
    for line in ledger.lines:
        kept = (line.delta, line.unit) == (config.delta, config.unit) and same_relation(
            line.unit, line.relation, config.relation)
        require(kept, PrivacyError,
                f"ledger release {line.release} has delta {line.delta}, relation '{line.relation}' "
                f"and unit '{line.unit}', expected {config.delta}, '{config.relation}' and "
                f"'{config.unit}'; resume with the settings the run was started with")
