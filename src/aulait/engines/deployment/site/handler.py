"""The site's own judgement and work: a signed packet in, an answer out. No socket, no Flower, no
clock of the coordinator's.

Every packet must be signed by the coordinator and be for this client. What the coordinator is told
when something fails never depends on the site's records: the reason goes to the site's own log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from pydantic import JsonValue

from aulait.core.errors import AulaitError, DataError, PrivacyError, WireError
from aulait.core.reading import read_json
from aulait.core.types import (
    ClientRequest,
    ClientUpdate,
    SearchRequest,
    Site,
    Tensors,
    TrainRequest,
    VoteRequest,
)
from aulait.core.units import units
from aulait.core.version import PACKAGE_VERSION
from aulait.engines.deployment.protocol import (
    messages,
    receipts,
    run_terms,
    signing,
    tensor_codec,
)
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.heads import AnswerHead, RunHead, Stamp, SumStage
from aulait.engines.deployment.protocol.messages import (
    AcceptedAnswer,
    ClientMessage,
    EvaluateMessage,
    FactsAnswer,
    HelloMessage,
    KeepMessage,
    Message,
    Request,
    ScoresAnswer,
    SearchMessage,
    SplitBegin,
    SplitStep,
    TermsMessage,
    UpdateAnswer,
)
from aulait.engines.deployment.protocol.receipts import Receipt, SiteIdentity
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.protocol.sum_messages import (
    MaskedAnswer,
    SumMessage,
    SumOpenMessage,
    SumPart,
)
from aulait.engines.deployment.site import kept_state, old_accounts, policy, request_checks
from aulait.engines.deployment.site.kept_state import KeptState
from aulait.engines.deployment.site.lifetime_account import FRESH, LifetimeAccount
from aulait.engines.deployment.site.load_session import ModelCache, SiteSession, load_session
from aulait.engines.deployment.site.lost_account import LostAccount, read_lost
from aulait.engines.deployment.site.privacy_account import SiteAccount
from aulait.engines.deployment.site.secure_sums import SecureSums
from aulait.engines.deployment.site.site_evaluation import measured
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.engines.deployment.site.split_session import SplitSessions
from aulait.engines.deployment.site.sum_policy import sum_problems
from aulait.methods.shared import line_search
from aulait.methods.shared.private_answer import answer_privately
from aulait.synthesis import private_evolution

RunMessage = ClientMessage | EvaluateMessage | SplitBegin | SplitStep


class EventSink(Protocol):
    """Where a site's events go: its own log."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """An event with its fields."""


class Refused(WireError):  # noqa: N818
    """The site will not; the text may be told to the coordinator.

    Attributes:
        why: see ``RefusalAnswer``.
    """

    def __init__(self, text: str, why: str = "refused") -> None:
        super().__init__(text)
        self.why = why


@dataclass
class HandlerFacts:
    """What the worker's health tells of the handler; its names are those of ``aulait status``.

    Attributes:
        orders, refused: messages answered, and refused.
        loads: how often a base was loaded.
        run, stage, round: of the last message of a run.
        last_error: of the last refusal or failure; sensitive.
    """

    orders: int = 0
    refused: int = 0
    loads: int = 0
    run: str | None = None
    stage: str | None = None
    round: int | None = None
    last_error: str | None = None


@dataclass
class ActiveRun:
    """A run that the site takes part in.

    Attributes:
        terms: of the run.
        kept: what is on disk of it.
        account: of what it has been given.
        session: what is loaded for it; None until it is needed.
        split: the split round that goes on.
    """

    terms: RunTerms
    kept: KeptState
    account: SiteAccount
    session: SiteSession | None = None
    split: SplitSessions = field(default_factory=SplitSessions)


