"""The nouns that travel between floors: frozen, made of tensors, numbers and words.

Shape letters used in the whole package: M out features · N in features · R rank · K clients · B
batch · T tokens ·
D width · V vocabulary · J candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

Placement = Literal["local", "split", "proxy"]
Scaling = Literal["lora", "rslora"]
Tensors = dict[str, Tensor]
Info = dict[str, Any]


def lora_scale(alpha: float, rank: int, scaling: Scaling) -> float:
    """What multiplies B @ A of a layer of that rank."""
    return alpha / (rank if scaling == "lora" else math.sqrt(rank))


@dataclass(frozen=True)
class Adapter:
    """LoRA factors of all adapted layers.

    Attributes:
        factors: layer name -> (A of shape (R, N), B of shape (M, R)); R may differ from layer to
            layer.
        alpha: LoRA's alpha; the update of a layer is (alpha / R) · B @ A.
        rank: the rank that divides alpha in every layer; None takes each layer's own R. The leading
            ranks of a larger adapter keep its ``rank``, so that a column means the same to those
            who have all and to those who have few.
        scaling: "lora", or "rslora", which divides alpha by the square root of the rank
            (Kalajdzievski, arXiv 2312.03732).
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    alpha: float
    rank: int | None = None
    scaling: Scaling = "lora"

    def scale(self, layer: str) -> float:
        """What multiplies B @ A of a layer."""
        return lora_scale(self.alpha, self.rank or self.factors[layer][0].shape[0], self.scaling)

    def holding(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Adapter:
        """An adapter of other factors at the same scale."""
        return replace(self, factors=factors)


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation said.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        content: the words.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One text, one pair of a prompt and its response, or one conversation of a client.

    Attributes:
        text: what is learnt: the whole text, or the response when there is a prompt; of a
            conversation the assistant's last turn.
        prompt: given before the text; it carries no loss. None for plain text. Of a conversation
            the user's turn before the last.
        label: an optional public label (for partitions and control codes).
        unit: whose record it is, where all records of one value are protected together
            (``privacy.unit_field``); sensitive. None: the record is a unit of its own.
        before: the turns of a conversation before ``prompt``; of these too the assistant's are
            learnt.
    """

    text: str
    prompt: str | None = None
    label: str | None = None
    unit: str | None = None
    before: tuple[Turn, ...] = ()

    @property
    def asked(self) -> tuple[Turn, ...]:
        """The turns that ``text`` answers; none for plain text."""
        return self.before if self.prompt is None else (*self.before, Turn("user", self.prompt))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation, the answer included; none for plain text."""
        return (*self.asked, Turn("assistant", self.text)) if self.asked else ()

    @property
    def full(self) -> str:
        """All that was said, as embedded and as shown; the system's instructions are no part of
        it."""
        said = [turn.content for turn in self.asked if turn.role != "system"]
        return "\n".join([*said, self.text])


@dataclass(frozen=True)
class Profile:
    """A machine as the planner sees it; measured, or a preset. None means not known.

    Attributes:
        name: of the machine or of its preset.
        device: "cpu", "cuda" or "mps".
        flop_per_s: precision ("float32", "bfloat16", "float16") -> FLOP/s that a large matrix
            product sustains.
        peak_flop_per_s: precision -> FLOP/s of the data sheet, the denominator of MFU; empty where
            unknown.
        memory_bytes: that a run may fill.
        memory_bytes_per_s: bandwidth of that memory.
        operation_s: seconds to start one operation, whatever its size.
        up_bytes_per_s: of the link to the server.
        down_bytes_per_s: of the link from the server.
        latency_s: one way, of that link.
        power_w: drawn under load.
        idle_w: drawn while waiting.
        source: where the numbers come from.
    """

    name: str = ""
    device: str = "cpu"
    flop_per_s: Mapping[str, float] = field(default_factory=dict)
    peak_flop_per_s: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    memory_bytes_per_s: float | None = None
    operation_s: float = 0.0
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    latency_s: float = 0.0
    power_w: float | None = None
    idle_w: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Plan:
    """The work one client gets in a round.

    Attributes:
        tier: name of the tier it belongs to.
        placement: where its share of the training is done.
        rank: the largest LoRA rank it may be sent.
        steps: optimiser steps in a round.
        batch: sequences in a step.
        cut: blocks at the client of a split placement; None elsewhere.
    """

    tier: str
    placement: Placement
    rank: int
    steps: int
    batch: int
    cut: int | None = None


@dataclass(frozen=True)
class Site:
    """What a client owns. A proxy is a site on the server whose records are released synthetic
    texts.

    Attributes:
        name: the client's name, unique in the run.
        plan: the work it gets.
        train: records it may learn from or vote with, already capped.
        holdout: records kept for evaluation.
        memory: state that persists between rounds (personal adapters, embeddings); saved with the
            run.
    """

    name: str
    plan: Plan
    train: Sequence[Record]
    holdout: Sequence[Record] = ()
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientRequest:
    """What the server asks of one client; a ``TrainRequest``, ``SearchRequest`` or ``VoteRequest``.

    Attributes:
        client: name of the site it is for.
        round: counted from 1.
        tensors: what travels down, by name.
        settings: small numbers and words (steps, learning rate).
        kept: public tensors that stay as they are for many rounds: they travel to a site once, and
            it keeps them.
        stage: which part of the run it belongs to, "synthesis", "train" or "search".
    """

    client: str
    round: int
    tensors: Tensors
    settings: Mapping[str, Any] = field(default_factory=dict)
    kept: Tensors = field(default_factory=dict)
    stage: ClassVar[str]


@dataclass(frozen=True)
class TrainRequest(ClientRequest):
    """The server asks a client to train and to answer with its update."""

    stage: ClassVar[str] = "train"


@dataclass(frozen=True)
class VoteRequest(ClientRequest):
    """The server asks a client to vote on candidate texts, given as embeddings."""

    stage: ClassVar[str] = "synthesis"


@dataclass(frozen=True)
class SearchRequest(ClientRequest):
    """The server asks a client how much each of a few steps would lower the loss of its records."""

    stage: ClassVar[str] = "search"


REQUESTS: Mapping[str, type[ClientRequest]] = {
    "train": TrainRequest, "synthesis": VoteRequest, "search": SearchRequest}


@dataclass(frozen=True)
class ClientUpdate:
    """What a client answers; sensitive until the private aggregator has released a sum of it.

    Attributes:
        client: name of the site.
        tensors: what may be summed over clients, by name: trained factors, or votes.
        weight: number of records behind it; used only when privacy is off.
        info: diagnostics; sensitive, dropped by the aggregator under privacy.
    """

    client: str
    tensors: Tensors
    weight: float = 1.0
    info: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleasedSum:
    """What left the aggregator: safe to use in any way.

    Attributes:
        total: the (noised) sum over clients, by name.
        planned: the public number of clients the sum was planned for.
        noise_std: standard deviation of the noise in every coordinate of ``total``; 0 without
            noise.
        info: mean diagnostics of the updates; empty under privacy.
        refused: (client, reason) of updates that were not counted. Public only when privacy is off.
        counted: client -> its weight in the sum; filled only when privacy is off.
    """

    total: Tensors
    planned: float
    noise_std: float
    info: Info = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    counted: Mapping[str, float] = field(default_factory=dict)


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors as they are."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
