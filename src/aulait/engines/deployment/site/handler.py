"""The site's own judgement and work: a signed packet in, an answer out. No socket, no Flower, no
clock of the coordinator's.

Every packet but a question after the site's health must be signed by the coordinator and be for
this client. What the coordinator is told when something fails never depends on the site's records:
the reason goes to the site's own log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from aulait.core.errors import AulaitError, DataError, WireError
from aulait.core.types import ClientRequest, TrainRequest, VoteRequest
from aulait.core.version import PACKAGE_VERSION
from aulait.engines.deployment.protocol import run_terms as brief
from aulait.engines.deployment.protocol import signing, tensor_codec
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.protocol.tensor_codec import Stamp
from aulait.engines.deployment.site import kept_state, request_checks, site_file
from aulait.engines.deployment.site.kept_state import KeptState
from aulait.engines.deployment.site.load_session import ModelCache, SiteSession, load_session
from aulait.engines.deployment.site.privacy_account import SiteAccount
from aulait.engines.deployment.site.site_evaluation import measured
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.engines.deployment.site.split_session import Sessions
from aulait.synthesis import private_evolution

Log = Callable[..., None]
KINDS = ("hello", "brief", "order", "evaluate", "split")


class Refused(WireError):  # noqa: N818
    """The site will not; the text may be told to the coordinator."""

    def __init__(self, text: str, why: str = "refused") -> None:
        super().__init__(text)
        self.why = why


@dataclass
class ActiveRun:
    """A run that the site takes part in."""

    brief: RunTerms
    digest: str
    kept: KeptState
    account: SiteAccount | None
    house: SiteSession | None = None
    sessions: Sessions = field(default_factory=Sessions)


class SiteHandler:
    """Answers packets for one site.

    Args:
        file: of the site.
        log: (event, **fields) of the site's own log.

    Attributes:
        facts: what is told about the worker's health.
    """

    def __init__(self, file: SiteFile, log: Log) -> None:
        self._file, self._log = file, log
        self._key = signing.load_public(file.keys.orders)
        self._shelf, self._runs = ModelCache(), dict[str, ActiveRun]()
        self.facts: dict[str, Any] = {"orders": 0, "refused": 0, "loads": 0, "run": None,
            "stage": None, "round": None, "last_error": None}
        if file.limits.threads:
            torch.set_num_threads(file.limits.threads)

    def answer(self, packet: Packet) -> Packet:
        """The answer to a packet; never raises but for a packet without a stamp.

        Raises:
            WireError: there is no stamp to answer to.
        """
        stamp = Stamp.of(packet.head)
        try:
            self._check(packet)
            self._log("asked", kind=packet.kind, epoch=stamp.epoch, number=stamp.number,
                      bytes=len(packet.body))
            answer = (
                self._hello(packet, stamp) if packet.kind == "hello"
                else self._of_run(packet, stamp)
            )
            self.facts["orders"] += 1
        except Refused as refused:
            answer = self._no(stamp, str(refused), refused.why, str(refused))
        except AulaitError as error:
            answer = self._no(stamp,
                f"failed ({type(error).__name__}); the reason is in the site's own log", "failed",
                str(error))
        except Exception as error:
            told = "failed by a defect; the reason is in the site's own log"
            answer = self._no(stamp, told, "failed", f"{type(error).__name__}: {error}")
        self.facts["loads"] = self._shelf.loads
        return answer

    def rest(self) -> bool:
        """Let base and embedder go; whether any were held. Split sessions end."""
        for tenancy in self._runs.values():
            tenancy.sessions.clear()
        self._runs.clear()  # what they remember is on disk
        return self._shelf.clear()

    def _check(self, packet: Packet) -> None:
        """Whose it is, before anything else is looked at."""
        if not packet.signature or not signing.verify(self._key, packet.content(),
                packet.signature):
            raise Refused(
                "the message is not signed by the coordinator whose key this site holds "
                "(keys.orders)")
        if packet.head.get("client") != self._file.site.name:
            raise Refused(f"a message for another client came to '{self._file.site.name}'")
        if packet.kind not in KINDS:
            raise Refused(
                f"a message of kind '{packet.kind[:40]}' found, expected one of {', '.join(KINDS)}")

    def _no(self, stamp: Stamp, told: str, why: str, own: str) -> Packet:
        self.facts |= {"refused": self.facts["refused"] + 1, "last_error": own}
        self._log("refused", why=why, reason=own, epoch=stamp.epoch, number=stamp.number)
        return tensor_codec.refusal(stamp, told, why)

    def _hello(self, packet: Packet, stamp: Stamp) -> Packet:
        """Who is here and what it allows; nothing of its records."""
        limits, path = self._file.limits, self._file.site.state / "profile.json"
        if packet.head.get("version") != brief.VERSION:
            raise Refused(
                f"messages of version {packet.head.get('version')!r} found, this site speaks "
                f"{brief.VERSION} "
                          f"(aulait {PACKAGE_VERSION})")
        try:
            profile = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (ValueError, OSError) as error:
            raise DataError(
                f"{path} is no JSON ({error}); measure again by 'aulait probe --out', or remove it") from error
        return Packet({"kind": "facts", **stamp.head(), "client": self._file.site.name,
                       "version": brief.VERSION, "package": PACKAGE_VERSION,
                       "roles": list(limits.roles), "methods": list(limits.methods),
                       "privacy": limits.privacy,
                       "models": sorted(self._file.models),
                       "embedders": sorted(self._file.embedders), "profile": profile})

    def _of_run(self, packet: Packet, stamp: Stamp) -> Packet:
        if packet.kind == "brief":
            return self._told(packet, stamp)
        tenancy = self._tenancy(stamp.run, packet.head.get("brief"))
        key, asked = None if packet.kind == "evaluate" else _round(packet), hashlib.sha256(
            packet.content()).hexdigest()
        with tenancy.kept.untouched():
            try:
                answered = tenancy.kept.admit(stamp, key, asked)
            except WireError as error:
                raise Refused(str(error), "past") from error
            if answered is not None:
                self._log("repeated", epoch=stamp.epoch, number=stamp.number)
                return answered
            if tenancy.house is None:
                self._settle(tenancy)
            assert tenancy.house is not None
            self.facts |= {"run": stamp.run, "stage": packet.head.get("stage"),
                           "round": packet.head.get("round")}
            if packet.kind != "split":  # a split round that something else interrupts has ended
                for other in self._runs.values():
                    other.sessions.clear()
            work = {"order": self._order, "evaluate": self._evaluate,
                    "split": self._split}[packet.kind]
            answer = work(packet, stamp, tenancy, tenancy.house)
            tenancy.kept.done(stamp, asked, answer)
            return answer

    def _told(self, packet: Packet, stamp: Stamp) -> Packet:
        """A brief: held against the site's limits, then everything it needs is loaded."""
        try:
            given = brief.read(packet.head.get("brief"))
        except WireError as error:
            raise Refused(str(error)) from error
        if given.run != stamp.run:
            raise Refused("a brief of another run than its message")
        self._allow(given)
        known = self._held(stamp.run)
        if known is not None and known.digest != given.digest:
            raise Refused(
                f"run {stamp.run[:8]} was told another brief before; begin a new run for other "
                "settings")
        tenancy = known or self._enter(given)
        self._settle(tenancy)
        assert tenancy.house is not None
        if known is None:
            kept_state.write_brief(tenancy.kept.folder, given.model_dump(mode="json"))
            self._runs[stamp.run] = tenancy
        # then the number of records is told with every update
        public = given.privacy.off or given.privacy.unit == "record"
        return Packet({"kind": "accepted", **stamp.head(), "client": given.client,
                       "records": len(tenancy.house.records.train) if public else None})

    def _order(self, packet: Packet, stamp: Stamp, tenancy: ActiveRun, house: SiteSession) -> Packet:
        request = _read(packet)
        fault = request_checks.fault(request, tenancy.brief, self._file.limits,
            house.context.shapes)
        if fault is not None:
            raise Refused(fault)
        site = house.site(tenancy.kept.memory)
        if isinstance(request, VoteRequest):
            width = request.tensors["embeddings"].shape[1]
            if width != house.embedder.width:
                raise Refused(
                    f"candidates of width {width} found, the embedder here has "
                    f"{house.embedder.width}; use the same one at both")
            (update,) = private_evolution.answer([request], [site], house.context,
                                                 house.embedder)
        else:
            if tenancy.account is not None:
                tenancy.account.charge(request.settings, site, tenancy.brief)
            assert isinstance(request, TrainRequest)  # by its stage, as checked above
            (update,) = tenancy.brief.method.answer([request], [site], house.context, house.learner)
        private = not tenancy.brief.privacy.off
        self._log("answered", stage=request.stage, round=request.round,
                  **{name: float(value) for name, value in update.info.items()})
        # diagnostics and, where clients are protected, the number of records are nobody's business
        if private:
            weight = update.weight if tenancy.brief.privacy.unit == "record" else 1.0
            update = type(update)(update.client, update.tensors, weight)
        return tensor_codec.update(update, stamp, tenancy.brief.adapters if request.stage == "train"
                                  else "float32")

    def _evaluate(self, packet: Packet, stamp: Stamp, tenancy: ActiveRun, house: SiteSession) -> Packet:
        if not self._file.limits.evaluate:
            raise Refused("this site measures nothing (limits.evaluate = false)")
        found = measured(house, packet, tenancy.kept.memory, tenancy.kept.folder)
        self._log("measured", round=packet.head.get("round"), **found["log"])
        told = {} if not tenancy.brief.privacy.off else found["told"]  # under privacy it stays here
        return Packet({"kind": "sums", **stamp.head(), "client": self._file.site.name, **told})

    def _split(self, packet: Packet, stamp: Stamp, tenancy: ActiveRun, house: SiteSession) -> Packet:
        if not tenancy.brief.privacy.off or tenancy.brief.placement != "split":
            raise Refused(
                "asked for activations, and the brief does not say 'split' without privacy")
        if packet.head.get("stage") != "train" or not 1 <= packet.head[
            "round"] <= tenancy.brief.rounds:
            raise Refused(f"a split round outside the {tenancy.brief.rounds} of the brief")
        try:
            return tenancy.sessions.answer(packet, stamp, house)
        except WireError as error:
            raise Refused(str(error)) from error

    def _allow(self, given: RunTerms, records: int | None = None) -> None:
        """Hold the limits of this site against a brief.

        Args:
            given: the brief.
            records: that the site trains on, where they have been read; before, the most that there
                can be, so that what is refused then would be refused with fewer records too.

        Raises:
            Refused: with every limit that is exceeded.
        """
        limits = self._file.limits
        most = min(given.records_per_client, limits.records) if records is None else records
        problems = [*site_file.unknown(self._file, given), *site_file.refusals(limits, given, most)]
        if problems:
            raise Refused("; ".join(problems))

    def _settle(self, tenancy: ActiveRun) -> None:
        """Load what a run needs, and let go of what other runs hold of another base: one base is in
        memory, whoever asks.

        Raises:
            Refused: with the site's records the run goes beyond its limits.
        """
        for other in self._runs.values():
            # a split round in the middle holds its updates in the base's weights
            other.sessions.clear()
            if other.house is not None and other.brief.model != tenancy.brief.model:
                other.house = None
        tenancy.house = load_session(tenancy.brief, self._file, self._shelf)
        self._allow(tenancy.brief, len(tenancy.house.records.train))
        if tenancy.brief.too_long != "cut" and not tenancy.brief.privacy.off:
            self._log("cut",
                reason=f"under privacy long records are cut here, not '{tenancy.brief.too_long}'")

    def _tenancy(self, run: str, digest: Any) -> ActiveRun:
        """The run that a message belongs to.

        Raises:
            Refused: this site does not know it, or by another brief.
        """
        found = self._held(run)
        if found is None:
            raise Refused(f"run {run[:8]} is not known here; send its brief", "brief")
        if found.digest != digest:
            raise Refused(f"run {run[:8]} is known here by another brief")
        return found

    def _held(self, run: str) -> ActiveRun | None:
        """A run that is known, from memory or from disk; the limits of today are held against it
        again."""
        if run not in self._runs:
            told = kept_state.read_brief(self._file.site.state, run)
            if told is None:
                return None
            given = brief.read(told)
            self._allow(given)
            self._runs[run] = self._enter(given)
        return self._runs[run]

    def _enter(self, given: RunTerms) -> ActiveRun:
        kept = kept_state.load(self._file.site.state, given.run)
        record = given.privacy.unit == "record" and not given.privacy.off
        account = SiteAccount(kept.folder, given, self._file.limits.epsilon) if record else None
        return ActiveRun(given, given.digest, kept, account)


def _round(packet: Packet) -> kept_state.Key:
    """Stage and round of a message, as they order the site's memory.

    Raises:
        Refused: it names none.
    """
    stage, round = packet.head.get("stage"), packet.head.get("round")
    if stage not in kept_state.STAGES or not isinstance(round, int) or isinstance(round,
            bool) or not 0 <= round < 2**31:
        raise Refused("a message without a sound stage and round")
    return kept_state.STAGES.index(stage), round


def _read(packet: Packet) -> ClientRequest:
    try:
        return tensor_codec.read_order(packet)
    except WireError as error:
        raise Refused(str(error)) from error
