"""The engine over a network: the same requests and updates as ``engines/inline.py``, carried to
sites and back.

What the coordinator does itself (proxies, the server's half of a split model) goes on in this
process while sites work. A round closes when all have answered or ``engine.deadline_s`` has passed;
who is silent, refuses or sends what cannot be read is told to the event log and left out, as a
client that dropped out. Every message is signed, numbered and answered at most once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final, Generic

from aulait.core.errors import AulaitError, WireError
from aulait.core.types import (
    Adapter,
    ClientRequest,
    ClientUpdate,
    Record,
    Site,
    Tensors,
    TrainRequest,
)
from aulait.engines.contract import HeldOutScores, PreparedRun
from aulait.engines.deployment.coordinator import site_scores
from aulait.engines.deployment.coordinator.outbox import BodyT, Outbox, Outgoing, SentMessages
from aulait.engines.deployment.coordinator.participants import Participants
from aulait.engines.deployment.coordinator.remote_split import (
    RemoteClients,
    RemoteSplitLearner,
    SplitMessage,
)
from aulait.engines.deployment.coordinator.reorder_buffer import ReorderBuffer, in_order
from aulait.engines.deployment.coordinator.secure_rounds import SecureRounds, sum_terms
from aulait.engines.deployment.protocol import tensor_codec
from aulait.engines.deployment.protocol.heads import RunFields
from aulait.engines.deployment.protocol.messages import (
    ClientMessage,
    EvaluateMessage,
    Message,
    RefusalAnswer,
    ScoresAnswer,
    SplitStates,
    UpdateAnswer,
    client_update,
    request_message,
)
from aulait.engines.deployment.protocol.run_terms import RunFacts, terms_for
from aulait.engines.deployment.protocol.sum_messages import MaskedAnswer
from aulait.engines.deployment.protocol.tensor_codec import Body
from aulait.engines.inline import LocalClients
from aulait.engines.workers.pool import WorkerPool
from aulait.methods.contract import Ask, State, server_site
from aulait.models.fingerprint import fingerprint
from aulait.privacy.secure.summation import BeginSecureSum
from aulait.runs.experiment_file import Settings
from aulait.runs.scoring import public_scores
from aulait.training.trainer import AT_ONCE

# Of a site's diagnostics, and only without privacy.
_KEPT_INFO: Final = ("train_loss", "train_tokens")
TensorKey = tuple[tuple[object, ...], ...]


class CoordinatorEngine(Generic[BodyT]):
    """Speaks with the sites of one run; as ``Engine``.

    Args:
        outbox: signed messages of the run.
        settings: the experiment.

    Attributes:
        participants: the sites, their terms and numbers of records.
        event_log: for the operator.
        traffic: see ``Outbox``.
    """

    real_time = True

    def __init__(self, outbox: Outbox[BodyT], settings: Settings) -> None:
        self._outbox, self._settings = outbox, settings
        self.participants = Participants(outbox, settings.engine)
        self._sums = SecureRounds(outbox, self.participants, settings.engine.deadline_s)
        self.event_log, self.traffic = outbox.event_log, outbox.traffic
        self._pool = WorkerPool()

    @property
    def clients(self) -> Mapping[str, int]:
        """Sites that take part -> how many records each has told it has; 0 where that is
        not known, or not to be."""
        return dict(self.participants.records)

    @property
    def secure_sum(self) -> BeginSecureSum:
        """Begins a secure sum with the sites."""
        return self._sums.begin

    def begin(self, prepared: PreparedRun, known: Mapping[str, int], again: bool) -> None:
        """Tell every site its terms; see ``Participants.begin``."""
        facts = RunFacts(self._outbox.run, fingerprint(prepared.models.base),
                         prepared.federation.voters,
                         sum_terms(prepared, self.participants.identities))
        terms = {name: terms_for(site, prepared.settings, prepared.context, facts)
                 for name, site in prepared.federation.sites.items()}
        self.participants.begin(terms, known, again)

    def connect(self, run: PreparedRun, sites: Mapping[str, Site]) -> Ask:
        """A way to get updates: of clients from their sites, of the server's own sites from this
        process."""
        near = {name: site for name, site in sites.items() if name not in self.participants.terms}
        here = replace(LocalClients.of(run, near), learner=self._pool.learner(run)).ask
        splits = server_site(run.settings.method) is None

        def ask(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
            away = [request for request in requests if request.client in self.participants.terms]
            split = [request for request in away if splits and isinstance(request, TrainRequest)
                     and sites[request.client].plan.placement == "split"]
            whole = [request for request in away if request not in split]
            kept = self._kept(whole)
            outgoing = self._requests(whole, kept)
            if self._settings.privacy.secure and outgoing:
                outgoing = self._sums.joined(outgoing)
            # Sites work while the coordinator is at its own work.
            sent = self._outbox.send(outgoing, self._settings.engine.deadline_s)
            early = list(here([request for request in requests if request.client in near]))
            early += self._split_updates(split, sites, run)
            heard = 0
            with ReorderBuffer(self.event_log.folder) as buffer:
                found: Iterator[ClientUpdate]
                if self._settings.privacy.secure:  # the order of what is masked does not matter
                    found = chain(early, self._masked(outgoing, sent, kept))
                else:
                    later = self._updates(outgoing, sent, kept)
                    found = in_order([r.client for r in requests], early, later, buffer)
                for update in found:
                    heard += update.client in self.participants.terms
                    yield update
            if away and not heard:
                raise AulaitError(
                    f"round {away[0].round} of {away[0].stage}: none of {len(away)} sites answered "
                    f"within {self._settings.engine.deadline_s:g} s (engine.deadline_s); look at "
                    "'aulait status', then go on with --resume")

        return ask

    def evaluate(self, run: PreparedRun, state: State | None, final: bool) -> HeldOutScores:
        """Scores of the held-out records at the sites; under privacy of public texts."""
        shared = run.settings.method.result(run.context, state) if state is not None else None
        targets = site_scores.evaluation_targets(run, state, shared, final)
        answers = list(self._evaluations(targets, state.round if state else 0, final))
        told = run.settings.privacy.off and run.settings.evaluate.on == "held-out"
        return HeldOutScores(site_scores.scores(run, answers) if told
                             else public_scores(run, shared))

    def personal(self, run: PreparedRun, state: State) -> dict[str, Adapter]:
        """None: they stay with their clients."""
        return {}

    def close(self) -> None:
        """End the workers of the server's own sites, if there were any."""
        self._pool.close()

    def _evaluations(self, targets: Mapping[str, site_scores.EvaluationTarget], round: int,
                     final: bool) -> Iterator[ScoresAnswer]:
        """Ask sites to measure; their answers."""
        made, outgoing = dict[int, Body](), dict[str, Message[EvaluateMessage]]()
        for name, target in targets.items():
            if id(target) not in made:
                made[id(target)] = tensor_codec.pack_tensors(target.tensors)
            head = EvaluateMessage(**self._address(name), round=round, what=target.what,
                                   alpha=target.alpha, rank=target.rank, final=final)
            outgoing[name] = Message(head, made[id(target)].raw)
        sent = self._outbox.send(outgoing, self._settings.engine.deadline_s)
        for _, answer in self.participants.answers(outgoing, sent):
            if isinstance(answer.head, ScoresAnswer):
                yield answer.head

    def _kept(self, requests: Sequence[ClientRequest]) -> dict[str, Body]:
        """Client -> the tensors that it is to keep, as they travel where it lacks them; a client
        without any is missing."""
        made: dict[int, Body] = {}
        for request in requests:
            if request.kept and id(request.kept) not in made:
                made[id(request.kept)] = tensor_codec.pack_tensors(request.kept)
        return {request.client: made[id(request.kept)] for request in requests if request.kept}

    def _requests(self, requests: Sequence[ClientRequest],
                  kept: Mapping[str, Body]) -> dict[str, Message[ClientMessage]]:
        """Requests as they travel; those with the very same numbers in memory, if only as views,
        share their bytes."""
        made: dict[TensorKey, Body] = {}
        outgoing: dict[str, Message[ClientMessage]] = {}
        for request in requests:
            key = tuple((name, t.data_ptr(), t.shape, t.stride(), t.dtype)
                        for name, t in request.tensors.items())
            if key not in made:
                wire = self._settings.engine.wire if request.stage == "train" else "float32"
                made[key] = tensor_codec.pack_tensors(request.tensors, wire)
            terms = self.participants.terms[request.client].digest
            outgoing[request.client] = request_message(
                request, self._outbox.stamp(request.client), terms, made[key],
                kept.get(request.client))
            self.event_log.site(request.client, state="asked", round=request.round,
                                stage=request.stage)
        return outgoing

    def _updates(self, outgoing: Outgoing, sent: SentMessages, kept: Mapping[str, Body]
                 ) -> Iterator[tuple[ClientUpdate, Message[UpdateAnswer]]]:
        """Updates as they come, with the answers that they were in.

        Of a site's diagnostics only those by the names of our own are kept, and under privacy none.
        """
        for name, answer in self.participants.answers(outgoing, sent, kept):
            head = answer.head
            if isinstance(head, RefusalAnswer):
                continue
            try:
                if not isinstance(head, UpdateAnswer):
                    raise WireError(f"answered a request with '{head.kind}'")
                told = Message(head, answer.body)
                update = client_update(told)
            except Exception as error:  # whatever a stranger's bytes do to our reading of them
                self._outbox.silent(name, str(error) if isinstance(error, WireError)
                                    else f"sent what cannot be read ({type(error).__name__})")
                continue
            self.event_log.site(name, state="answered", detail="")
            info = {key: update.info[key] for key in _KEPT_INFO if key in update.info
                    and self._settings.privacy.off}
            yield ClientUpdate(update.client, update.tensors, update.weight, info), told

    def _masked(self, outgoing: Outgoing, sent: SentMessages, kept: Mapping[str, Body]
                ) -> Iterator[ClientUpdate]:
        """Whose masked vectors have come and are in the sum, as they come."""
        for name, answer in self.participants.answers(outgoing, sent, kept):
            if isinstance(answer.head, RefusalAnswer):
                continue
            if not isinstance(answer.head, MaskedAnswer):
                self._outbox.silent(name, f"answered a request with '{answer.head.kind}', expected "
                                    "a masked vector")
                continue
            if self._sums.receive(name, answer.body):
                self.event_log.site(name, state="answered", detail="")
                yield ClientUpdate(name, {})

    def _split_updates(self, requests: Sequence[TrainRequest], sites: Mapping[str, Site],
                       run: PreparedRun) -> Iterator[ClientUpdate]:
        """Updates of split clients: the method's answer runs here, the client halves at the
        sites."""
        records = self.participants.records
        if unknown := [request.client for request in requests if not records[request.client]]:
            # Such a site was silent when its terms were sent.
            list(self.participants.tell(unknown, self._settings.engine.deadline_s))
        requests = [request for request in requests if records[request.client]]
        for first in range(0, len(requests), AT_ONCE):
            some = requests[first : first + AT_ONCE]
            # Methods ask how many records a client has; the records themselves are at the site.
            stand_ins = [replace(sites[request.client],
                                 train=(Record(""),) * records[request.client]) for request in some]
            for cut in sorted({site.plan.cut or 0 for site in stand_ins}):
                alike = [k for k, site in enumerate(stand_ins) if (site.plan.cut or 0) == cut]
                yield from self._split_some([some[k] for k in alike],
                                            [stand_ins[k] for k in alike], run)

    def _split_some(self, requests: Sequence[TrainRequest], sites: Sequence[Site],
                    run: PreparedRun) -> Iterator[ClientUpdate]:
        """Updates of a few clients that are split at one place, who exchange their messages
        together."""
        cut, wire = sites[0].plan.cut, run.settings.compute.wire
        assert cut is not None  # they are split
        remote = RemoteClients([site.name for site in sites], requests[0].round, self._address,
                               self._exchange_split)
        learner = RemoteSplitLearner(run.models.learner, cut, wire, remote)
        for update in run.settings.method.answer(requests, sites, run.context, learner):
            if update.client not in learner.lost:
                self.event_log.site(update.client, state="answered", detail="")
                yield update
        for name, reason in learner.lost.items():
            if reason:  # who was silent has been told already
                self._outbox.silent(name, reason)

    def _exchange_split(self,
                        messages: Mapping[str, SplitMessage]) -> dict[str, Tensors | Exception]:
        """One exchange of split training with all client halves at once; a site whose answer cannot
        be read has the reason."""
        outgoing = {name: Message(head, tensor_codec.pack_tensors(tensors).raw)
                    for name, (head, tensors) in messages.items()}
        sent = self._outbox.send(outgoing, self._settings.engine.deadline_s)
        found: dict[str, Tensors | Exception] = {}
        for name, answer in self.participants.answers(outgoing, sent):
            if isinstance(answer.head, SplitStates):
                try:
                    found[name] = tensor_codec.unpack_tensors(answer.body)
                except WireError as error:
                    found[name] = error
        return found

    def _address(self, name: str) -> RunFields:
        """What the next message of the run to a site bears."""
        stamp = self._outbox.stamp(name)
        return {"run": stamp.run, "epoch": stamp.epoch, "number": stamp.number, "client": name,
                "terms": self.participants.terms[name].digest}
