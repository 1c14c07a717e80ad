"""What the cost model reads and what it says: the model shape of a base, the rows of a pass, and
the cost of a piece of work.

Shape letters: M out · N in · D width · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from aulait.core.factors import Trainable

# what a step trains: factors of LoRA, all weights, or nothing (a forward pass only)
Trains = Trainable | Literal["full", ""]
Parts = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        layers: full layer name -> (M, N) of its linear layers, in the order of the forward pass.
        attention_width: query heads times head dimension.
        side: "decoder" (also of a causal model) or "encoder".
        cross: whether it also attends to an encoder.
    """

    layers: Mapping[str, tuple[int, int]]
    attention_width: int
    side: Literal["decoder", "encoder"]
    cross: bool

    def __hash__(self) -> int:
        return hash((tuple(self.layers.items()), self.attention_width, self.side, self.cross))


@dataclass(frozen=True)
class ModelShape:
    """A base as the cost model sees it.

    Attributes:
        blocks: in the order of the forward pass, the encoder's first.
        width: D, numbers in a hidden state.
        vocabulary: V, rows of the output head.
        parameters: of the whole base, shared ones once.
        embedding_parameters: of the input embeddings (tokens and positions); a head tied to them is
            among them.
        weight_bytes: of all frozen weights as they are held.
        kind: "causal" or "seq2seq".
        split_head: whether the head runs on scored positions only.
    """

    blocks: tuple[Block, ...]
    width: int
    vocabulary: int
    parameters: int
    embedding_parameters: int
    weight_bytes: int
    kind: Literal["causal", "seq2seq"]
    split_head: bool


@dataclass(frozen=True)
class Batch:
    """The rows of one pass.

    Attributes:
        rows: sequences.
        tokens: padded tokens of a row, in the decoder.
        source: padded tokens of a row in the encoder; 0 without one.
        scored: positions of a row that carry loss.
    """

    rows: int
    tokens: int
    source: int = 0
    scored: int = 0


@dataclass(frozen=True)
class Cost:
    """Work and the memory it needs. ``+`` adds work and takes the larger memory, ``*`` scales work.

    Attributes:
        model_flop: by the convention of 6 N a token (2 N forward only).
        flop: of the matrix products really executed; element-wise work counts as the bytes it
            moves.
        moved_bytes: read from and written to memory.
        operations: started one after the other.
        memory_bytes: held at the peak.
        parts: kind of work -> its (flop, moved_bytes, operations); they add up to the totals. Empty
            means one part. "packing" is what a processor's library moves to rearrange weights
            before a product; accelerators do not.
    """

    model_flop: float
    flop: float
    moved_bytes: float
    operations: float
    memory_bytes: float
    parts: Parts = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        parts = {**parts_of(self)}
        for name, own in parts_of(other).items():
            parts[name] = both(parts.get(name, (0.0, 0.0, 0.0)), own)
        return Cost(self.model_flop + other.model_flop, self.flop + other.flop,
                    self.moved_bytes + other.moved_bytes,
                    self.operations + other.operations, max(self.memory_bytes, other.memory_bytes),
                    parts)

    def __mul__(self, times: float) -> Cost:
        parts = {name: (times * a, times * b, times * c) for name, (a, b, c) in self.parts.items()}
        return Cost(times * self.model_flop, times * self.flop, times * self.moved_bytes,
                    times * self.operations,
                    self.memory_bytes, parts)

    __rmul__ = __mul__


@dataclass(frozen=True)
class Split:
    """One step of a base that is cut in two.

    Attributes:
        client: embedding and the blocks in front of the cut.
        server: the rest.
        up_bytes: hidden states and labels.
        down_bytes: gradients of the hidden states.
    """

    client: Cost
    server: Cost
    up_bytes: int
    down_bytes: int


def parts_of(cost: Cost) -> Parts:
    """The parts of a cost; one part where none are told apart."""
    return cost.parts or {"whole": (cost.flop, cost.moved_bytes, cost.operations)}


def both(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float,
        float]:
    """FLOP, bytes and operations of two parts together."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def total_cost(model_flop: float, memory_bytes: float, parts: Parts) -> Cost:
    """A cost from its parts, empty ones left out."""
    parts = {name: own for name, own in parts.items() if any(own)}
    flop, moved, operations = (sum(part[i] for part in parts.values()) for i in range(3))
    return Cost(model_flop, flop, moved, operations, memory_bytes, parts)
