"""The heads of all messages between coordinator and site: one union for each direction.

pydantic reads them: a kind, a field, a number or a text that is not expected is a ``WireError``.
What has tensors carries them in the body (``tensor_codec``). A site's answer bears the stamp of
the message that it answers.

    coordinator to site   hello · terms · keep · train · vote · evaluate · split_begin · split_step
    site to coordinator   facts · accepted · update · scores · split_states · refusal

and those of secure sums (``sum_messages``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from aulait.core.errors import WireError
from aulait.core.files import JsonMapping, JsonObject
from aulait.core.types import (
    ClientRequest,
    ClientUpdate,
    Placement,
    SearchRequest,
    Tensors,
    TrainRequest,
    VoteRequest,
)
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.heads import (
    AnswerHead,
    Count,
    Head,
    HexKey,
    Json,
    Name,
    Positive,
    RequestHead,
    RunHead,
    Seed,
    Stamp,
    Sum,
    WireNumber,
)
from aulait.engines.deployment.protocol.run_terms import RunTerms, first_problem
from aulait.engines.deployment.protocol.sum_messages import (
    MaskedAnswer,
    SumAnswer,
    SumMessage,
    SumPart,
)
from aulait.engines.deployment.protocol.tensor_codec import Body, pack_tensors, unpack_tensors
from aulait.training.activation_codec import Wire

# in front of names of tensors that begin a split round
FACTOR, FOLD, BASIS = "factor/", "fold/", "basis/"
KEPT: Final = "kept"  # setting of a request: the digest of the tensors that the site was to keep
SENT = "sent/"  # in front of names of the parts of states that a split site sends


class HelloMessage(RequestHead):
    """Who is there, and what does it allow?"""

    kind: Literal["hello"] = "hello"
    version: int


class TermsMessage(RequestHead):
    """What a run is, told once."""

    kind: Literal["terms"] = "terms"
    told: RunTerms


class KeepMessage(RunHead):
    """Public tensors that requests of this run name from now on, told once; a request names them by
    the digest of this message's body."""

    kind: Literal["keep"] = "keep"


class TrainMessage(RunHead):
    """Train and answer with an update; the tensors are what the method sends down."""

    kind: Literal["train"] = "train"
    settings: dict[str, Json]
    sum: SumPart | None = None


class SearchMessage(RunHead):
    """Measure by how much a few steps lower the loss; the tensors are the state and the round's
    means."""

    kind: Literal["search"] = "search"
    settings: dict[str, Json]
    sum: SumPart | None = None


class VoteMessage(RunHead):
    """Vote on candidates, given as embeddings."""

    kind: Literal["vote"] = "vote"
    settings: dict[str, Json]
    sum: SumPart | None = None
    stage: ClassVar[str] = "synthesis"


class EvaluateMessage(RunHead):
    """Measure held-out records under the base, an adapter, or one's own adapter of a state.

    Attributes:
        what: that is measured; the tensors are the adapter's or the state's.
        alpha, rank: of an adapter.
        final: the run is over; the site keeps the adapter it would use.
    """

    kind: Literal["evaluate"] = "evaluate"
    what: Literal["base", "adapter", "state"]
    alpha: float = 1.0
    rank: Annotated[int, Field(ge=1)] | None = None
    final: bool = False


class SplitBegin(RunHead):
    """Begin a round of split training; the tensors are factors, dense updates and bases of the
    client half.

    Attributes:
        steps, batch, part, lr, seed: the work, which must be that of the terms.
        alpha, rank: of the factors.
        penalty: terms that the method adds to the loss.
    """

    kind: Literal["split_begin"] = "split_begin"
    steps: Count
    batch: Count
    part: Literal["A", "B", "AB", "R"]
    lr: Positive
    seed: Seed
    alpha: Positive
    rank: Annotated[int, Field(ge=1)] | None = None
    penalty: dict[Literal["proximal", "tail", "keep"], float] | None = None


class SplitStep(RunHead):
    """The gradients of a step of split training."""

    kind: Literal["split_step"] = "split_step"
    step: Count


