"""Signed, numbered messages to sites and the answers that belong to them; the network itself is
behind ``Transport``.

An answer is given on only if it bears the stamp of the message that it answers. Who cannot be
reached, is silent until the deadline, or sends what cannot be read is told to the event log and
left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aulait.core.errors import WireError, require
from aulait.core.log_files import plain_text, timestamp
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.coordinator.receipt_book import ReceiptBook
from aulait.engines.deployment.protocol import messages, signing
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.heads import RequestHead, Stamp
from aulait.engines.deployment.protocol.messages import Answer, Message, RefusalAnswer
from aulait.engines.deployment.protocol.receipts import Receipt
from aulait.engines.deployment.protocol.tensor_codec import data_bytes

# Between two looks for answers, in seconds: at first, and once a minute has passed.
SOON_S, LATER_S = 0.1, 0.5
LIMIT_BYTES: Final = 2**34  # of one answer
BodyT = TypeVar("BodyT")
Outgoing = Mapping[str, Message[RequestHead]]


@dataclass(frozen=True)
class Delivery:
    """An answer, or why there is none.

    Attributes:
        message_id: what was answered.
        packet: the answer; None where ``fault`` says what happened instead.
        fault: "the site's node went away", ...
    """

    message_id: str
    packet: Packet | None
    fault: str = ""


class Transport(Protocol[BodyT]):
    """Carries packets to sites. ``BodyT`` is what many messages share of their bytes."""

    def connected(self) -> Mapping[str, int]:
        """Sites that are connected now, by the name of their key, to their address."""

    def shared_body(self, raw: bytes) -> BodyT:
        """Bytes as many messages share them."""

    def send(self, address: int, packet: Packet, body: BodyT | None, wait_s: float) -> str | None:
        """Send a packet that is not delivered later than ``wait_s`` from now; the message's name,
        or None if it cannot be delivered. ``body`` is the packet's, as ``shared_body`` made it."""

    def collect(self, message_ids: Sequence[str], limit: int) -> Iterator[Delivery]:
        """Answers that have come, each once, one in memory at a time; none above ``limit``
        bytes."""


@dataclass(frozen=True)
class RunIdentity:
    """Which run, which start of its coordinator, and with which key it signs.

    Attributes:
        key: the coordinator's, for requests.
        run: 32 hexadecimal digits.
        epoch: how often the coordinator has been started for this run.
    """

    key: Ed25519PrivateKey
    run: str
    epoch: int


@dataclass
class SentMessages:
    """Messages under way.

    Attributes:
        due_s: until when answers count, by the monotonic clock.
        owner: message -> site.
        stamp: message -> its stamp.
        shown: message -> the receipt of the site's account that it showed.
    """

    due_s: float
    owner: dict[str, str] = field(default_factory=dict)
    stamp: dict[str, Stamp] = field(default_factory=dict)
    shown: dict[str, Receipt | None] = field(default_factory=dict)


