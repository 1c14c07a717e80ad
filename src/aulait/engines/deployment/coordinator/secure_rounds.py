"""Secure sums with sites on other machines: the coordinator's half of every exchange as messages.

The aggregator begins a round; then the requests of the round go out with what the neighbours of
each site sealed for it, and what comes back is masked. A site that is silent, refuses, or answers
what is not taken has dropped out of the round, and is told to the event log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar, cast

from torch import Tensor

from aulait.core.errors import AulaitError, PrivacyError, require
from aulait.engines.deployment.coordinator.outbox import BodyT, Outbox, Outgoing, SentMessages
from aulait.engines.deployment.protocol.heads import AnswerHead, RunFields, SumStage
from aulait.engines.deployment.protocol.messages import (
    Answer,
    ClientMessage,
    Message,
    RefusalAnswer,
)
from aulait.engines.deployment.protocol.run_terms import RunTerms, SumTerms
from aulait.engines.deployment.protocol.sum_messages import (
    MOST_CLIENTS,
    SumAgreeMessage,
    SumKeys,
    SumKeysAnswer,
    SumOpenMessage,
    SumPart,
    SumRevealMessage,
    SumSecretsAnswer,
    SumShareMessage,
    SumSharesAnswer,
    SumSignatureAnswer,
    as_bytes,
    told_bytes,
)
from aulait.privacy.aggregator import BudgetSpent
from aulait.privacy.secure.party import Advertisement, Revealed
from aulait.privacy.secure.rounds import SecureRound, encoding_of
from aulait.privacy.secure.summation import SecureSumRequest
from aulait.privacy.secure.terms import SecureTerms
from aulait.runs.prepared import PreparedRun
from aulait.runs.train_stage import draw_cohort

AnswerT = TypeVar("AnswerT", bound=AnswerHead)


class Told(Protocol):
    """What a round needs of the sites that were told their terms; ``participants.Participants`` has
    it, and more that is none of a round's business."""

    @property
    def terms(self) -> Mapping[str, RunTerms]:
        """Of every client."""

    def answers(self, outgoing: Outgoing, sent: SentMessages) -> Iterator[
            tuple[str, Message[Answer]]]:
        """Answers as they come."""


class SecureRounds(Generic[BodyT]):
    """Begins the secure sums of one run, and has the one that is open.

    Args:
        outbox: signed messages of the run.
        participants: its sites, with their terms.
        deadline_s: of an exchange.
    """

    def __init__(self, outbox: Outbox[BodyT], participants: Told,
                 deadline_s: float) -> None:
        self._outbox, self._participants, self._deadline_s = outbox, participants, deadline_s
        self._open: RemoteRound[BodyT] | None = None

    def begin(self, asked: SecureSumRequest) -> RemoteRound[BodyT]:
        """A round with sites: keys and shares are exchanged when this returns.

        Raises:
            PrivacyError: there are too few clients, or their noise does not keep what is accounted.
            BudgetSpent: sites have given what the run promised.
        """
        self._open = None
        sums = self._participants.terms[asked.clients[0]].sums if asked.clients else None
        require(sums is not None, PrivacyError,
                f"a secure sum over {len(asked.clients)} sites without terms found; report this "
                "as a defect")
        assert sums is not None
        terms = SecureTerms.drawn({name: sums.peers[name] for name in asked.clients}, asked.quorum,
                                  asked.numbers, encoding_of(asked))
        parties = RemoteParties(self._outbox, self._participants, asked, terms, self._deadline_s)
        self._open = RemoteRound(terms, parties)
        self._open.open()
        return self._open

    def joined(self, outgoing: Mapping[str, Message[ClientMessage]]
               ) -> dict[str, Message[ClientMessage]]:
        """Requests with their part of the open round; sites that are not in it are left out.

        Raises:
            PrivacyError: no round is open.
        """
        sealed = self._now.sealed
        return {name: Message(message.head.model_copy(update={"sum": SumPart(
            session=self._now.terms.session, sealed=told_bytes(sealed[name]))}), message.body)
            for name, message in outgoing.items() if name in sealed}

    def receive(self, client: str, masked: bytes) -> bool:
        """Whether a masked vector is added to the sum."""
        return self._now.receive(client, masked)

    @property
    def _now(self) -> RemoteRound[BodyT]:
        if self._open is None:
            raise PrivacyError("sites are asked for masked vectors before a secure sum is begun, "
                               "expected the aggregator to begin it; report this as a defect")
        return self._open


class RemoteRound(SecureRound, Generic[BodyT]):
    """A round whose parties are sites.

    Args:
        terms: of the round.
        parties: its sites.
    """

    away = True

    def __init__(self, terms: SecureTerms, parties: RemoteParties[BodyT]) -> None:
        super().__init__(terms, parties)
        self._parties = parties

    def open(self) -> None:
        """As ``SecureRound.open``; where sites have nothing left to give that is said."""
        try:
            super().open()
        except PrivacyError as error:
            if self._parties.spent:
                raise BudgetSpent(
                    f"{self._parties.spent} sites have given what the run promised, rounds that "
                    "were interrupted included; stop here, or start a new run") from error
            raise

    def add(self, client: str, vector: Tensor) -> bool:
        """Never: no vector is here."""
        raise PrivacyError(f"a vector of client '{client}' found here, expected it at its site; "
                           "report this as a defect")