class FactsAnswer(AnswerHead):
    """Who a site is and what it allows; nothing of its records.

    Attributes:
        version: of the messages.
        package: of aulait.
        roles, methods, privacy, models, embedders: of the site file.
        profile: what ``aulait probe`` measured of the machine.
        identity: who the site is in secure sums; None from a site without a key.
    """

    kind: Literal["facts"] = "facts"
    version: int
    package: Name
    roles: tuple[Placement, ...]
    methods: tuple[Name, ...]
    privacy: bool
    models: tuple[Name, ...]
    embedders: tuple[Name, ...]
    profile: Json = None
    identity: HexKey | None = None


class AcceptedAnswer(AnswerHead):
    """The site takes part. ``records``: how many it trains on; None where that is not told."""

    kind: Literal["accepted"] = "accepted"
    records: Annotated[int, Field(gt=0, lt=2**31)] | None = None


class UpdateAnswer(AnswerHead):
    """A site's update or votes. Sensitive.

    Attributes:
        weight: number of records; 1 where it is not told.
        info: diagnostics; empty under privacy.
        error: that a narrower wire made.
    """

    kind: Literal["update"] = "update"
    weight: WireNumber
    info: Annotated[dict[Name, WireNumber], Field(max_length=1000)]
    error: WireNumber = 0.0


class ScoresAnswer(AnswerHead):
    """Sums over a site's held-out records; all None under privacy.

    Attributes:
        sums: nats, tokens right and tokens, under what was asked.
        shared: the same under the shared adapter, where the site measured its own.
        task: metric -> value.
    """

    kind: Literal["scores"] = "scores"
    sums: tuple[Sum, Sum, Sum] | None = None
    shared: tuple[Sum, Sum, Sum] | None = None
    task: Annotated[dict[Annotated[str, Field(max_length=40)], Sum],
                    Field(max_length=20)] | None = None


class SplitStates(AnswerHead):
    """States and labels of the next step, or the factors after the last."""

    kind: Literal["split_states"] = "split_states"


class RefusalAnswer(Head):
    """What a site answers instead.

    Attributes:
        reason: one line for the coordinator; it must not depend on the site's records.
        why: "refused" by the site's policy, "terms" when it does not know the run, "kept" when it
            does not have the tensors that a request names, "spent" when the run has no more of
            what it promised, "past" or "failed".
    """

    kind: Literal["refusal"] = "refusal"
    reason: str
    why: Name = "refused"


ClientMessage = TrainMessage | SearchMessage | VoteMessage
Request = (HelloMessage | TermsMessage | KeepMessage | ClientMessage | EvaluateMessage
           | SplitBegin | SplitStep | SumMessage)
Answer = (FactsAnswer | AcceptedAnswer | UpdateAnswer | ScoresAnswer | SplitStates | RefusalAnswer
          | MaskedAnswer | SumAnswer)
HeadT = TypeVar("HeadT", bound=Head, covariant=True)
_KINDS: Final[Mapping[type[ClientRequest], type[ClientMessage]]] = {
    TrainRequest: TrainMessage, SearchRequest: SearchMessage, VoteRequest: VoteMessage}
_REQUESTS: Final = TypeAdapter[Request](Annotated[Request, Field(discriminator="kind")])
_ANSWERS: Final = TypeAdapter[Answer](Annotated[Answer, Field(discriminator="kind")])


class _Stamped(BaseModel):
    """The stamp of a message whose rest is not looked at yet."""

    model_config = ConfigDict(extra="ignore", strict=True)
    run: str = Field(pattern=r"^[0-9a-f]{32}$")
    epoch: Count
    number: Count


@dataclass(frozen=True)
class Message(Generic[HeadT]):
    """A head with its tensors as bytes."""

    head: HeadT
    body: bytes = b""

    def packet(self, signature: bytes = b"") -> Packet:
        """As it travels."""
        return Packet(self.head.model_dump_json().encode(), self.body, signature)


