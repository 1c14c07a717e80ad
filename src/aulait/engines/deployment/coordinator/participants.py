"""Who takes part in a run: sites are waited for, told the terms, and told again when they missed
them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic

from aulait.core.errors import AulaitError, require
from aulait.core.log_files import plain_text, timestamp
from aulait.engines.deployment.coordinator.outbox import BodyT, Outbox, Outgoing, SentMessages
from aulait.engines.deployment.protocol.heads import RequestHead
from aulait.engines.deployment.protocol.messages import (
    AcceptedAnswer,
    Answer,
    FactsAnswer,
    HelloMessage,
    KeepMessage,
    Message,
    RefusalAnswer,
    TermsMessage,
)
from aulait.engines.deployment.protocol.run_terms import VERSION, RunTerms
from aulait.engines.deployment.protocol.tensor_codec import Body
from aulait.runs.experiment_file import EngineConfig

HELLO_S = 120.0
AGAIN_S = 15.0  # between two questions to a site that will not take part as it stands


class Participants(Generic[BodyT]):
    """The sites of one run.

    Args:
        outbox: speaks with them.
        config: how long they are waited for, and how many are needed.

    Attributes:
        terms: of every client, once they are told.
        records: number of records of every site that tells it; 0 where it is not known, or not to
            be.
        identities: of every site in secure sums, as it told when the run began; None where it told
            none.
    """

    def __init__(self, outbox: Outbox[BodyT], config: EngineConfig) -> None:
        self._outbox, self._config, self._event_log = outbox, config, outbox.event_log
        self.terms: dict[str, RunTerms] = {}
        self.records: dict[str, int] = {}
        self.identities: dict[str, str | None] = {}

    def hello(self, least: int, wait_s: float, expected: Sequence[str]) -> dict[str, FactsAnswer]:
        """Wait for sites and ask who they are.

        Args:
            least: without so many the run cannot begin.
            wait_s: how long all of ``expected`` are waited for.
            expected: names that may take part.

        Returns:
            Name -> what the site tells of itself.

        Raises:
            AulaitError: too few came.
        """
        until, facts = time.monotonic() + wait_s, dict[str, FactsAnswer]()
        asked_s, refused = dict[str, float](), dict[str, str]()
        while True:
            limit_s = min(HELLO_S, max(5.0, until - time.monotonic()))
            for name, answer in self._outbox.exchange(self._new(expected, facts, asked_s), limit_s):
                asked_s[name] = time.monotonic()
                if isinstance(answer.head, FactsAnswer):
                    facts[name] = answer.head
                    self._event_log.site(name, state="there", last_seen=timestamp())
                else:
                    refused[name] = f"{name} ({_reason(answer)})"
            missing = sorted({*expected} - {*facts})
            if not missing or time.monotonic() > until:
                break
            self._event_log.progress("wait", len(facts), len(expected),
                                     f"waiting for {', '.join(missing[:4])}")
            time.sleep(1.0)
        self._check_missing({name: refused.get(name, name) for name in missing},
                            f"{len(facts)} sites came within {wait_s:g} s, expected at least "
                            f"{least}" if len(facts) < least else "")
        return facts

    def _new(self, expected: Sequence[str], facts: Mapping[str, FactsAnswer],
             asked_s: Mapping[str, float]) -> Outgoing:
        """A question for every connected site that has not told of itself and was not asked just
        now."""
        found = {}
        for name in self._outbox.transport.connected():
            again_s = asked_s.get(name, -math.inf) + AGAIN_S
            if name in expected and name not in facts and time.monotonic() > again_s:
                found[name] = Message(HelloMessage(**self._outbox.stamp(name).fields, client=name,
                                                   version=VERSION))
        return found

    def _check_missing(self, missing: Mapping[str, str], too_few: str) -> None:
        """Tell the operator who is missing, with what each said.

        Raises:
            AulaitError: ``too_few`` came.
        """
        told = ", ".join([*missing.values()][:8]) or "anybody"
        require(not too_few, AulaitError, f"{too_few}; missing: {told}; start them by 'aulait "
                                          "join', or set engine.least_sites")
        for name, text in missing.items():
            self._event_log.warning("absent", site=name, reason=f"{text} did not come before the "
                                    "run began; it takes no part")

    def begin(self, terms: Mapping[str, RunTerms], known: Mapping[str, int], again: bool) -> None:
        """Tell every site its terms.

        Args:
            terms: of every client.
            known: records of sites, as they told before.
            again: whether the run has begun before; then a site that refuses is a client that does
                not answer.

        Raises:
            AulaitError: a site refuses, in its own words; or fewer than ``engine.least_sites``
                accept.
        """
        self.terms = dict(terms)
        for name, own in terms.items():
            self._event_log.site(name, role=own.placement, tier=own.tier)
        self.records = {name: known.get(name, 0) for name in terms}
        accepted, problems = 0, []
        for name, answer in self.tell(list(terms), self._config.deadline_s):
            if isinstance(answer.head, AcceptedAnswer):
                accepted += 1
            else:
                problems.append(f"site '{name}': {_reason(answer)}")
        require(not problems or (again and len(problems) < len(terms)), AulaitError,
                "\n".join(problems))
        least = self._config.least_sites
        require(again or accepted >= min(least, len(terms)), AulaitError,
                f"{accepted} sites took their terms within {self._config.deadline_s:g} s, expected "
                f"at least {least} (engine.least_sites); look at 'aulait status', then begin again")

    def tell(self, names: Sequence[str],
             wait_s: float) -> Iterator[tuple[str, Message[Answer]]]:
        """Send sites their terms; their answers, of which the number of records is kept."""
        outgoing = {name: Message(TermsMessage(**self._outbox.stamp(name).fields, client=name,
                                               told=self.terms[name])) for name in names}
        for name, answer in self._outbox.exchange(outgoing, wait_s):
            if isinstance(answer.head, AcceptedAnswer) and answer.head.records is not None:
                self.records[name] = answer.head.records
            yield name, answer

    def answers(self, outgoing: Outgoing, sent: SentMessages,
                kept: Mapping[str, Body] | None = None) -> Iterator[tuple[str, Message[Answer]]]:
        """Answers as they come; a site that lacks what the request builds on is sent that and asked
        again.

        Args:
            outgoing: the requests.
            sent: as they were sent.
            kept: client -> the tensors that its request names.
        """
        lacking = dict[str, list[str]]()
        for name, answer in self._outbox.answers(sent):
            head = answer.head
            if isinstance(head, RefusalAnswer) and head.why in ("terms", "kept"):
                lacking.setdefault(head.why, []).append(name)
            else:
                yield name, answer
        told = [name for name, answer in self.tell(lacking.get("terms", ()), _left_s(sent))
                if isinstance(answer.head, AcceptedAnswer)] if lacking.get("terms") else []
        needing = {name: kept[name] for name in (*lacking.get("kept", ()), *told)
                   if kept and name in kept}
        there = self._give(needing, outgoing, _left_s(sent))
        again: dict[str, Message[RequestHead]] = {}
        for name in [*(name for name in told if name not in needing), *there]:
            number = self._outbox.stamp(name).number
            again[name] = Message(outgoing[name].head.model_copy(update={"number": number}),
                                  outgoing[name].body)
        if again and _left_s(sent) > 0:
            yield from self._outbox.exchange(again, _left_s(sent))

    def _give(self, needing: Mapping[str, Body], outgoing: Outgoing, wait_s: float) -> list[str]:
        """Send sites the tensors that they are to keep; who has them now."""
        if not needing or wait_s <= 0:
            return []
        messages = {name: Message(KeepMessage(
            **self._outbox.stamp(name).fields, client=name, terms=self.terms[name].digest,
            round=getattr(outgoing[name].head, "round", 0)), body.raw)
            for name, body in needing.items()}
        return [name for name, answer in self._outbox.exchange(messages, wait_s)
                if isinstance(answer.head, AcceptedAnswer)]


def _left_s(sent: SentMessages) -> float:
    """Seconds until a round closes."""
    return max(0.0, sent.due_s - time.monotonic())


def _reason(answer: Message[Answer]) -> str:
    """Why a site refuses, fit for a terminal."""
    head = answer.head
    return plain_text(head.reason if isinstance(head, RefusalAnswer) else f"answered '{head.kind}'")
