"""This site's part in the secure sums of its runs: a ``Party`` for each attempt, from its keys to
the shares it reveals.

Everything that weakens or keeps the promise is computed here from the terms that the site has taken
(``sum_policy``); of the coordinator's messages come the session, the ring, and what the policy
holds against the terms. The secrets of a round are in memory and nowhere else: a worker that starts
again has left the round. Of a run one attempt is held, the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from aulait.core import lora
from aulait.core.errors import AulaitError, WireError, require
from aulait.core.factors import Factor, FactorName
from aulait.core.lora import Shapes
from aulait.core.types import ClientRequest, ClientUpdate, Tensors
from aulait.engines.deployment.protocol.heads import AnswerHead, Stamp, SumStage
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.protocol.sum_messages import (
    SumAgreeMessage,
    SumKeys,
    SumKeysAnswer,
    SumMessage,
    SumOpenMessage,
    SumPart,
    SumRevealMessage,
    SumSecretsAnswer,
    SumShareMessage,
    SumSharesAnswer,
    SumSignatureAnswer,
    as_bytes,
    told_bytes,
    told_shares,
)
from aulait.engines.deployment.site.site_policy import SitePolicy
from aulait.engines.deployment.site.sum_policy import (
    bound_problem,
    quorum_of,
    sum_event,
    sum_rounds,
)
from aulait.methods.shared import line_search
from aulait.privacy.adaptive_sum import with_answer
from aulait.privacy.mechanisms import DISTRIBUTED_GAUSSIAN
from aulait.privacy.noise import SystemNoise
from aulait.privacy.secure.encoding import vector_of
from aulait.privacy.secure.graph import choose
from aulait.privacy.secure.keys import Identity
from aulait.privacy.secure.party import Party
from aulait.privacy.secure.rounds import encoding_of
from aulait.privacy.secure.summation import SecureSumRequest
from aulait.privacy.secure.terms import SecureTerms


@dataclass
class _Attempt:
    """A round in which this site takes part.

    Attributes:
        session: of the attempt.
        stage, round: of the release.
        party: what this site does in it.
        bound: L2 bound of a vector.
        last: stamp of the last message of it, what that asked, and the answer.
    """

    session: str
    stage: SumStage
    round: int
    party: Party
    bound: float
    last: tuple[Stamp, SumMessage, AnswerHead] | None = None


class SecureSums:
    """The secure sums of one site.

    Args:
        name: of the site.
        identity: what it signs with; None where it has no key, and takes no part.
        limits: of the site.
    """

    def __init__(self, name: str, identity: Identity | None, limits: SitePolicy) -> None:
        self._name, self._identity, self._limits = name, identity, limits
        self._attempts: dict[str, _Attempt] = {}

    def answer(self, head: SumMessage, terms: RunTerms) -> AnswerHead:
        """What this site says to a message of a secure sum; the same to the same message.

        Raises:
            AulaitError: it will not; then it has left the round.
        """
        held = self._attempts.get(head.run)
        if held is not None and held.last is not None:
            stamp, asked, said = held.last
            # a receipt is the coordinator's, and may have changed
            if stamp == head.stamp and asked == head.model_copy(update={"receipt": asked.receipt}):
                return said
            past = (head.epoch, head.number) <= (stamp.epoch, stamp.number)
            require(not past, WireError, f"message {head.epoch}.{head.number} of a secure sum is "
                    "past")
        answer = self._opened(head, terms) if isinstance(head, SumOpenMessage) else self._step(head)
        self._attempts[head.run].last = head.stamp, head, answer
        return answer

    def ready(self, run: str, part: SumPart | None, request: ClientRequest) -> SumStage:
        """Look whether a request belongs to the round that is open, before anything is worked on;
        whose sum it is.

        Raises:
            WireError: it does not: it asks for a plain update, or for the vector of another sum.
        """
        held = self._attempts.get(run)
        if part is None:
            raise WireError("asked for a plain update, and the terms promise secure sums")
        if held is None or held.party.next_step != "mask" or (
                (held.session, held.stage, held.round)
                != (part.session, request.stage, request.round)):
            raise WireError("asked for the vector of a secure sum that this site has no open part "
                            "in; it was begun anew, or has left the round")
        return held.stage

    def masked(self, run: str, part: SumPart, update: ClientUpdate, terms: RunTerms,
               shapes: Shapes) -> bytes:
        """This site's vector of an update: transformed, clipped, rounded, with its noise, masked.

        Raises:
            WireError: the sum has other coordinates, or shares were changed on the way.
            PrivacyError: too few neighbours are left.
        """
        held = self._attempts[run]
        vector = vector_of(summand(update, held.stage, held.bound, terms, shapes))
        encoding = held.party.terms.encoding
        noised = encoding.noised(vector, SystemNoise().client_words(self._name))
        return held.party.mask(as_bytes(part.sealed), noised)

    def _opened(self, head: SumOpenMessage, terms: RunTerms) -> SumKeysAnswer:
        """Begin an attempt; an older one of the run is forgotten."""
        self._attempts.pop(head.run, None)
        party = Party(self._name, self._own(), self._round_terms(head, terms))
        keys = party.advertise()
        self._attempts[head.run] = _Attempt(head.session, head.of, head.round, party, head.bound)
        return SumKeysAnswer(**head.stamp.fields, client=self._name, keys=SumKeys.of(keys))

    def _own(self) -> Identity:
        require(self._identity is not None, WireError, "this site has no key for secure sums")
        assert self._identity is not None
        return self._identity

    def _round_terms(self, head: SumOpenMessage, terms: RunTerms) -> SecureTerms:
        """The terms of a round, as this site computes them.

        Raises:
            WireError: the round is none of the run's.
            PrivacyError: it would not keep the promise.
        """
        sums, rounds = terms.sums, sum_rounds(terms).get(head.of, 0)
        assert sums is not None  # the policy was held against them
        require(1 <= head.round <= rounds, WireError,
                f"a secure sum of '{head.of}' in round {head.round} found, the terms have {rounds}")
        require({*head.ring} <= {*sums.peers}, WireError,
                "a secure sum with a site that the terms do not name found")
        wrong = bound_problem(self._limits, terms, head.of, head.bound)
        require(wrong is None, WireError, str(wrong))
        quorum, relation = quorum_of(terms, sums, head.of), terms.privacy.relation
        assert relation is not None
        sensitivity = DISTRIBUTED_GAUSSIAN.sensitivity(head.bound, relation)
        encoding = encoding_of(SecureSumRequest(
            stage=head.of, round=head.round, clients=head.ring, planned=sums.planned[head.of],
            quorum=quorum, numbers=head.numbers, bound=head.bound, sensitivity=sensitivity,
            sigma=sums.noise[head.of] * sensitivity,
            accounted=sum_event(sums, head.of).noise_multiplier,
            words=SystemNoise().client_words))
        return SecureTerms(
            head.session, {name: sums.peers[name] for name in head.ring}, head.ring,
            choose(len(head.ring), quorum), quorum, head.numbers, encoding)

    def _step(self, head: SumShareMessage | SumAgreeMessage | SumRevealMessage) -> AnswerHead:
        """The next step of the attempt that is open; after an error it is over."""
        held = self._attempts.get(head.run)
        if held is None or held.session != head.session:
            raise WireError("this site has no part in that secure sum: it was begun anew, or has "
                            "left it")
        try:
            return self._stepped(head, held.party)
        except AulaitError:
            self._attempts.pop(head.run, None)
            raise

    def _stepped(self, head: SumShareMessage | SumAgreeMessage | SumRevealMessage,
                 party: Party) -> AnswerHead:
        fields = head.stamp.fields
        if isinstance(head, SumShareMessage):
            told = {name: own.keys for name, own in head.keys.items()}
            return SumSharesAnswer(**fields, client=self._name,
                                   sealed=told_bytes(party.share(told)))
        if isinstance(head, SumAgreeMessage):
            return SumSignatureAnswer(**fields, client=self._name,
                                      signature=party.agree(head.survivors).hex())
        revealed = party.reveal(as_bytes(head.signatures))
        return SumSecretsAnswer(**fields, client=self._name,
                                seeds=told_shares(revealed.seeds),
                                keys=told_shares(revealed.keys))


def summand(update: ClientUpdate, stage: SumStage, bound: float, terms: RunTerms,
            shapes: Shapes) -> Tensors:
    """What an update adds to a sum, as the coordinator would have made it of the bare update.

    Args:
        update: of this site.
        stage: of the release.
        bound: of a vector.
        terms: of the run.
        shapes: of the layers.
    """
    if stage == "synthesis":
        return update.tensors
    if stage == "search":
        return line_search.floored(update)
    whole = {name: _whole(FactorName.parse(name), shapes, terms.adapter.rank)
             for name in update.tensors}
    placed = replace(update, tensors=lora.placed(update.tensors, whole))
    rule = terms.privacy.adaptive
    if rule is None:
        return placed.tensors
    return with_answer(rule, rule.part_bound(bound), None)(placed)


def _whole(name: FactorName, shapes: Shapes, rank: int) -> torch.Tensor:
    """A factor of the whole rank, without memory of its own."""
    m, n = shapes[name.layer]
    sides: Mapping[Factor, tuple[int, int]] = {
        Factor.A: (rank, n), Factor.B: (m, rank), Factor.R: (rank, rank)}
    return torch.empty(sides[name.factor], device="meta")