class Outbox(Generic[BodyT]):
    """Messages of one run from one start of the coordinator.

    Args:
        transport: carries packets.
        identity: of the run and its coordinator.
        event_log: for the operator.
        receipts: of the sites' accounts; None keeps and shows none.

    Attributes:
        traffic: bytes of tensors sent and received, as they travelled, and the number of
            messages.
    """

    def __init__(self, transport: Transport[BodyT], identity: RunIdentity,
                 event_log: EventLog, receipts: ReceiptBook | None = None) -> None:
        self.transport, self.event_log, self._receipts = transport, event_log, receipts
        self.traffic = {"sent_bytes": 0, "received_bytes": 0, "messages": 0}
        self._identity, self._numbers = identity, dict[str, int]()

    @property
    def run(self) -> str:
        """32 hexadecimal digits."""
        return self._identity.run

    def stamp(self, name: str) -> Stamp:
        """Of the next message to a site."""
        self._numbers[name] = self._numbers.get(name, 0) + 1
        return Stamp(self._identity.run, self._identity.epoch, self._numbers[name])

    def exchange(self, outgoing: Outgoing, wait_s: float) -> Iterator[tuple[str, Message[Answer]]]:
        """Send one message to each of some sites, and give answers as they come."""
        yield from self.answers(self.send(outgoing, wait_s))

    def send(self, outgoing: Outgoing, wait_s: float) -> SentMessages:
        """Sign and hand over; a site that is not connected is silent at once."""
        sent = SentMessages(time.monotonic() + wait_s)
        connected = self.transport.connected() if outgoing else {}
        shared: dict[int, BodyT] = {}
        for name, message in outgoing.items():
            if name not in connected:
                self.silent(name, "is not connected")
                continue
            shown = self._receipts.newest(name) if self._receipts else None
            message = Message(message.head.model_copy(update={"receipt": shown}), message.body)
            plain, body = message.packet(), None
            if plain.body:
                if id(plain.body) not in shared:
                    shared[id(plain.body)] = self.transport.shared_body(plain.body)
                body = shared[id(plain.body)]
            signed = message.packet(signing.sign(self._identity.key, plain.content()))
            message_id = self.transport.send(connected[name], signed, body, wait_s)
            if message_id is None:
                self.silent(name, "could not be sent a message")
                continue
            sent.owner[message_id], sent.stamp[message_id] = name, message.head.stamp
            sent.shown[message_id] = shown
            self.traffic["messages"] += 1
            self.traffic["sent_bytes"] += data_bytes(plain.body)
        return sent

    def answers(self, sent: SentMessages) -> Iterator[tuple[str, Message[Answer]]]:
        """Answers as they come, until all are there or the time is over."""
        waiting, began = dict(sent.owner), time.monotonic()
        while waiting:
            moment = time.monotonic()
            for delivery in self.transport.collect(list(waiting), LIMIT_BYTES):
                name = waiting.pop(delivery.message_id, None)
                if name is None:
                    continue
                answer = self._checked(name, delivery, sent)
                if answer is not None:
                    yield name, answer
            if moment > sent.due_s:
                break
            if waiting:
                time.sleep(min(LATER_S, max(SOON_S, (moment - began) / 120)))
        for name in waiting.values():
            self.silent(name, "gave no answer before the deadline")

    def _keep_receipt(self, name: str, shown: Receipt | None, head: Answer) -> None:
        """Keep what an answer says of its site's account.

        Raises:
            WireError: the account was turned back.
        """
        if self._receipts is None or isinstance(head, RefusalAnswer):
            return
        if text := self._receipts.take(name, shown, head.receipt):
            self.event_log.warning("account", site=name, reason=text)

    def silent(self, name: str, reason: str) -> None:
        """Tell the operator that a site has no answer that counts."""
        reason = plain_text(reason)
        self.event_log.warning("silent", site=name, reason=reason)
        self.event_log.site(name, state="silent", detail=reason)

    def _checked(self, name: str, delivery: Delivery,
                 sent: SentMessages) -> Message[Answer] | None:
        """An answer that belongs to its message; None where it is told to the event log."""
        if delivery.packet is None:
            self.silent(name, delivery.fault)
            return None
        self.traffic["received_bytes"] += data_bytes(delivery.packet.body)
        try:
            answer = messages.read_answer(delivery.packet)
            require(answer.head.stamp == sent.stamp[delivery.message_id], WireError,
                    "answered another message than the one it was sent")
            told = name if isinstance(answer.head, RefusalAnswer) else answer.head.client
            require(told == name, WireError, f"answered in the name of '{told[:80]}'")
            self._keep_receipt(name, sent.shown[delivery.message_id], answer.head)
        except Exception as error:  # whatever a stranger's bytes do to our reading of them
            self.silent(name, str(error) if isinstance(error, WireError)
                        else f"sent what cannot be read ({type(error).__name__})")
            return None
        self.event_log.site(name, last_seen=timestamp())
        if isinstance(answer.head, RefusalAnswer):
            reason, why = plain_text(answer.head.reason), plain_text(answer.head.why, 40)
            self.event_log.warning("refused", site=name, why=why, reason=reason)
            self.event_log.site(name, state="refused", detail=reason)
        return answer
