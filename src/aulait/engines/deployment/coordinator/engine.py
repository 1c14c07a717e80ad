"""The engine over a network: the same requests and updates as ``inline``, carried to sites and
back.

What the coordinator does itself (proxies, the back of a cut model) goes on in this process while
sites work. A round closes when all have answered or ``engine.deadline_s`` has passed; who is
silent, refuses or sends what cannot be read is told to the journal and left out, as a client that
dropped out. Every letter is signed, numbered and answered at most once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aulait.core.errors import AulaitError, WireError, require
from aulait.core.log_files import plain_text, timestamp
from aulait.core.types import (
    Adapter,
    ClientRequest,
    ClientUpdate,
    Record,
    Site,
    Tensors,
    TrainRequest,
)
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.coordinator.outbox import Outbox, SentMessages, Transport
from aulait.engines.deployment.coordinator.remote_split import RemoteSplitLearner
from aulait.engines.deployment.coordinator.reorder_buffer import ReorderBuffer, in_order
from aulait.engines.deployment.coordinator.site_scores import EvaluationTarget, SiteEvaluator
from aulait.engines.deployment.protocol import run_terms as briefs
from aulait.engines.deployment.protocol import tensor_codec as wire
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.protocol.tensor_codec import Body
from aulait.engines.inline import LocalClients
from aulait.methods.contract import Ask, State, server_site
from aulait.models.fingerprint import fingerprint
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import HeldOutScores, PreparedRun
from aulait.training.trainer import AT_ONCE

HELLO_S = 120.0
AGAIN_S = 15.0  # between two questions to a site that will not take part as it stands
_TOLD = ("train_loss", "train_tokens")  # of a site's diagnostics, and only without privacy


class CoordinatorEngine:
    """Speaks with the sites of one run; as ``Engine``.

    Args:
        post: carries packets.
        settings: the experiment.
        key: the coordinator's, for requests.
        run: 32 hexadecimal digits.
        epoch: how often the coordinator has been started for this run.
        journal: for the operator.

    Attributes:
        journal: as given.
        told: bytes of messages sent and received, and how many; as they travelled.
        records: number of records of every site that tells it; 0 where it is not known, or not to
            be.
    """

    def __init__(self, post: Transport, settings: Settings, key: Any, run: str, epoch: int,
                 journal: EventLog) -> None:
        self._mail, self._settings, self._run, self.journal = Outbox(post, key, run, epoch,
            journal), settings, run, journal
        self._briefs: dict[str, RunTerms] = {}
        self.records: dict[str, int] = {}
        self.told = self._mail.told

    real_time = True

    @property
    def clients(self) -> Mapping[str, int]:
        """Sites that take part -> how many records each has told it has; 0 where that is
        not known, or not to be."""
        return dict(self.records)

    def hello(self, least: int, wait_s: float, expected: Sequence[str]) -> dict[str,
            dict[str, Any]]:
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
        until, facts, asked, refused = time.monotonic() + wait_s, dict[str,
            dict[str, Any]](), dict[str, float](), dict[str, str]()
        while True:
            new = {name: Packet({"kind": "hello", **self._mail.stamp(name).head(), "client": name,
                                 "version": briefs.VERSION})
                   for name in self._mail.post.there()
                   if name in expected and name not in facts and time.monotonic() > asked.get(name,
                       -math.inf) + AGAIN_S}
            for name, packet in self._mail.exchange(new,
                    min(HELLO_S, max(5.0, until - time.monotonic()))):
                asked[name] = time.monotonic()
                if packet.kind == "facts":
                    facts[name] = dict(packet.head)
                    self.journal.site(name, state="there", last_seen=timestamp())
                else:
                    refused[name] = f"{name} ({plain_text(packet.head.get('reason'))})"
            missing = sorted({*expected} - {*facts})
            if not missing or time.monotonic() > until:
                break
            self.journal.progress("wait", len(facts), len(expected),
                                  f"waiting for {', '.join(missing[:4])}")
            time.sleep(1.0)
        told = [refused.get(name, name) for name in missing]
        require(len(facts) >= least, AulaitError,
                f"{len(facts)} sites came within {wait_s:g} s, expected at least {least}; missing: "
                f"{', '.join(told[:8]) or 'anybody'}; start them by 'aulait join', or set "
                "engine.least_sites")
        for name, text in zip(missing, told, strict=True):
            self.journal.warning("absent", site=name,
                reason=f"{text} did not come before the run began; it takes no part")
        return facts

    def begin(self, prepared: PreparedRun, again: bool = False,
              known: Mapping[str, int] | None = None) -> None:
        """Tell every site its brief.

        Args:
            prepared: with every client's plan.
            again: whether the run has begun before; then a site that refuses is a client that does
                not answer.
            known: records of sites, as they told before.

        Raises:
            AulaitError: a site refuses, in its own words; or fewer than ``engine.least_sites``
                accept.
        """
        mark = fingerprint(prepared.models.base)
        self._briefs = {name: briefs.of(self._settings, prepared.context, site, run=self._run,
            votes=name in prepared.federation.voters, fingerprint=mark)
                        for name, site in prepared.federation.sites.items()}
        for name, own in self._briefs.items():
            self.journal.site(name, role=own.placement, tier=own.tier)
        self.records = {name: (known or {}).get(name, 0) for name in prepared.federation.sites}
        accepted, problems = 0, []
        for name, packet in self._tell(list(self._briefs), self._settings.engine.deadline_s):
            if packet.kind == "accepted":
                accepted += 1
            else:
                problems.append(f"site '{name}': {plain_text(packet.head.get('reason'))}")
        require(not problems or (again and len(problems) < len(self._briefs)), AulaitError,
                "\n".join(problems))
        least = self._settings.engine.least_sites
        require(again or accepted >= min(least, len(self._briefs)), AulaitError,
                f"{accepted} sites took their brief within "
                f"{self._settings.engine.deadline_s:g} s, expected at least {least} "
                "(engine.least_sites); look at 'aulait status', then "
                "begin again")

    def _tell(self, names: Sequence[str], wait_s: float) -> Iterator[tuple[str, Packet]]:
        """Send sites their briefs; their answers, of which the number of records is kept."""
        for name, packet in self._mail.exchange(
            {name: self._briefs[name].packet(self._mail.stamp(name)) for name in names}, wait_s):
            told = packet.head.get("records")
            if packet.kind == "accepted" and isinstance(told, int) and 0 < told < 2**31:
                self.records[name] = told
            yield name, packet

    def connect(self, run: PreparedRun, sites: Mapping[str, Site]) -> Ask:
        """A way to get updates: of clients from their sites, of the server's own sites from this
        process."""
        near_sites = {name: site for name, site in sites.items() if name not in self._briefs}
        here = LocalClients.of(run, near_sites).ask
        remote_split = server_site(run.settings.method) is None

        def ask(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
            away = [request for request in requests if request.client in self._briefs]
            halved = [o for o in away if remote_split and isinstance(o, TrainRequest)
                      and sites[o.client].plan.placement == "split"]
            whole = [request for request in away if request not in halved]
            packets = self._packets(whole)
            letters = self._mail.send(packets, self._settings.engine.deadline_s)
            near = iter(here([request for request in requests
                              if request.client not in self._briefs])
                        if len(away) < len(requests) else ())
            early = [*near, *(self._halves(halved, sites, run)
                              if halved else ())]
            heard = 0
            with ReorderBuffer(self.journal.folder) as spool:
                for update in in_order([request.client for request in requests], early,
                                      self._replies(packets, letters), spool):
                    heard += update.client in self._briefs
                    yield update
            if away and not heard:
                raise AulaitError(
                    f"round {away[0].round} of {away[0].stage}: none of {len(away)} sites answered "
                    "within "
                                  f"{self._settings.engine.deadline_s:g} s (engine.deadline_s); "
                                  "look at 'aulait status', then go on with "
                                  "--resume")

        return ask

    def evaluate(self, run: PreparedRun, state: State | None, final: bool) -> HeldOutScores:
        """Scores of the held-out records at the sites; under privacy of public texts."""
        return HeldOutScores(SiteEvaluator(self.judge)(run, state, final))

    def personal(self, run: PreparedRun, state: State) -> dict[str, Adapter]:
        """None: they stay with their clients."""
        return {}

    def judge(self, worn: Mapping[str, EvaluationTarget], round: int,
              more: Mapping[str, Any]) -> Iterator[tuple[str, Packet]]:
        """Ask sites to measure; answers by client."""
        made, asked = dict[int, Body](), dict[str, Packet]()
        for name, wear in worn.items():
            if id(wear) not in made:
                made[id(wear)] = wire.body(wear.tensors)
            own = made[id(wear)]
            asked[name] = Packet({"kind": "evaluate", **self._mail.stamp(name).head(),
                                  "client": name, "brief": self._briefs[name].digest,
                                  **wear.head(), "round": round, "stage": "train",
                                  "tensors": own.listed, **more}, own.raw)
        for name, packet in self._answers(asked,
                self._mail.send(asked, self._settings.engine.deadline_s)):
            if packet.kind == "sums":
                yield name, packet

    def _packets(self, requests: Sequence[ClientRequest]) -> dict[str, Packet]:
        """Orders as they travel; those with the very same numbers in memory, if only as views,
        share their bytes."""
        made: dict[tuple[Any, ...], Body] = {}
        packets = {}
        for request in requests:
            key = tuple((name, t.data_ptr(), t.shape, t.stride(), t.dtype) for name,
                        t in request.tensors.items())
            if key not in made:
                made[key] = wire.body(request.tensors, self._settings.engine.wire
                                      if request.stage == "train" else "float32")
            own = self._briefs[request.client]
            packets[request.client] = wire.request(request, self._mail.stamp(request.client),
                own.digest,
                made[key])
            self.journal.site(request.client, state="asked", round=request.round,
                              stage=request.stage)
        return packets

    def _replies(self, packets: Mapping[str, Packet],
                 letters: SentMessages) -> Iterator[tuple[ClientUpdate,
            Packet]]:
        """Sound updates as they come, with the packets that they were in; a client speaks for
        itself only."""
        for name, packet in self._answers(packets, letters):
            if (update := self._sound(name, packet)) is not None:
                yield update, packet

    def _answers(self, packets: Mapping[str, Packet], letters: SentMessages) -> Iterator[tuple[str,
            Packet]]:
        """Answers as they come; a site that does not know the run, silent when its brief was sent,
        is told and asked again."""
        strangers = []
        for name, packet in self._mail.answers(letters):
            if packet.kind == "refusal" and packet.head.get("why") == "brief":
                strangers.append(name)
            else:
                yield name, packet
        left_s = letters.due_s - time.monotonic()
        if not strangers or left_s <= 0:
            return
        known = [name for name, packet in self._tell(strangers, left_s)
                 if packet.kind == "accepted"]
        again = {name: Packet({**packets[name].head, **self._mail.stamp(name).head()},
                              packets[name].body) for name in known}
        yield from self._mail.exchange(again, max(0.0, letters.due_s - time.monotonic()))

    def _sound(self, name: str, packet: Packet) -> ClientUpdate | None:
        """The update in an answer, if it is one of the client that was asked; else it is told to
        the journal.

        Of its diagnostics only those by the names of our own are kept, and under privacy none.
        """
        if packet.kind == "refusal":
            return None
        try:
            require(packet.kind == "reply", WireError,
                    f"answered an order with '{plain_text(packet.kind, 40)}'")
            update = wire.read_reply(packet)
            require(update.client == name, WireError,
                    f"site '{name}' answered in the name of '{update.client[:80]}'")
        except Exception as error:  # whatever a stranger's bytes do to our reading of them
            self._mail.silent(name, str(error) if isinstance(error, WireError)
                              else f"sent what cannot be read ({type(error).__name__})")
            return None
        self.journal.site(name, state="answered", detail="")
        info = {key: update.info[key] for key in _TOLD if key in update.info
                and self._settings.privacy.off}
        return ClientUpdate(update.client, update.tensors, update.weight, info)

    def _halves(self, requests: Sequence[TrainRequest], sites: Mapping[str, Site],
                run: PreparedRun) -> Iterator[ClientUpdate]:
        """Replies of split clients: the method's answer runs here, the fronts at the sites."""
        compute = run.settings.compute
        if unknown := [request.client for request in requests if not self.records[request.client]]:
            # silent when its brief was sent
            list(self._tell(unknown, self._settings.engine.deadline_s))
        requests = [request for request in requests if self.records[request.client]]
        there = {o.client: replace(sites[o.client], train=(Record(""),) * self.records[o.client])
                 for o in requests}
        for first in range(0, len(requests), AT_ONCE):
            some = list(requests[first : first + AT_ONCE])
            halves = RemoteSplitLearner(
                run.models.learner, compute.cut, compute.wire, [o.client for o in some],
                some[0].round, self._steps)
            for update in run.settings.method.answer(
                    some, [there[o.client] for o in some], run.context, halves):
                if update.client not in halves.lost:
                    self.journal.site(update.client, state="answered", detail="")
                    yield update
            for name, reason in halves.lost.items():
                if reason:  # who was silent has been told already
                    self._mail.silent(name, reason)

    def _steps(self, sent: Mapping[str, tuple[dict[str, Any], Tensors]]) -> dict[str, Packet]:
        """One exchange of split training with all fronts at once."""
        packets = {}
        for name, (head, tensors) in sent.items():
            made = wire.body(tensors)
            packets[name] = Packet({"kind": "split", **self._mail.stamp(name).head(),
                                    "client": name, "brief": self._briefs[name].digest,
                                    "stage": "train", "tensors": made.listed, **head}, made.raw)
        letters = self._mail.send(packets, self._settings.engine.deadline_s)
        return {name: packet for name, packet in self._answers(packets, letters)
                if packet.kind == "split"}
