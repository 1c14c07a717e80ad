"""Signed, numbered letters to sites and the answers that belong to them; the network itself is
behind ``Transport``.

An answer is given on only if it bears the stamp of the letter that it answers. Who cannot be
reached, is silent until the deadline, or sends what cannot be read is told to the journal and left
out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aulait.core.errors import WireError
from aulait.core.log_files import plain_text, timestamp
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.protocol import signing
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.tensor_codec import Stamp

SOON_S, LATER_S = 0.1, 0.5  # between two looks for answers: at first, and once a minute has passed
LIMIT_BYTES = 2**34  # of one answer


@dataclass(frozen=True)
class Delivery:
    """An answer, or why there is none.

    Attributes:
        letter: what was answered.
        packet: the answer; None where ``fault`` says what happened instead.
        fault: "the site's node went away", ...
    """

    letter: str
    packet: Packet | None
    fault: str = ""


class Transport(Protocol):
    """Carries packets to sites."""

    def there(self) -> Mapping[str, int]:
        """Sites that are connected now, by the name of their key, to their address."""

    def send(self, address: int, packet: Packet, body: Any, wait_s: float) -> str | None:
        """Send a packet that is not delivered later than ``wait_s`` from now; the letter's name, or
        None if it cannot be delivered. ``body`` from ``body`` is shared."""

    def body(self, raw: bytes) -> Any:
        """Bytes as many letters share them."""

    def collect(self, letters: Sequence[str], limit: int) -> Iterator[Delivery]:
        """Answers that have come, each once, one in memory at a time."""


@dataclass
class SentMessages:
    """SentMessages under way.

    Attributes:
        due_s: until when answers count, by the monotonic clock.
        owner: letter -> site.
        stamp: letter -> its stamp.
    """

    due_s: float
    owner: dict[str, str] = field(default_factory=dict)
    stamp: dict[str, Stamp] = field(default_factory=dict)


class Outbox:
    """SentMessages of one run from one start of the coordinator.

    Args:
        post: carries packets.
        key: the coordinator's, for requests.
        run: 32 hexadecimal digits.
        epoch: how often the coordinator has been started for this run.
        journal: for the operator.

    Attributes:
        told: bytes of messages sent and received, and how many; as they travelled.
    """

    def __init__(self, post: Transport, key: Any, run: str, epoch: int, journal: EventLog) -> None:
        self.post, self.journal, self.told = post, journal, {"sent_bytes": 0, "received_bytes": 0,
            "messages": 0}
        self._key, self._run, self._epoch = key, run, epoch
        self._numbers: dict[str, int] = {}

    def stamp(self, name: str) -> Stamp:
        """Of the next letter to a site."""
        self._numbers[name] = self._numbers.get(name, 0) + 1
        return Stamp(self._run, self._epoch, self._numbers[name])

    def exchange(self, packets: Mapping[str, Packet], wait_s: float) -> Iterator[tuple[str,
            Packet]]:
        """Send one letter to each of some sites, and give answers as they come."""
        yield from self.answers(self.send(packets, wait_s))

    def send(self, packets: Mapping[str, Packet], wait_s: float) -> SentMessages:
        """Sign and hand over; a site that is not connected is silent at once."""
        letters = SentMessages(time.monotonic() + wait_s)
        there = self.post.there() if packets else {}
        shared: dict[int, Any] = {}
        for name, packet in packets.items():
            signed = Packet(packet.head, packet.body, signing.sign(self._key, packet.content()))
            body = (
                shared.setdefault(id(packet.body), self.post.body(packet.body)) if packet.body
                else None
            )
            letter = self.post.send(there[name], signed, body, wait_s) if name in there else None
            if letter is None:
                self.silent(name, "is not connected" if name not in there
                            else "could not be sent a message")
                continue
            letters.owner[letter], letters.stamp[letter] = name, Stamp.of(packet.head)
            self.told["messages"] += 1
            self.told["sent_bytes"] += len(packet.body)
        return letters

    def answers(self, letters: SentMessages) -> Iterator[tuple[str, Packet]]:
        """Answers as they come, until all are there or the time is over."""
        waiting, began = dict(letters.owner), time.monotonic()
        while waiting:
            moment = time.monotonic()
            for heard in self.post.collect(list(waiting), LIMIT_BYTES):
                name = waiting.pop(heard.letter, None)
                if name is not None and (packet := self._checked(name, heard,
                        letters.stamp[heard.letter])) is not None:
                    yield name, packet
            if moment > letters.due_s:
                break
            if waiting:
                time.sleep(min(LATER_S, max(SOON_S, (moment - began) / 120)))
        for name in waiting.values():
            self.silent(name, "gave no answer before the deadline")

    def silent(self, name: str, reason: str) -> None:
        """Tell the operator that a site has no answer that counts."""
        self.journal.warning("silent", site=name, reason=reason)
        self.journal.site(name, state="silent", detail=reason)

    def _checked(self, name: str, heard: Delivery, stamp: Stamp) -> Packet | None:
        """An answer that belongs to its letter; None is told to the journal."""
        packet, fault = heard.packet, heard.fault
        if packet is not None:
            self.told["received_bytes"] += len(packet.body)
            try:
                fault = (
                    "" if Stamp.of(packet.head) == stamp
                    else "answered another message than the one it was sent"
                )
            except WireError as error:
                fault = str(error)
        if packet is None or fault:
            self.silent(name, fault)
            return None
        self.journal.site(name, last_seen=timestamp())
        if packet.kind == "refusal":
            reason = plain_text(packet.head.get("reason"))
            self.journal.warning("refused", site=name, why=plain_text(packet.head.get("why"), 40),
                                 reason=reason)
            self.journal.site(name, state="refused", detail=reason)
        return packet
