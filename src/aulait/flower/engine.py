"""The engine over a network: the same orders and replies as ``inline``, carried to sites and back.

What the coordinator does itself (proxies, the back of a cut model) goes on in this process while sites work. A round
closes when all have answered or ``engine.deadline_s`` has passed; who is silent, refuses or sends what cannot be read is
told to the journal and left out, as a client that dropped out. Every letter is signed, numbered and answered at most once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aulait import inline
from aulait.algorithms.contract import Ask, Setting
from aulait.assemble import House
from aulait.config import Settings
from aulait.embed import Embedder
from aulait.encoding import Wire
from aulait.errors import AulaitError, WireError
from aulait.fingerprint import fingerprint
from aulait.flower import brief as briefs
from aulait.flower import signing, wire
from aulait.flower.brief import Brief
from aulait.flower.journal import Journal, plain
from aulait.flower.judging import Wear
from aulait.flower.packet import Packet
from aulait.flower.post import Heard, Post
from aulait.flower.split_remote import RemoteSplitLearner
from aulait.flower.spool import Spool, in_order
from aulait.flower.wire import Body, Stamp
from aulait.registry import require
from aulait.train import AT_ONCE, Learner
from aulait.types import Order, Reply, Site, Tensors

POLL_S = 0.1
LIMIT_BYTES = 2**34  # of one answer
HELLO_S = 120.0
_GRACE_S = 5.0  # a letter is not delivered later than its deadline by more


@dataclass
class _Letters:
    """Letters under way: what they are called, whose they are, until when."""

    due_s: float
    owner: dict[str, str] = field(default_factory=dict)
    stamp: dict[str, Stamp] = field(default_factory=dict)


class Engine:
    """Speaks with the sites of one run.

    Args:
        post: carries packets.
        settings: the experiment.
        key: the coordinator's, for orders.
        run: 32 hexadecimal digits.
        epoch: how often the coordinator has been started for this run.
        journal: for the operator.

    Attributes:
        journal: as given.
        told: bytes of messages sent and received, and how many; as they travelled.
    """

    def __init__(self, post: Post, settings: Settings, key: Any, run: str, epoch: int, journal: Journal) -> None:
        self._post, self._settings, self._key, self.journal = post, settings, key, journal
        self._run, self._epoch = run, epoch
        self._numbers: dict[str, int] = {}
        self._briefs: dict[str, Brief] = {}
        self.told = {"sent_bytes": 0, "received_bytes": 0, "messages": 0}

    def hello(self, least: int, wait_s: float, expected: Sequence[str]) -> dict[str, dict[str, Any]]:
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
        until, facts, asked = time.monotonic() + wait_s, dict[str, dict[str, Any]](), set[str]()
        while True:
            new = {name: Packet({"kind": "hello", **self._stamp(name).head(), "client": name, "version": briefs.VERSION})
                   for name in self._post.there() if name in expected and name not in asked}
            asked |= {*new}
            for name, packet in self._exchange(new, min(HELLO_S, max(5.0, until - time.monotonic()))):
                if packet.kind == "facts":
                    facts[name] = dict(packet.head)
                    self.journal.site(name, state="there", last_seen=_now())
            missing = sorted({*expected} - {*facts})
            if not missing or time.monotonic() > until:
                break
            self.journal.progress("wait", len(facts), len(expected), f"waiting for {', '.join(missing[:4])}")
            time.sleep(1.0)
        require(len(facts) >= least, AulaitError, f"{len(facts)} sites came within {wait_s:g} s, expected at least {least}; missing: "
                f"{', '.join(missing[:8]) or 'anybody'}; start them by 'aulait join', or set engine.least_sites")
        for name in missing:
            self.journal.warning("absent", site=name, reason="did not come before the run began; it takes no part")
        return facts

    def begin(self, house: House) -> dict[str, int]:
        """Tell every site its brief; number of records of those that may be known.

        Raises:
            AulaitError: a site refuses, in its own words.
        """
        mark = fingerprint(house.base)
        self._briefs = {name: briefs.of(self._settings, house.setting, site, run=self._run, votes=name in house.voters, fingerprint=mark)
                        for name, site in house.sites.items()}
        for name, own in self._briefs.items():
            self.journal.site(name, role=own.placement, tier=own.tier)
        records = {name: 0 for name in house.sites}
        problems = []
        told_to = {name: own.packet(self._stamp(name)) for name, own in self._briefs.items()}
        for name, packet in self._exchange(told_to, self._settings.engine.deadline_s):
            if packet.kind == "accepted":
                told = packet.head.get("records")
                records[name] = told if isinstance(told, int) and 0 < told < 2**31 else 0
            else:
                problems.append(f"site '{name}': {plain(packet.head.get('reason'))}")
        require(not problems, AulaitError, "\n".join(problems))
        return records

    def connect(
        self, sites: Mapping[str, Site], method: Any, setting: Setting, learner: Learner, embedder: Embedder | None, *,
        cut: int | None = None, wire: Wire = "float32", private: bool = True,
    ) -> Ask:
        """A way to get replies: of clients from their sites, of the server's own sites from this process; as ``inline.connect``."""
        here = inline.connect({n: s for n, s in sites.items() if n not in self._briefs}, method, setting, learner, embedder, cut=cut,
                              wire=wire, private=private)
        remote_split = not hasattr(method, "SERVER")

        def ask(orders: Sequence[Order]) -> Iterator[Reply]:
            away = [order for order in orders if order.client in self._briefs]
            halved = [o for o in away if remote_split and o.stage == "train" and sites[o.client].plan.placement == "split"]
            whole = [order for order in away if order not in halved]
            letters = self._send(self._packets(whole))
            near = iter(here([order for order in orders if order.client not in self._briefs]) if len(away) < len(orders) else ())
            early = [*near, *(self._halves(halved, sites, method, setting, learner, cut, wire) if halved else ())]
            heard = 0
            with Spool(self.journal.folder) as spool:
                for reply in in_order([order.client for order in orders], early, self._replies(letters), spool):
                    heard += reply.client in self._briefs
                    yield reply
            if away and not heard:
                raise AulaitError(f"round {away[0].round} of {away[0].stage}: none of {len(away)} sites answered within "
                                  f"{self._settings.engine.deadline_s:g} s (engine.deadline_s); look at 'aulait status', then go on with "
                                  "--resume")

        return ask

    def judge(self, worn: Mapping[str, Wear], round: int, more: Mapping[str, Any]) -> Iterator[tuple[str, Packet]]:
        """Ask sites to measure; answers by client."""
        made, asked = dict[int, Body](), dict[str, Packet]()
        for name, wear in worn.items():
            if id(wear) not in made:
                made[id(wear)] = wire.body(wear.tensors)
            own = made[id(wear)]
            asked[name] = Packet({"kind": "evaluate", **self._stamp(name).head(), "client": name, "brief": self._briefs[name].digest,
                                  **wear.head(), "round": round, "stage": "train", "tensors": own.listed, **more}, own.raw)
        for name, packet in self._exchange(asked, self._settings.engine.deadline_s):
            if packet.kind == "sums":
                yield name, packet

    def _packets(self, orders: Sequence[Order]) -> dict[str, Packet]:
        """Orders as they travel; those with the very same tensors share their bytes."""
        made: dict[tuple[tuple[str, int], ...], Body] = {}
        packets = {}
        for order in orders:
            key = tuple((name, id(tensor)) for name, tensor in order.tensors.items())
            if key not in made:
                made[key] = wire.body(order.tensors, self._settings.engine.wire if order.stage == "train" else "float32")
            own = self._briefs[order.client]
            packets[order.client] = wire.order(order, self._stamp(order.client), own.digest, made[key])
            self.journal.site(order.client, state="asked", round=order.round, stage=order.stage)
        return packets

    def _exchange(self, packets: Mapping[str, Packet], wait_s: float) -> Iterator[tuple[str, Packet]]:
        """Send, and give answers as they come."""
        yield from self._answers(self._send(packets, wait_s))

    def _send(self, packets: Mapping[str, Packet], wait_s: float | None = None) -> _Letters:
        """Sign and hand over; a site that is not connected is told to the journal and not waited for."""
        limit_s = self._settings.engine.deadline_s if wait_s is None else wait_s
        letters = _Letters(time.monotonic() + limit_s)
        there = self._post.there() if packets else {}
        shared: dict[int, Any] = {}
        for name, packet in packets.items():
            signed = Packet(packet.head, packet.body, signing.sign(self._key, packet.content()))
            body = shared.setdefault(id(packet.body), self._post.body(packet.body)) if packet.body else None
            letter = self._post.send(there[name], signed, body, limit_s + _GRACE_S) if name in there else None
            if letter is None:
                self._silent(name, "is not connected" if name not in there else "could not be sent a message")
                continue
            letters.owner[letter], letters.stamp[letter] = name, Stamp.of(packet.head)
            self.told["messages"] += 1
            self.told["sent_bytes"] += len(packet.body)
        return letters

    def _answers(self, letters: _Letters) -> Iterator[tuple[str, Packet]]:
        """Answers as they come, until all are there or the time is over."""
        waiting = dict(letters.owner)
        while waiting:
            over = time.monotonic() > letters.due_s
            for heard in self._post.collect(list(waiting), LIMIT_BYTES):
                name = waiting.pop(heard.letter, None)
                if name is not None and (packet := self._checked(name, heard, letters.stamp[heard.letter])) is not None:
                    yield name, packet
            if over:
                break
            if waiting:
                time.sleep(POLL_S)
        for name in waiting.values():
            self._silent(name, "gave no answer before the deadline")

    def _checked(self, name: str, heard: Heard, stamp: Stamp) -> Packet | None:
        """An answer that belongs to its letter; None is told to the journal."""
        packet = heard.packet
        if packet is None:
            self._silent(name, heard.fault)
            return None
        self.told["received_bytes"] += len(packet.body)
        try:
            same = Stamp.of(packet.head) == stamp
        except WireError as error:
            same, heard = False, Heard(heard.letter, None, str(error))
        if not same:
            self._silent(name, heard.fault or "answered another message than the one it was sent")
            return None
        self.journal.site(name, last_seen=_now())
        if packet.kind == "refusal":
            reason = plain(packet.head.get("reason"))
            self.journal.warning("refused", site=name, why=plain(packet.head.get("why"), 40), reason=reason)
            self.journal.site(name, state="refused", detail=reason)
        return packet

    def _replies(self, letters: _Letters) -> Iterator[tuple[str, Packet]]:
        """Answers that are sound replies, as they come; a client speaks for itself only."""
        for name, packet in self._answers(letters):
            if packet.kind != "reply":
                continue
            try:
                reply = wire.read_reply(packet)
                require(reply.client == name, WireError, f"site '{name}' answered in the name of '{reply.client[:80]}'")
            except WireError as error:
                self._silent(name, str(error))
                continue
            self.journal.site(name, state="answered", detail="")
            yield name, packet

    def _halves(
        self, orders: Sequence[Order], sites: Mapping[str, Site], method: Any, setting: Setting, learner: Learner, cut: int | None,
        form: Wire,
    ) -> Iterator[Reply]:
        """Replies of split clients: the method's answer runs here, the fronts at the sites."""
        require(cut is not None, WireError, "a client is split and no cut is given")
        assert cut is not None
        for first in range(0, len(orders), AT_ONCE):
            some = list(orders[first : first + AT_ONCE])
            halves = RemoteSplitLearner(learner, cut, form, [order.client for order in some], some[0].round, self._steps)
            for reply in method.answer(some, [sites[order.client] for order in some], setting, halves):
                if reply.client not in halves.lost:
                    self.journal.site(reply.client, state="answered", detail="")
                    yield reply

    def _steps(self, sent: Mapping[str, tuple[dict[str, Any], Tensors]]) -> dict[str, Packet]:
        """One exchange of split training with all fronts at once."""
        packets = {}
        for name, (head, tensors) in sent.items():
            made = wire.body(tensors)
            packets[name] = Packet({"kind": "split", **self._stamp(name).head(), "client": name, "brief": self._briefs[name].digest,
                                    "stage": "train", "tensors": made.listed, **head}, made.raw)
        return {name: packet for name, packet in self._exchange(packets, self._settings.engine.deadline_s) if packet.kind == "split"}

    def _stamp(self, name: str) -> Stamp:
        self._numbers[name] = self._numbers.get(name, 0) + 1
        return Stamp(self._run, self._epoch, self._numbers[name])

    def _silent(self, name: str, reason: str) -> None:
        self.journal.warning("silent", site=name, reason=reason)
        self.journal.site(name, state="silent", detail=reason)


def _now() -> str:
    from aulait.flower.journal import now

    return now()
