"""What a piece of work costs, in closed form: arithmetic, memory traffic, operations started, memory held; then seconds and joules.

Counted is what aulait really runs. Frozen weights get no gradient, so a LoRA step takes about four FLOP a parameter and token
instead of six; the backward pass goes down to the first adapted block and no further; the head runs on scored positions only
where the base allows it. Beside it stands the convention of the literature, 6 N a token (``model_flop``), which makes MFU
comparable (Chowdhery et al., "PaLM", JMLR 2023, appendix B; Kaplan et al. 2020 count N without embeddings).

How time follows. On a processor core arithmetic, memory traffic and starting operations take turns, so their seconds are
added. An accelerator overlaps them: within each part of the work (see ``Cost.parts``) the slowest of the three counts (the
roofline of Williams, Waterman and Patterson, CACM 2009). The constants below count passes over tensors and operations of a
llama-like block as transformers writes it; other blocks are taken as alike. They are counts, not fits to measured times.

Shape letters: M out · N in · R rank · D width · H inner width of the feed-forward part · W attention width · T tokens · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, Literal

from aulait.compute.block import Work, block_work, layers_of, stage
from aulait.errors import ConfigError
from aulait.types import Profile

SIZES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
LEAF_OPERATIONS: Final = 16  # clipping and AdamW, operations for one trained factor
LEAF_PASSES: Final = 24.0  # numbers read and written for one trained number: norm, clip, two moments, step
ENDS_OPERATIONS: Final = (140.0, 40.0)  # embedding, masks, head and loss: forward, backward
HEAD_PASSES: Final = (3.0, 5.0)  # over the logits: the product and log-softmax; gradients of loss and log-softmax, the product
EMBED_ROWS: Final = 32  # texts that an embedder takes at a time
EMBED_PASSES_D: Final = 26.0  # norms, sums and activation of an encoder's block, numbers for one token and number of its width
EMBED_OPERATIONS: Final = 120.0  # of an encoder's block
DRAW_PASSES: Final = 6.0  # over the logits: the product, and the choice of a token
DRAW_OPERATIONS: Final = 220.0  # embedding, masks, head and the choice of a token
EMBED_VOCABULARY: Final = 31_034  # word pieces and positions of BERT, which most sentence embedders share

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
class Anatomy:
    """A base as the cost model sees it.

    Attributes:
        blocks: in the order of the forward pass, the encoder's first.
        width: D, numbers in a hidden state.
        vocabulary: V, rows of the output head.
        parameters: of the whole base, shared ones once.
        embedding_parameters: of the input embeddings (tokens and positions); a head tied to them is among them.
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
        flop: of the matrix products really executed; element-wise work counts as the bytes it moves.
        moved_bytes: read from and written to memory.
        operations: started one after the other.
        memory_bytes: held at the peak.
        parts: kind of work -> its (flop, moved_bytes, operations); they add up to the totals. Empty means one part.
    """

    model_flop: float
    flop: float
    moved_bytes: float
    operations: float
    memory_bytes: float
    parts: Parts = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        parts = {**_parts(self)}
        for name, own in _parts(other).items():
            parts[name] = _sum(parts.get(name, (0.0, 0.0, 0.0)), own)
        return Cost(self.model_flop + other.model_flop, self.flop + other.flop, self.moved_bytes + other.moved_bytes,
                    self.operations + other.operations, max(self.memory_bytes, other.memory_bytes), parts)

    def __mul__(self, times: float) -> Cost:
        parts = {name: (times * a, times * b, times * c) for name, (a, b, c) in self.parts.items()}
        return Cost(times * self.model_flop, times * self.flop, times * self.moved_bytes, times * self.operations,
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


def _parts(cost: Cost) -> Parts:
    return cost.parts or {"whole": (cost.flop, cost.moved_bytes, cost.operations)}


def _sum(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float, float]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _cost(model_flop: float, memory_bytes: float, parts: Parts) -> Cost:
    flop, moved, operations = (sum(part[i] for part in parts.values()) for i in range(3))
    return Cost(model_flop, flop, moved, operations, memory_bytes, parts)


def lora_step(anatomy: Anatomy, batch: Batch, ranks: Mapping[str, int], *, part: str = "AB", dtype: str = "float32",
              blocks: tuple[int, int] | None = None) -> Cost:
    """One optimiser step of LoRA: forward, loss, backward, clipping, AdamW on the factors.

    Blocks before the first adapted one run forward. Where their states are remembered (``prefix``), a step on known records
    costs ``blocks=(first adapted, all)``.

    Args:
        anatomy: of the base.
        batch: of the step.
        ranks: layer -> R; layers that are left out carry no adapter.
        part: factors that are trained.
        dtype: of the frozen weights and activations; factors are float32.
        blocks: [first, last) of the blocks that run; None is all. The embedding belongs to block 0, the head to the last.

    Raises:
        ConfigError: the precision is unknown, or the blocks are out of range.
    """
    return _step(anatomy, batch, tuple(ranks.items()), part, dtype, blocks or (0, len(anatomy.blocks)), None)


def full_step(anatomy: Anatomy, batch: Batch, dtype: str = "float32") -> Cost:
    """One optimiser step that trains all parameters; raises as ``lora_step``."""
    return _step(anatomy, batch, (), "full", dtype, (0, len(anatomy.blocks)), None)


def evaluation(anatomy: Anatomy, batch: Batch, ranks: Mapping[str, int], dtype: str = "float32") -> Cost:
    """One forward pass with its losses, under an adapter (empty ``ranks``: the bare base); raises as ``lora_step``."""
    return _step(anatomy, batch, tuple(ranks.items()), "", dtype, (0, len(anatomy.blocks)), None)


def split_step(anatomy: Anatomy, cut: int, batch: Batch, ranks: Mapping[str, int], *, part: str = "AB", dtype: str = "float32",
               wire_bytes: int = 4) -> Split:
    """One step whose front, embedding and ``cut`` blocks, runs at the client and whose rest runs at the server.

    The server computes the gradient of the states it was sent, whatever the client does with it.

    Args:
        anatomy, batch, ranks, part, dtype: as in ``lora_step``; ranks of both halves.
        cut: blocks at the client.
        wire_bytes: of one number on the wire.

    Raises:
        ConfigError: the cut leaves one side without a block.
    """
    if not 0 < cut < len(anatomy.blocks):
        raise ConfigError(f"cut = {cut} of {len(anatomy.blocks)} blocks; expected 1 to {len(anatomy.blocks) - 1}")
    items, tokens = tuple(ranks.items()), batch.source if anatomy.blocks[cut - 1].side == "encoder" else batch.tokens
    states = batch.rows * tokens * anatomy.width * wire_bytes
    return Split(
        client=_step(anatomy, batch, items, part, dtype, (0, cut), None),
        server=_step(anatomy, batch, items, part, dtype, (cut, len(anatomy.blocks)), True),
        up_bytes=states + 4 * batch.rows * batch.tokens,
        down_bytes=states,
    )


@lru_cache(maxsize=4096)
def _step(anatomy: Anatomy, batch: Batch, ranks: tuple[tuple[str, int], ...], part: str, dtype: str, span: tuple[int, int],
          given: bool | None) -> Cost:
    """The work of blocks [first, last); ``given``: whether the states that enter ask for a gradient, None follows the ranks."""
    first, last = span
    if not 0 <= first < last <= len(anatomy.blocks):
        raise ConfigError(f"blocks = ({first}, {last}) of {len(anatomy.blocks)}; expected 0 <= first < last <= {len(anatomy.blocks)}")
    size, full, chosen = _size(dtype), part == "full", dict(ranks)
    total = Work()
    known: dict[tuple[object, ...], Work] = {}
    live = {"decoder": full, "encoder": full}
    for number, block in enumerate(anatomy.blocks[:last]):
        if number == first and given is not None:
            live = {"decoder": given, "encoder": given}
        if number < first:  # runs elsewhere; its adapter decides whether its output asks for a gradient
            live[block.side] = live[block.side] or (bool(part) and any(chosen.get(name) for name in block.layers))
            continue
        own = layers_of(tuple((name, *shape, chosen.get(name, 0)) for name, shape in block.layers.items()))
        key = (own, block.attention_width, block.side, live["decoder"], live["encoder"])
        if key not in known:
            reads = batch.tokens if block.side == "decoder" else batch.source
            known[key] = block_work(own, anatomy.width, block.attention_width, batch.rows, reads, batch.source, part, size,
                                    live[block.side], live["encoder"])
        total += known[key]
        live[block.side] = known[key].live
    ends, logits_bytes = _ends(anatomy, batch, span, part, size, any(live.values()))
    rest = anatomy.parameters - anatomy.embedding_parameters - matrices(anatomy, (0, len(anatomy.blocks)))
    tail = rest * batch.rows * batch.tokens if last == len(anatomy.blocks) else 0.0
    trained = float(anatomy.parameters) if full else total.trained
    leaves = 2.0 * sum(len(block.layers) for block in anatomy.blocks) if full else total.leaves
    parts = {
        "products": _sum(total.products, ends["products"]),
        "passes": _sum(total.passes, ends["passes"]),
        "optimiser": (0.0, 4 * LEAF_PASSES * trained, LEAF_OPERATIONS * leaves),
    }
    held = anatomy.weight_bytes * _share(anatomy, span) + 4 * (0.0 if full else total.adapter) + 12 * trained
    return _cost((6.0 if part else 2.0) * (total.matrix_tokens + tail), held + total.kept_bytes + logits_bytes,
                 {name: own for name, own in parts.items() if any(own)})


def _ends(anatomy: Anatomy, batch: Batch, span: tuple[int, int], part: str, size: int, live: bool) -> tuple[Parts, float]:
    """Embedding, head and loss where the span has them: their parts, and the bytes of the logits at the peak."""
    width, rows = anatomy.width, batch.rows
    products, passes, logits_bytes = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0
    if span[0] == 0:
        passes = (0.0, 2.0 * size * rows * (batch.tokens + batch.source) * width, ENDS_OPERATIONS[0] / 2)
    if span[1] == len(anatomy.blocks):
        positions = rows * (batch.scored if anatomy.split_head else batch.tokens)
        times = 1 + (bool(part) and live) + (part == "full")
        logits = float(positions) * anatomy.vocabulary
        products = (2.0 * times * logits * width, float(size) * times * anatomy.vocabulary * width, 0.0)
        runs = HEAD_PASSES[0] + (HEAD_PASSES[1] if part else 0.0)
        moved = 4 * runs * logits + size * 4.0 * rows * batch.tokens * width
        passes = _sum(passes, (0.0, moved, ENDS_OPERATIONS[0] / 2 + (ENDS_OPERATIONS[1] if part else 0.0)))
        logits_bytes = 4 * (3.0 if part else 2.0) * logits
    return {"products": products, "passes": passes}, logits_bytes


def matrices(anatomy: Anatomy, span: tuple[int, int]) -> int:
    """Numbers in the weight matrices of blocks [first, last)."""
    return sum(m * n for block in anatomy.blocks[span[0] : span[1]] for m, n in block.layers.values())


def _share(anatomy: Anatomy, span: tuple[int, int]) -> float:
    """Share of the base that blocks [first, last) need: the embedding in front, the head (also a tied one) at the end."""
    count, inner = len(anatomy.blocks), matrices(anatomy, span)
    rest = anatomy.parameters - anatomy.embedding_parameters - matrices(anatomy, (0, count))
    held = inner + (anatomy.embedding_parameters if span[0] == 0 else 0)
    if span[1] == count:
        tied = rest < anatomy.vocabulary * anatomy.width
        held += rest + (anatomy.vocabulary * anatomy.width if tied and span[0] > 0 else 0)
    return min(1.0, held / anatomy.parameters)


def generation(anatomy: Anatomy, rows: int, prompt: int, new: int, dtype: str = "float32") -> Cost:
    """Sampling with a cache of keys and values: the prompts once, then token by token; every token reads all weights.

    Args:
        anatomy: of the base, which wears no adapter.
        rows: texts written together.
        prompt: padded tokens of a prompt.
        new: tokens written.
        dtype: of weights and activations.
    """
    size, vocabulary, both = _size(dtype), anatomy.vocabulary, anatomy.kind == "seq2seq"
    ahead = replace(anatomy, split_head=True)
    first = evaluation(ahead, Batch(rows, 1 if both else prompt, prompt if both else 0, 1), {}, dtype)
    decoder = [block for block in anatomy.blocks if block.side == "decoder"]
    later, total = max(0, new - 1), Work()
    past = (0 if both else prompt) + new / 2  # mean length of what is attended to
    for block in decoder:
        own = layers_of(tuple((name, *shape, 0) for name, shape in block.layers.items() if not (both and stage(name) == 3)))
        total += block_work(own, anatomy.width, block.attention_width, rows, 1, prompt, "", size, False, False)
        cached = 2.0 * rows * block.attention_width * (past + (prompt if both else 0))
        total += Work(products=(2 * cached, size * cached, 0.0))
    head = float(rows) * vocabulary
    step = _cost(2 * total.matrix_tokens, 0.0, {
        "products": _sum(total.products, (2 * head * anatomy.width, float(size) * vocabulary * anatomy.width, 0.0)),
        "passes": _sum(total.passes, (0.0, 4 * DRAW_PASSES * head, DRAW_OPERATIONS)),
    })
    cache_bytes = 2.0 * size * rows * (prompt + new) * sum(block.attention_width for block in decoder)
    return replace(first + later * step, memory_bytes=first.memory_bytes + cache_bytes)


def embedding(parameters: int, width: int, rows: int, tokens: int) -> Cost:
    """Vectors of texts by a sentence encoder of the BERT kind: forward only, in float32, ``EMBED_ROWS`` texts at a time.

    Args:
        parameters: of the encoder, embeddings included.
        width: D; the feed-forward part is taken as 4 D wide, the vocabulary as BERT's.
        rows: texts.
        tokens: padded tokens of a text.
    """
    body = parameters - EMBED_VOCABULARY * width if parameters > EMBED_VOCABULARY * width else parameters
    blocks, n, passes = body / (12.0 * width**2), float(rows) * tokens, math.ceil(rows / EMBED_ROWS)
    pairs = n * tokens
    heads = max(1, width // 32)
    products = (2.0 * n * body + 4.0 * blocks * pairs * width, 4 * (blocks * n * 18 * width + passes * body), 0.0)
    around = n * blocks * EMBED_PASSES_D * width + blocks * pairs * heads * 4
    memory = 4.0 * (parameters + n / max(1, passes) * 10 * width)
    return _cost(2.0 * n * body, memory, {"products": products, "passes": (0.0, 4 * around, passes * (EMBED_OPERATIONS * blocks + 60))})


def voting(records: int, candidates: int, width: int) -> Cost:
    """Distances of every record to every candidate, pair by pair in float64, and the nearest one; raises nothing."""
    pairs = float(records) * candidates
    moved = 8.0 * (2 * pairs + 2 * pairs * width)  # both vectors are read for every pair
    return _cost(3.0 * pairs * width, 8.0 * (pairs + (records + candidates) * width), {"votes": (3.0 * pairs * width, moved, 20.0)})


def seconds(cost: Cost, profile: Profile, dtype: str = "float32") -> float:
    """How long the work takes on a machine.

    A processor adds arithmetic, memory traffic and starting operations; an accelerator overlaps them within each part. A precision
    that the profile lacks is taken at the speed of float32; an unknown bandwidth leaves traffic out.

    Raises:
        ConfigError: the profile has neither this precision nor float32.
    """
    rate = profile.flop_per_s.get(dtype) or profile.flop_per_s.get("float32")
    if not rate:
        raise ConfigError(f"machine '{profile.name}' has no flop_per_s for '{dtype}' nor for 'float32' (found: "
                          f"{', '.join(profile.flop_per_s) or 'none'}); measure it by: aulait probe")
    per_byte_s = 1 / profile.memory_bytes_per_s if profile.memory_bytes_per_s else 0.0
    if profile.device == "cpu":
        return cost.flop / rate + cost.moved_bytes * per_byte_s + cost.operations * profile.operation_s
    return sum(max(flop / rate, moved * per_byte_s, started * profile.operation_s) for flop, moved, started in _parts(cost).values())


def joules(seconds: float, profile: Profile) -> float | None:
    """Energy of so many seconds under load; None where the machine's power is not known."""
    return None if profile.power_w is None else seconds * profile.power_w


def _size(dtype: str) -> int:
    if dtype not in SIZES:
        raise ConfigError(f"precision '{dtype}' is unknown; expected one of {', '.join(SIZES)}")
    return SIZES[dtype]
