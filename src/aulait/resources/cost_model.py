"""What a piece of work costs, in closed form: arithmetic, memory traffic, operations started,
memory held; then seconds and joules.

Counted is what aulait really runs. Frozen weights get no gradient, so a LoRA step takes about four
FLOP a parameter and token instead of six; the backward pass goes down to the first adapted block
and no further; the head runs on scored positions only where the base allows it. Beside it stands
the convention of the literature, 6 N a token (``model_flop``), which makes MFU comparable
(Chowdhery et al., "PaLM", JMLR 2023, appendix B; Kaplan et al. 2020 count N without embeddings).

How time follows. On a processor core arithmetic, memory traffic and starting operations take turns,
so their seconds are added. An accelerator overlaps them: within each part of the work (see
``Cost.parts``) the slowest of the three counts (the roofline of Williams, Waterman and Patterson,
CACM 2009). The constants below count passes over tensors and operations of a llama-like block as
transformers writes it; other blocks are taken as alike. They are counts, not fits to measured
times.

Shape letters: M out · N in · R rank · D width · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

from aulait.core.errors import ConfigError
from aulait.core.factors import Trainable
from aulait.core.types import Profile
from aulait.resources.block_cost import (
    PACKING_PASSES,
    BlockPass,
    BlockWork,
    block_work,
    layers_of,
    stage,
)
from aulait.resources.cost_types import (
    Batch,
    Block,
    Cost,
    ModelShape,
    Parts,
    Split,
    Trains,
    both,
    parts_of,
)
from aulait.resources.cost_types import total_cost as total_of

__all__ = [
    "Batch",
    "Block",
    "Cost",
    "Cut",
    "ModelShape",
    "Span",
    "Split",
    "embedding",
    "evaluation",
    "full_step",
    "generation",
    "joules",
    "lora_step",
    "seconds",
    "split_step",
    "voting",
]

SIZES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
LEAF_OPERATIONS: Final = 16  # clipping and AdamW, operations for one trained factor
# numbers read and written for one trained number: norm, clip, two moments, step
LEAF_PASSES: Final = 24.0
ENDS_OPERATIONS: Final = (140.0, 40.0)  # embedding, masks, head and loss: forward, backward
# over the logits: the product and log-softmax; gradients of loss and log-softmax, the product
HEAD_PASSES: Final = (3.0, 5.0)
EMBED_ROWS: Final = 32  # texts that an embedder takes at a time
# norms, sums and activation of an encoder's block, numbers for one token and number of its width
EMBED_PASSES_D: Final = 26.0
EMBED_OPERATIONS: Final = 120.0  # of an encoder's block
DRAW_PASSES: Final = 6.0  # over the logits: the product, and the choice of a token
DRAW_OPERATIONS: Final = 220.0  # embedding, masks, head and the choice of a token
# word pieces and positions of BERT, which most sentence embedders share
EMBED_VOCABULARY: Final = 31_034


class Cut(NamedTuple):
    """Where a model is divided between client and server.

    Attributes:
        blocks: at the client.
        wire_bytes: of one number that travels between the halves.
    """

    blocks: int
    wire_bytes: int = 4


class Span(NamedTuple):
    """The blocks [first, last) of a model.

    Attributes:
        first: the first of them.
        last: the one after the last.
        given: whether the states that enter ask for a gradient; None follows the ranks.
    """

    first: int
    last: int
    given: bool | None = None


def lora_step(model_shape: ModelShape, batch: Batch, ranks: Mapping[str, int], *,
              trainable: Trainable = Trainable.AB,
              dtype: str = "float32",
              blocks: tuple[int, int] | None = None) -> Cost:
    """One optimiser step of LoRA: forward, loss, backward, clipping, AdamW on the factors.

    Blocks before the first adapted one run forward. Where their states are remembered (``prefix``),
    a step on known records costs ``blocks=(first adapted, all)``.

    Args:
        model_shape: of the base.
        batch: of the step.
        ranks: layer -> R; layers that are left out carry no adapter.
        trainable: factors that are trained.
        dtype: of the frozen weights and activations; factors are float32.
        blocks: [first, last) of the blocks that run; None is all. The embedding belongs to block 0,
            the head to the last.

    Raises:
        ConfigError: the precision is unknown, or the blocks are out of range.
    """
    return _step(model_shape, batch, tuple(ranks.items()), trainable, dtype,
                 Span(*(blocks or (0, len(model_shape.blocks)))))


def full_step(model_shape: ModelShape, batch: Batch, dtype: str = "float32") -> Cost:
    """One optimiser step that trains all parameters; raises as ``lora_step``."""
    return _step(model_shape, batch, (), "full", dtype, Span(0, len(model_shape.blocks)))


def evaluation(model_shape: ModelShape, batch: Batch, ranks: Mapping[str, int],
               dtype: str = "float32") -> Cost:
    """One forward pass with its losses, under an adapter (empty ``ranks``: the bare base); raises
    as ``lora_step``."""
    return _step(model_shape, batch, tuple(ranks.items()), "", dtype,
                 Span(0, len(model_shape.blocks)))


def split_step(model_shape: ModelShape, cut: Cut, batch: Batch, ranks: Mapping[str, int], *,
               trainable: Trainable = Trainable.AB, dtype: str = "float32") -> Split:
    """One step whose front, embedding and ``cut`` blocks, runs at the client and whose rest runs at
    the server.

    The server computes the gradient of the states it was sent, whatever the client does with it.

    Args:
        model_shape, batch, ranks, trainable, dtype: as in ``lora_step``; ranks of both halves.
        cut: where the model is divided.

    Raises:
        ConfigError: the cut leaves one side without a block.
    """
    count = len(model_shape.blocks)
    if not 0 < cut.blocks < count:
        raise ConfigError(f"cut = {cut.blocks} of {count} blocks; expected 1 to {count - 1}")
    items, last = tuple(ranks.items()), model_shape.blocks[cut.blocks - 1]
    tokens = batch.source if last.side == "encoder" else batch.tokens
    states = batch.rows * tokens * model_shape.width * cut.wire_bytes
    return Split(
        client=_step(model_shape, batch, items, trainable, dtype, Span(0, cut.blocks)),
        server=_step(model_shape, batch, items, trainable, dtype, Span(cut.blocks, count, True)),
        up_bytes=states + 4 * batch.rows * batch.tokens,
        down_bytes=states,
    )


@lru_cache(maxsize=4096)
def _step(model_shape: ModelShape, batch: Batch, ranks: tuple[tuple[str, int], ...], trains: Trains,
          dtype: str,
          span: Span) -> Cost:
    """The work of the blocks of a span."""
    first, last, given = span
    if not 0 <= first < last <= len(model_shape.blocks):
        raise ConfigError(
            f"blocks = ({first}, {last}) of {len(model_shape.blocks)}; expected 0 <= first < last "
            f"<= {len(model_shape.blocks)}")
    size, full, chosen = _size(dtype), trains == "full", dict(ranks)
    total = BlockWork()
    known: dict[tuple[object, ...], BlockWork] = {}
    live = {"decoder": full, "encoder": full}
    for number, block in enumerate(model_shape.blocks[:last]):
        if number == first and given is not None:
            live = {"decoder": given, "encoder": given}
        # runs elsewhere; its adapter decides whether its output asks for a gradient
        if number < first:
            live[block.side] = (
                live[block.side]
                or (bool(trains) and any(chosen.get(name) for name in block.layers))
            )
            continue
        own = layers_of(tuple((name, *shape, chosen.get(name, 0))
                              for name, shape in block.layers.items()))
        key = (own, block.attention_width, block.side, live["decoder"], live["encoder"])
        if key not in known:
            reads = batch.tokens if block.side == "decoder" else batch.source
            run = BlockPass(model_shape.width, block.attention_width, batch.rows, reads,
                            batch.source,
                            trains, size)
            known[key] = block_work(own, run, live[block.side], live["encoder"])
        total += known[key]
        live[block.side] = known[key].live
    ends, logits_bytes = _ends(model_shape, batch, span, trains, size, any(live.values()))
    inner = matrices(model_shape, Span(0, len(model_shape.blocks)))
    rest = model_shape.parameters - model_shape.embedding_parameters - inner
    tail = rest * batch.rows * batch.tokens if last == len(model_shape.blocks) else 0.0
    trained = float(model_shape.parameters) if full else total.trained
    leaves = 2.0 * sum(len(block.layers) for block in model_shape.blocks) if full else total.leaves
    parts = {
        "products": both(total.products, ends["products"]),
        "passes": both(total.passes, ends["passes"]),
        "packing": (0.0, total.packed_bytes + ends["packing"][1], 0.0),
        "optimiser": (0.0, 4 * LEAF_PASSES * trained, LEAF_OPERATIONS * leaves),
    }
    held = (
        model_shape.weight_bytes * _share(model_shape, span) + 4 * (0.0 if full
            else total.adapter) + 12
        * trained
    )
    return total_of((6.0 if trains else 2.0) * (total.matrix_tokens + tail),
                    held + total.kept_bytes + logits_bytes, parts)


def _ends(model_shape: ModelShape, batch: Batch, span: Span, trains: Trains, size: int,
          live: bool) -> tuple[Parts, float]:
    """Embedding, head and loss where the span has them: their parts, and the bytes of the logits at
    the peak."""
    width, rows = model_shape.width, batch.rows
    products, passes, packing, logits_bytes = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0
    if span[0] == 0:
        passes = (0.0, 2.0 * size * rows * (batch.tokens + batch.source) * width,
                  ENDS_OPERATIONS[0] / 2)
    if span[1] == len(model_shape.blocks):
        positions = rows * (batch.scored if model_shape.split_head else batch.tokens)
        times = 1 + (bool(trains) and live) + (trains == "full")
        logits = float(positions) * model_shape.vocabulary
        products = (2.0 * times * logits * width, float(size) * times * model_shape.vocabulary
                    * width,
                    0.0)
        packing = (0.0, PACKING_PASSES * products[1], 0.0)
        runs = HEAD_PASSES[0] + (HEAD_PASSES[1] if trains else 0.0)
        moved = 4 * runs * logits + size * 4.0 * rows * batch.tokens * width
        passes = both(passes,
                      (0.0, moved,
                       ENDS_OPERATIONS[0] / 2 + (ENDS_OPERATIONS[1] if trains else 0.0)))
        logits_bytes = 4 * (3.0 if trains else 2.0) * logits
    return {"products": products, "passes": passes, "packing": packing}, logits_bytes


def matrices(model_shape: ModelShape, span: Span) -> int:
    """Numbers in the weight matrices of blocks [first, last)."""
    return sum(m * n for block in model_shape.blocks[span[0] : span[1]]
               for m, n in block.layers.values())


def _share(model_shape: ModelShape, span: Span) -> float:
    """Share of the base that blocks [first, last) need: the embedding in front, the head (also a
    tied one) at the end."""
    count, inner = len(model_shape.blocks), matrices(model_shape, span)
    rest = model_shape.parameters - model_shape.embedding_parameters - matrices(
        model_shape, Span(0, count))
    held = inner + (model_shape.embedding_parameters if span[0] == 0 else 0)
    if span[1] == count:
        tied = rest < model_shape.vocabulary * model_shape.width
        held += rest + (model_shape.vocabulary * model_shape.width if tied and span[0] > 0 else 0)
    return min(1.0, held / model_shape.parameters)


def generation(model_shape: ModelShape, rows: int, prompt: int, new: int,
               dtype: str = "float32") -> Cost:
    """Sampling with a cache of keys and values: the prompts once, then token by token; every token
    reads all weights.

    Args:
        model_shape: of the base, which wears no adapter.
        rows: texts written together.
        prompt: padded tokens of a prompt.
        new: tokens written.
        dtype: of weights and activations.
    """
    size, vocabulary, seq2seq = _size(dtype), model_shape.vocabulary, model_shape.kind == "seq2seq"
    ahead = replace(model_shape, split_head=True)
    first = evaluation(ahead, Batch(rows, 1 if seq2seq else prompt, prompt if seq2seq else 0, 1),
                       {}, dtype)
    decoder = [block for block in model_shape.blocks if block.side == "decoder"]
    later, total = max(0, new - 1), BlockWork()
    past = (0 if seq2seq else prompt) + new / 2  # mean length of what is attended to
    for block in decoder:
        own = layers_of(tuple((name, *shape, 0) for name, shape in block.layers.items()
                              if not (seq2seq and stage(name) == 3)))
        run = BlockPass(model_shape.width, block.attention_width, rows, 1, prompt, "", size)
        total += block_work(own, run, False, False)
        cached = 2.0 * rows * block.attention_width * (past + (prompt if seq2seq else 0))
        total += BlockWork(products=(2 * cached, size * cached, 0.0))
    head, weights = float(rows) * vocabulary, float(size) * vocabulary * model_shape.width
    step = total_of(2 * total.matrix_tokens, 0.0, {
        "products": both(total.products, (2 * head * model_shape.width, weights, 0.0)),
        "packing": (0.0, total.packed_bytes + PACKING_PASSES * weights, 0.0),
        "passes": both(total.passes, (0.0, 4 * DRAW_PASSES * head, DRAW_OPERATIONS)),
    })
    cache_bytes = (
        2.0 * size * rows * (prompt + new) * sum(block.attention_width for block in decoder)
    )
    return replace(first + later * step, memory_bytes=first.memory_bytes + cache_bytes)


def embedding(parameters: int, width: int, rows: int, tokens: int) -> Cost:
    """Vectors of texts by a sentence encoder of the BERT kind: forward only, in float32,
    ``EMBED_ROWS`` texts at a time.

    Args:
        parameters: of the encoder, embeddings included.
        width: D; the feed-forward part is taken as 4 D wide, the vocabulary as BERT's.
        rows: texts.
        tokens: padded tokens of a text.
    """
    body = (
        parameters - EMBED_VOCABULARY * width if parameters > EMBED_VOCABULARY * width
        else parameters
    )
    blocks, n, passes = body / (12.0 * width**2), float(rows) * tokens, math.ceil(rows / EMBED_ROWS)
    pairs = n * tokens
    heads = max(1, width // 32)
    products = (2.0 * n * body + 4.0 * blocks * pairs * width,
                4 * (blocks * n * 18 * width + passes * body), 0.0)
    around = n * blocks * EMBED_PASSES_D * width + blocks * pairs * heads * 4
    memory = 4.0 * (parameters + n / max(1, passes) * 10 * width)
    return total_of(2.0 * n * body, memory,
        {"products": products, "packing": (0.0, 4 * PACKING_PASSES * passes * body, 0.0),
                                               "passes": (0.0, 4 * around,
                                                   passes * (EMBED_OPERATIONS * blocks + 60))})


def voting(records: int, candidates: int, width: int) -> Cost:
    """Distances of every record to every candidate, pair by pair in float64, and the nearest one;
    raises nothing."""
    pairs = float(records) * candidates
    moved = 8.0 * (2 * pairs + 2 * pairs * width)  # both vectors are read for every pair
    return total_of(3.0 * pairs * width, 8.0 * (pairs + (records + candidates) * width),
                    {"votes": (3.0 * pairs * width, moved, 20.0)})


def seconds(cost: Cost, profile: Profile, dtype: str = "float32") -> float:
    """How long the work takes on a machine.

    A processor adds arithmetic, memory traffic and starting operations; an accelerator overlaps
    them within each part. A precision that the profile lacks is taken at the speed of float32; an
    unknown bandwidth leaves traffic out.

    Raises:
        ConfigError: the profile has neither this precision nor float32.
    """
    rate = profile.flop_per_s.get(dtype) or profile.flop_per_s.get("float32")
    if not rate:
        raise ConfigError(
            f"machine '{profile.name}' has no flop_per_s for '{dtype}' nor for 'float32' (found: "
            f"{', '.join(profile.flop_per_s) or 'none'}); measure it by: aulait probe")
    per_byte_s = 1 / profile.memory_bytes_per_s if profile.memory_bytes_per_s else 0.0
    if profile.device == "cpu":
        return (
            cost.flop / rate + cost.moved_bytes * per_byte_s + cost.operations * profile.operation_s
        )
    return sum(max(flop / rate, moved * per_byte_s, started * profile.operation_s)
               for name, (flop, moved, started) in parts_of(cost).items() if name != "packing")


def joules(seconds: float, profile: Profile) -> float | None:
    """Energy of so many seconds under load; None where the machine's power is not known."""
    return None if profile.power_w is None else seconds * profile.power_w


def _size(dtype: str) -> int:
    if dtype not in SIZES:
        raise ConfigError(f"precision '{dtype}' is unknown; expected one of {', '.join(SIZES)}")
    return SIZES[dtype]