class RemoteParties(Generic[BodyT]):
    """The sites of one round; as ``Parties``.

    Args:
        outbox: signed messages of the run.
        participants: its sites.
        asked: what the round is to be.
        terms: of the round.
        deadline_s: of an exchange.

    Attributes:
        spent: sites that have given what the run promised.
    """

    def __init__(self, outbox: Outbox[BodyT], participants: Told,
                 asked: SecureSumRequest, terms: SecureTerms, deadline_s: float) -> None:
        self._outbox, self._participants, self._deadline_s = outbox, participants, deadline_s
        self._asked, self._terms, self.spent = asked, terms, 0

    def advertise(self) -> Iterator[tuple[str, Advertisement]]:
        """Their keys."""
        asked, terms = self._asked, self._terms
        for name, keys in self._exchange({name: Message(SumOpenMessage(
                **self._fields(name), round=asked.round, session=terms.session,
                of=cast("SumStage", asked.stage), ring=terms.ring, bound=asked.bound,
                numbers=asked.numbers)) for name in sorted(terms.ring)}, SumKeysAnswer):
            yield name, keys.keys.keys

    def share(self, told: Mapping[str, Mapping[str, Advertisement]]
              ) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        """Their shares for each other."""
        made: dict[int, SumKeys] = {}  # everybody is told the same keys
        for keys in told.values():
            made |= {id(own): SumKeys.of(own) for own in keys.values() if id(own) not in made}
        for name, shares in self._exchange({name: Message(SumShareMessage(
                **self._fields(name), round=self._asked.round, session=self._terms.session,
                keys={other: made[id(own)] for other, own in keys.items()}))
                for name, keys in told.items()}, SumSharesAnswer):
            yield name, as_bytes(shares.sealed)

    def agree(self, survivors: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Their signatures."""
        for name, answer in self._exchange({name: Message(SumAgreeMessage(
                **self._fields(name), round=self._asked.round, session=self._terms.session,
                survivors=tuple(survivors))) for name in survivors}, SumSignatureAnswer):
            yield name, bytes.fromhex(answer.signature)

    def reveal(self, signatures: Mapping[str, bytes]) -> Iterator[tuple[str, Revealed]]:
        """Their shares of each other's secrets."""
        told = told_bytes(signatures)
        for name, answer in self._exchange({name: Message(SumRevealMessage(
                **self._fields(name), round=self._asked.round, session=self._terms.session,
                signatures=told)) for name in signatures}, SumSecretsAnswer):
            yield name, answer.revealed

    def refused(self, client: str, what: str) -> None:
        """Tell the operator."""
        self._outbox.silent(client, f"sent {what} that the secure sum does not take")

    def _fields(self, name: str) -> RunFields:
        return {**self._outbox.stamp(name).fields, "client": name,
                "terms": self._participants.terms[name].digest}

    def _exchange(self, outgoing: Outgoing, kind: type[AnswerT]) -> Iterator[tuple[str, AnswerT]]:
        """The answers of one kind, as they come."""
        sent = self._outbox.send(outgoing, self._deadline_s)
        for name, answer in self._participants.answers(outgoing, sent):
            if isinstance(answer.head, kind):
                yield name, answer.head
            elif isinstance(answer.head, RefusalAnswer):
                self.spent += answer.head.why == "spent"
            else:
                self._outbox.silent(name, f"answered a secure sum with '{answer.head.kind}'")


def sum_terms(run: PreparedRun, identities: Mapping[str, str | None]) -> SumTerms | None:
    """What sites are told of the secure sums of a run; None where it has none.

    Args:
        run: before its first round.
        identities: of the sites that take part.

    Raises:
        AulaitError: a site has none, or a sum would be over more sites than there may be.
    """
    if not run.settings.privacy.secure:
        return None
    federation = run.federation
    planned = {cast("SumStage", release.stage): len(federation.voters) if (
        release.stage == "synthesis") else draw_cohort(run, 1, {}, None)[0].planned
        for release in run.privacy.releases}
    peers = {name: identities.get(name) for name in sorted({*federation.voters,
                                                            *federation.trainers})}
    most = max(len(federation.voters), len(federation.trainers))
    require(most <= MOST_CLIENTS, AulaitError,
            f"privacy.trust = 'secure' found with sums over {most} sites, expected at most "
            f"{MOST_CLIENTS}, so that everybody is everybody's neighbour; leave some out, or set "
            "privacy.trust = \"server\"")
    bare = [name for name, identity in peers.items() if identity is None]
    require(not bare, AulaitError,
            f"site{'s' * (len(bare) > 1)} {', '.join(bare[:8])} told no identity for secure sums; "
            "make a key there: aulait keys site")
    return SumTerms(peers={name: str(identity) for name, identity in peers.items()},
                    planned=planned,
                    noise={stage: run.privacy.noise_multiplier(stage) for stage in planned})