class SiteHandler:
    """Answers packets for one site.

    Args:
        file: of the site.
        log: the site's own.
        cache: of loaded models; None makes one.

    Attributes:
        facts: what is told about the worker's health.
    """

    def __init__(self, file: SiteFile, log: EventSink, cache: ModelCache | None = None) -> None:
        self._file, self._log = file, log
        self._key = signing.load_public(file.keys.orders)
        self._identity = receipts.identity(file.site.name, file.keys.private)
        self._sum_identity = None if self._identity is None else self._identity.sums
        self._sums = SecureSums(file.site.name, self._sum_identity, file.limits)
        self._cache, self._runs = cache or ModelCache(), dict[str, ActiveRun]()
        self.facts = HandlerFacts()
        if file.limits.threads:
            torch.set_num_threads(file.limits.threads)

    def answer(self, packet: Packet) -> Packet:
        """The answer to a packet.

        Raises:
            WireError: there is no stamp to answer to.
        """
        stamp = messages.stamp_of(packet)
        try:
            answer = self._answer(packet, self._checked(packet))
            self.facts.orders += 1
        except Refused as refused:
            answer = self._no(stamp, str(refused), refused.why, str(refused))
        except AulaitError as error:
            told = f"failed ({type(error).__name__}); the reason is in the site's own log"
            answer = self._no(stamp, told, "failed", str(error))
        except Exception as error:  # a defect; the coordinator must not wait for an answer
            told = "failed by a defect; the reason is in the site's own log"
            answer = self._no(stamp, told, "failed", f"{type(error).__name__}: {error}")
        self.facts.loads = self._cache.loads
        return answer

    def rest(self) -> bool:
        """Let base and embedder go; whether any were held. Split sessions end."""
        for run in self._runs.values():
            run.split.clear()
        self._runs.clear()  # what they remember is on disk
        return self._cache.clear()

    def _checked(self, packet: Packet) -> Message[Request]:
        """The message of a packet; whose it is is looked at before anything else.

        Raises:
            Refused: it is not signed by the coordinator, not for this client, or no message.
        """
        if not packet.signature or not signing.verify(self._key, packet.content(),
                                                      packet.signature):
            raise Refused("the message is not signed by the coordinator whose key this site holds "
                          "(keys.orders)")
        try:
            message = messages.read_request(packet)
        except WireError as error:
            raise Refused(str(error)) from error
        if message.head.client != self._file.site.name:
            raise Refused(f"a message for another client came to '{self._file.site.name}'")
        self._witnessed(message.head.receipt)
        return message

    def _answer(self, packet: Packet, message: Message[Request]) -> Packet:
        head = message.head
        self._log("asked", kind=head.kind, epoch=head.epoch, number=head.number,
                  bytes=len(packet.body))
        if isinstance(head, HelloMessage):
            return self._receipted(self._hello(head)).packet()
        if isinstance(head, TermsMessage):
            return self._receipted(self._take_terms(head)).packet()
        if isinstance(head, KeepMessage):
            return self._receipted(self._keep(head, message.body)).packet()
        if isinstance(head, SumMessage):
            return self._receipted(self._sum(head)).packet()
        return self._once(packet, Message(head, message.body))

    def _no(self, stamp: Stamp, told: str, why: str, own: str) -> Packet:
        """A refusal: ``told`` goes to the coordinator, ``own`` to the site's log."""
        self.facts.refused += 1
        self.facts.last_error = own
        self._log("refused", why=why, reason=own, epoch=stamp.epoch, number=stamp.number)
        return messages.refusal(stamp, told, why).packet()

    def _hello(self, head: HelloMessage) -> Message[FactsAnswer]:
        """Who is here and what it allows; nothing of its records."""
        if head.version != run_terms.VERSION:
            raise Refused(f"messages of version {head.version} found, this site speaks "
                          f"{run_terms.VERSION} (aulait {PACKAGE_VERSION})")
        limits = self._file.limits
        return Message(FactsAnswer(
            **head.stamp.fields, client=self._file.site.name,
            version=run_terms.VERSION, package=PACKAGE_VERSION, roles=limits.roles,
            methods=limits.methods, privacy=limits.privacy, models=tuple(sorted(self._file.models)),
            embedders=tuple(sorted(self._file.embedders)), profile=self._profile(),
            identity=None if self._sum_identity is None else self._sum_identity.public.hex()))

    def _profile(self) -> JsonValue:
        """What ``aulait probe`` measured of this machine; None where it measured nothing."""
        path = self._file.site.state / "profile.json"
        if not path.is_file():
            return None
        return read_json(path, DataError, "what 'aulait probe --out' measured; measure again, or "
                         "remove it")

    def _take_terms(self, head: TermsMessage) -> Message[AcceptedAnswer]:
        """Terms: held against the site's policy, then everything they need is loaded."""
        given = head.told
        try:
            run_terms.check_method(given)
        except WireError as error:
            raise Refused(str(error)) from error
        if given.run != head.run:
            raise Refused("terms of another run than their message")
        self._allow(given)
        known = self._known(head.run)
        if known is not None and known.terms.digest != given.digest:
            raise Refused(f"run {head.run[:8]} was told other terms before; begin a new run for "
                          "other settings")
        run = known or self._enter(given)
        session = self._load(run)
        if known is None:
            kept_state.write_terms(run.kept.folder, given)
            self._runs[head.run] = run
        # With the unit "record" the number of units is told with every update anyway.
        public = given.privacy.off or given.privacy.unit == "record"
        return Message(AcceptedAnswer(
            **head.stamp.fields, client=given.client,
            records=session.units if public else None))

    def _keep(self, head: KeepMessage, body: bytes) -> Message[AcceptedAnswer]:
        """Public tensors of a run, which later requests name; looked at when they are used."""
        kept_state.keep_tensors(self._run_of(head).kept.folder, body)
        return Message(AcceptedAnswer(**head.stamp.fields, client=head.client))

    def _sum(self, head: SumMessage) -> Message[AnswerHead]:
        """A step of a secure sum. Nothing of it is written down: who starts again has left it."""
        run = self._run_of(head)
        if (head.epoch, head.number) <= (run.kept.epoch, run.kept.number):
            raise Refused(f"message {head.epoch}.{head.number} of a secure sum is past", "past")
        try:
            if isinstance(head, SumOpenMessage):
                self._affords(run, head.of)
            return Message(self._sums.answer(head, run.terms))
        except Refused:
            raise
        except (WireError, PrivacyError) as error:  # of the protocol, not of records
            raise Refused(str(error)) from error

    def _affords(self, run: ActiveRun, stage: SumStage) -> None:
        """Raise unless the promise of the run covers one more secure sum.

        Raises:
            Refused: what it has spent the coordinator knows, having asked for it.
        """
        if run.terms.sums is None or stage not in run.terms.sums.noise:
            raise Refused("asked for a secure sum, and the terms say nothing of it")
        try:
            run.account.sum_room(stage)
        except PrivacyError as error:
            raise Refused(str(error), "spent") from error

    def _held(self, head: ClientMessage, run: ActiveRun) -> Tensors:
        """The kept tensors that a request names; none where it names none.

        Raises:
            Refused: this site does not have them.
            WireError: they cannot be read.
        """
        digest = head.settings.get(messages.KEPT)
        if digest is None:
            return {}
        body = kept_state.kept_tensors(run.kept.folder, digest) if isinstance(digest, str) else None
        if body is None:
            raise Refused("the request names tensors that this site does not have; send them",
                          "kept")
        return tensor_codec.unpack_tensors(body)

    def _once(self, packet: Packet, message: Message[RunMessage]) -> Packet:
        """The answer to a message of a run; the same bytes where it was answered before."""
        head = message.head
        run = self._run_of(head)
        # what measures only leaves nothing behind, in whatever round it comes
        measures = isinstance(head, EvaluateMessage | SearchMessage)
        key = None if measures else kept_state.round_key(head, run.terms)
        asked = hashlib.sha256(packet.content()).hexdigest()
        with run.kept.untouched():
            try:
                answered = run.kept.admit(head.stamp, key, asked)
            except WireError as error:
                raise Refused(str(error), "past") from error
            if answered is not None:
                self._log("repeated", epoch=head.epoch, number=head.number)
                return answered
            session = run.session or self._load(run)
            self.facts.run, self.facts.stage, self.facts.round = head.run, head.stage, head.round
            answer = self._receipted(self._work(message, run, session)).packet()
            run.kept.done(head.stamp, asked, answer)
            return answer

    def _work(self, message: Message[RunMessage], run: ActiveRun,
              session: SiteSession) -> Message[AnswerHead]:
        head = message.head
        if isinstance(head, SplitBegin | SplitStep):
            return self._split(Message(head, message.body), run, session)
        for other in self._runs.values():  # a split round that something else interrupts has ended
            other.split.clear()
        if isinstance(head, EvaluateMessage):
            return self._evaluate(Message(head, message.body), run, session)
        return self._update(Message(head, message.body), run, session)

    def _update(self, message: Message[ClientMessage], run: ActiveRun,
                session: SiteSession) -> Message[UpdateAnswer] | Message[MaskedAnswer]:
        """Train, measure steps, or vote; where sums are secure the answer is a masked vector."""
        try:
            request = messages.client_request(message, self._held(message.head, run))
        except Refused:
            raise
        except WireError as error:
            raise Refused(str(error)) from error
        fault = request_checks.request_fault(request, run.terms, self._file.limits,
                                             session.context.shapes)
        if fault is not None:
            raise Refused(fault)
        site, part, stage = session.site(run.kept.memory), message.head.sum, None
        if run.terms.privacy.secure:
            stage = self._open_sum(part, request, run)
        elif part is not None:
            raise Refused("asked for a masked vector, and the terms promise no secure sums")
        else:
            run.account.charge_run()
        if isinstance(request, VoteRequest):
            (update,) = self._voted(request, site, run, session)
        elif isinstance(request, SearchRequest):
            (update,) = line_search.answer([request], [site], run.terms.method, session.context,
                                           session.learner)
        else:
            assert isinstance(request, TrainRequest)
            (update,) = self._trained(request, site, run, session)
        self._log("answered", stage=request.stage, round=request.round,
                  **{name: float(value) for name, value in update.info.items()})
        if part is not None and stage is not None:
            masked = self._sums.masked(run.terms.run, part, update, run.terms,
                                       session.context.shapes)
            run.account.charge_sum(stage)  # on disk before the vector leaves
            return Message(MaskedAnswer(**message.head.stamp.fields, client=update.client), masked)
        if not run.terms.privacy.off:
            # Diagnostics and, where clients are protected, the number of records stay here.
            protected = run.terms.privacy.unit == "record"
            weight = float(session.units) if protected else 1.0
            update = type(update)(update.client, update.tensors, weight)
        wire = run.terms.adapters if request.stage == "train" else "float32"
        return messages.update_message(update, message.head.stamp, wire)

    def _open_sum(self, part: SumPart | None, request: ClientRequest, run: ActiveRun) -> SumStage:
        """The release whose open sum a request belongs to, once the promise covers it."""
        try:
            stage = self._sums.ready(run.terms.run, part, request)
        except WireError as error:
            raise Refused(str(error)) from error
        self._affords(run, stage)
        return stage

    def _voted(self, request: VoteRequest, site: Site, run: ActiveRun,
               session: SiteSession) -> list[ClientUpdate]:
        """What came of a vote; where single records are protected with noise of this site's own,
        which is charged before. Votes without noise are given only where the terms, which this
        site has taken, say so."""
        terms, width = run.terms, request.tensors["embeddings"].shape[1]
        if width != session.embedder.width:
            raise Refused(f"candidates of width {width} found, the embedder here has "
                          f"{session.embedder.width}; use the same one at both")
        if terms.privacy.protects_records and not terms.exact_votes:
            run.account.charge_votes(request.settings, site)
        return private_evolution.answer([request], [site], session.context, session.embedder)

    def _trained(self, request: TrainRequest, site: Site, run: ActiveRun,
                 session: SiteSession) -> list[ClientUpdate]:
        """What came of training; where single records are protected with noise of this site's own,
        which is charged before."""
        method, context, learner = run.terms.method, session.context, session.learner
        if run.terms.privacy.protects_records:
            noise = run.account.charge(request.settings, site, run.terms)
            return answer_privately(method, [request], [site], context, learner, noise)
        return method.answer([request], [site], context, learner)

    def _evaluate(self, message: Message[EvaluateMessage], run: ActiveRun,
                  session: SiteSession) -> Message[ScoresAnswer]:
        if not self._file.limits.evaluate:
            raise Refused("this site measures nothing (limits.evaluate = false)")
        head = message.head
        found = measured(session, message, run.kept.memory, run.kept.folder)
        self._log("measured", round=head.round, loss=found.loss, what=head.what)
        answer = ScoresAnswer(**head.stamp.fields, client=self._file.site.name)
        if run.terms.privacy.off:  # else the scores stay here
            run.account.charge_run()
            answer = answer.model_copy(update={"sums": found.sums, "shared": found.shared,
                                               "task": found.task})
        return Message(answer)

    def _split(self, message: Message[SplitBegin | SplitStep], run: ActiveRun,
               session: SiteSession) -> Message[messages.SplitStates]:
        if not run.terms.privacy.off or run.terms.placement != "split":
            raise Refused("asked for activations, and the terms do not say 'split' without privacy")
        if not 1 <= message.head.round <= run.terms.rounds:
            raise Refused(f"a split round outside the {run.terms.rounds} of the terms")
        run.account.charge_run()
        try:
            return run.split.answer(message, session)
        except WireError as error:
            raise Refused(str(error)) from error

    def _allow(self, terms: RunTerms, records: int | None = None) -> None:
        """Hold the site's policy against terms.

        Args:
            terms: of a run.
            records: that the site trains on, where they have been read; before, the most that there
                can be, so that what is refused then would be refused with fewer records too.

        Raises:
            Refused: with every limit that is exceeded.
        """
        limits = self._file.limits
        most = min(terms.records_per_client, limits.records) if records is None else records
        problems = [*policy.unknown_names(self._file, terms),
                    *policy.unit_refusals(self._file, terms),
                    *policy.refusals(limits, terms, most)]
        if not problems:
            problems = sum_problems(self._file, self._sum_identity, terms)
        if problems:
            raise Refused("; ".join(problems))

    def _load(self, run: ActiveRun) -> SiteSession:
        """Load what a run needs, and let go of what other runs hold of another base: one base is in
        memory, whoever asks.

        Raises:
            Refused: with the site's records the run goes beyond its policy.
        """
        for other in self._runs.values():
            # A split round in the middle holds its updates in the base's weights.
            other.split.clear()
            if other.session is not None and other.terms.model != run.terms.model:
                other.session = None
        session = run.session = load_session(run.terms, self._file, self._cache)
        self._allow(run.terms, session.units)
        share = policy.share_problem(self._file.limits, run.terms,
                                     len(units(session.records.train)))
        if share is not None:
            raise Refused(share)
        try:
            run.account.room(session.units)
        except PrivacyError as error:
            # How much has been spent is for this site to know.
            self._log("spent", reason=str(error))
            raise Refused("the run would go beyond what this site gives in its lifetime; ask it "
                          "for limits.lifetime_epsilon, or promise less") from error
        if run.terms.too_long != "cut" and not run.terms.privacy.off:
            self._log("cut", reason="under privacy long records are cut here, not "
                                    f"'{run.terms.too_long}'")
        return session

    def _run_of(self, head: RunHead) -> ActiveRun:
        """The run that a message belongs to.

        Raises:
            Refused: this site does not know it, or by other terms.
        """
        found = self._known(head.run)
        if found is None:
            raise Refused(f"run {head.run[:8]} is not known here; send its terms", "terms")
        if found.terms.digest != head.terms:
            raise Refused(f"run {head.run[:8]} is known here by other terms")
        return found

    def _known(self, run: str) -> ActiveRun | None:
        """A run that is known, from memory or from disk; today's policy is held against it
        again."""
        if run not in self._runs:
            terms = kept_state.read_kept_terms(self._file.site.state, run)
            if terms is None:
                return None
            self._allow(terms)
            self._runs[run] = self._enter(terms)
        return self._runs[run]

    def _enter(self, terms: RunTerms) -> ActiveRun:
        kept = kept_state.read_kept_state(self._file.site.state, terms.run)
        return ActiveRun(terms, kept, SiteAccount(self._lifetime, terms, self._file.limits))

    @cached_property
    def _lifetime(self) -> LifetimeAccount:
        """The account of the site's data source; what an older version kept is taken over once."""
        state, source = self._file.site.state, self._file.data.source
        if self._lost is None:
            old_accounts.take_over(state, source)
        return LifetimeAccount(state, source, signing.fingerprint(self._key),
                               self._lost.beginning(source) if self._lost else FRESH)

    @cached_property
    def _lost(self) -> LostAccount | None:
        """What the account was begun anew with, where an earlier one was lost."""
        return read_lost(self._file.site.state, self._file.data.source, self._identity)

    def _account_name(self, own: SiteIdentity) -> str:
        """Of the account in receipts."""
        return self._lost.name if self._lost else own.account_name(self._file.data.source)

    def _witnessed(self, shown: Receipt | None) -> None:
        """Hold this site's account against the receipt that the coordinator shows.

        Raises:
            Refused: the account is an older copy, or has another history.
        """
        if shown is None or self._identity is None or not self._identity.is_own(shown):
            return
        account = self._lifetime
        if shown.account != self._account_name(self._identity):
            return  # of another data source, or of an account that was lost
        if account.sequence < shown.sequence:
            raise Refused(f"the account of this site has {account.sequence} charges and its own "
                          f"receipt shows {shown.sequence}: STATE/account is an old copy or was "
                          "deleted; restore the newest one at the site (lost for good: aulait "
                          "join SITE.toml --account-lost)")
        if account.head_at(shown.sequence) != shown.head:
            raise Refused("the account of this site has another history than its own receipt of "
                          f"charge {shown.sequence} shows; restore the newest copy of "
                          "STATE/account at the site")

    def _receipted(self, answer: Message[AnswerHead]) -> Message[AnswerHead]:
        """An answer with the receipt of the account as it stands."""
        if self._identity is None:
            return answer
        name = self._account_name(self._identity)
        receipt = self._identity.signed(name, self._lifetime.sequence, self._lifetime.head)
        return Message(answer.head.model_copy(update={"receipt": receipt}), answer.body)