def stamp_of(packet: Packet) -> Stamp:
    """The stamp of a packet, its signature not looked at.

    Raises:
        WireError: it bears none.
    """
    try:
        found = _Stamped.model_validate_json(packet.head)
    except ValidationError as error:
        raise WireError("a message bears no valid stamp (run, epoch, number)") from error
    return Stamp(found.run, found.epoch, found.number)


def read_request(packet: Packet) -> Message[Request]:
    """What the coordinator says.

    Raises:
        WireError: it is no message of the coordinator's.
    """
    return Message(_read(_REQUESTS, packet), packet.body)


def read_answer(packet: Packet) -> Message[Answer]:
    """What a site answers.

    Raises:
        WireError: it is no answer.
    """
    return Message(_read(_ANSWERS, packet), packet.body)


ModelT = TypeVar("ModelT")


def _read(kinds: TypeAdapter[ModelT], packet: Packet) -> ModelT:
    try:
        return kinds.validate_json(packet.head)
    except ValidationError as error:
        raise WireError(f"a message is not valid: {first_problem(error)}") from error


def request_message(asked: ClientRequest, stamp: Stamp, terms: str, body: Body,
                    kept: Body | None = None) -> Message[ClientMessage]:
    """A request of a method or of the synthesis as it travels, not yet signed.

    Args:
        asked: the request.
        stamp: which message it is.
        terms: digest of the terms it belongs to.
        body: its tensors.
        kept: the tensors that the site keeps; named here, and sent where it lacks them.
    """
    kind = _KINDS[type(asked)]
    named = {KEPT: digest_of(kept.raw)} if kept is not None else {}
    head = kind(**stamp.fields, client=asked.client, terms=terms, round=asked.round,
                settings=plain_settings(asked.settings) | named)
    return Message(head, body.raw)


def digest_of(body: bytes) -> str:
    """What names tensors that a site keeps."""
    return hashlib.sha256(body).hexdigest()


def plain_settings(settings: JsonMapping) -> JsonObject:
    """Small numbers and words of a request, tuples as the lists that JSON has."""
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(own) for key, own in value.items()}
        return [plain(own) for own in value] if isinstance(value, Sequence) and not isinstance(
            value, str) else value

    return {name: plain(value) for name, value in settings.items()}


def client_request(message: Message[ClientMessage],
                   kept: Tensors | None = None) -> ClientRequest:
    """The request in a message.

    Args:
        message: of the coordinator.
        kept: the tensors that it names.

    Raises:
        WireError: its tensors cannot be read.
    """
    head = message.head
    kind = next(asked for asked, own in _KINDS.items() if own is type(head))
    settings = {name: value for name, value in head.settings.items() if name != KEPT}
    return kind(head.client, head.round, unpack_tensors(message.body), settings, kept or {})


def update_message(given: ClientUpdate, stamp: Stamp,
                   wire: Wire = "float32") -> Message[UpdateAnswer]:
    """An update as it travels. Sensitive.

    Raises:
        WireError: its weight is not finite, or its tensors cannot travel.
    """
    made = pack_tensors(given.tensors, wire)
    info = {name: float(value) for name, value in given.info.items() if math.isfinite(float(value))}
    try:
        head = UpdateAnswer(**stamp.fields, client=given.client, weight=given.weight, info=info,
                            error=made.error)
    except ValidationError as error:
        raise WireError("an update whose weight or diagnostics cannot travel") from error
    return Message(head, made.raw)


def client_update(message: Message[UpdateAnswer]) -> ClientUpdate:
    """The update in an answer; what its tensors are worth is for the aggregator to judge.

    Raises:
        WireError: its tensors cannot be read.
    """
    head = message.head
    return ClientUpdate(head.client, unpack_tensors(message.body), head.weight, head.info)


def refusal(stamp: Stamp, reason: str, why: str = "refused") -> Message[RefusalAnswer]:
    """What a site answers instead; see ``RefusalAnswer``."""
    return Message(RefusalAnswer(**stamp.fields, reason=reason, why=why))
