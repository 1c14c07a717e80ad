"""The work of one transformer block in one step, layer by layer: which products run, what they
move, what they keep.

A layer's input asks for a gradient only if something before it is trained. So in the first adapted
block the frozen products of query, key and value have no backward pass, and before that block
nothing has one.

Shape letters: M out · N in · R rank · D width · H inner width · W attention width · n tokens of all
rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from aulait.core.factors import Trainable
from aulait.resources.cost_types import Trains

# Numbers read and written for one token by the operations around the products, forward and
# backward.
# two norms and two residual sums; backward also joins the gradients of parallel layers
PASSES_D: Final = (20.0, 59.0)
# rotation of queries and keys, moving heads; the attention's own inputs and outputs
PASSES_W: Final = (26.0, 40.0)
PASSES_H: Final = (6.0, 9.0)  # activation, and product with the gate
# Operations as they reach the device, views included. Those of the forward pass count twice: Python
# calls them, module by module, while the backward pass is driven by C++.
BLOCK_OPERATIONS: Final = (144.0, 80.0)  # products of frozen layers included
LAYER_OPERATIONS: Final = (22.0, 20.0)  # what an adapter adds to a layer
# over the weights of a product: a processor's library writes them rearranged and reads them again
PACKING_PASSES: Final = 2.0
HEAD_WIDTH: Final = 64  # of an attention head, for the traffic of its scores
# over the attention scores, which stay on the chip but pass the exponential
SCORE_PASSES: Final = (4.0, 8.0)
_QUERY_KEY_VALUE: Final = frozenset(
    ["q", "k", "v", "q_proj", "k_proj", "v_proj", "query", "key", "value", "c_attn",
     "query_key_value", "qkv_proj", "q_lin", "k_lin",
     "v_lin"])
_KEY_VALUE: Final = frozenset(["k", "v", "k_proj", "v_proj", "key", "value", "k_lin", "v_lin"])
_CROSS: Final = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn")

Three = tuple[float, float, float]


class Layer(NamedTuple):
    """A linear layer in its place.

    Attributes:
        stage: 0 query, key, value · 1 attention out · 2 cross query · 3 cross key, value · 4 cross
            out · 5 into the feed-forward part · 6 out of it.
        m: M.
        n: N.
        rank: R; 0 without an adapter.
    """

    stage: int
    m: int
    n: int
    rank: int


@dataclass(frozen=True)
class BlockWork:
    """What a block, or several, take.

    Attributes:
        products: (FLOP, bytes, operations) of frozen products and attention.
        passes: the same of element-wise work and of the thin products of the factors.
        matrix_tokens: sum of M · N · tokens.
        adapter: numbers in factors.
        trained: numbers in trained factors.
        leaves: trained factors.
        kept_bytes: activations that the backward pass needs.
        packed_bytes: moved to rearrange weights; see ``quantities.Cost.parts``.
        live: whether what leaves the block asks for a gradient.
    """

    products: Three = (0.0, 0.0, 0.0)
    passes: Three = (0.0, 0.0, 0.0)
    matrix_tokens: float = 0.0
    adapter: float = 0.0
    trained: float = 0.0
    leaves: float = 0.0
    kept_bytes: float = 0.0
    packed_bytes: float = 0.0
    live: bool = False

    def __add__(self, other: BlockWork) -> BlockWork:
        a, b = self.products, other.products
        c, d = self.passes, other.passes
        return BlockWork((a[0] + b[0], a[1] + b[1], a[2] + b[2]),
                    (c[0] + d[0], c[1] + d[1], c[2] + d[2]),
                    self.matrix_tokens + other.matrix_tokens, self.adapter + other.adapter,
                    self.trained + other.trained,
                    self.leaves + other.leaves, self.kept_bytes + other.kept_bytes,
                    self.packed_bytes + other.packed_bytes, other.live)


@lru_cache(maxsize=65536)
def stage(name: str) -> int:
    """The place of a layer in its block by its name; 6 for a feed-forward layer, whichever it
    is."""
    parts = name.split(".")
    last, path = parts[-1], ".".join(parts[-3:-1])
    if any(word in path for word in _CROSS):
        return 3 if last in _KEY_VALUE else 2 if last in _QUERY_KEY_VALUE else 4
    if "att" in path.lower() or last in _QUERY_KEY_VALUE:
        return 0 if last in _QUERY_KEY_VALUE else 1
    return 6


def layers_of(named: tuple[tuple[str, int, int, int], ...]) -> tuple[Layer, ...]:
    """Layers from (name, M, N, R) in the order of the forward pass; of the feed-forward layers the
    last leads out."""
    found = [Layer(stage(name), m, n, rank) for name, m, n, rank in named]
    outward = max((i for i, layer in enumerate(found) if layer.stage == 6), default=-1)
    return tuple(layer._replace(stage=5) if layer.stage == 6 and i != outward else layer
                 for i, layer in enumerate(found))


class BlockPass(NamedTuple):
    """What goes through a block.

    Attributes:
        width: D.
        attention: W.
        rows: sequences.
        tokens: of a row in this block.
        source: of a row in the encoder, for cross attention.
        trains: of LoRA the trained factors, "full" for all weights, "" for a forward pass only.
        size: bytes of an activation.
    """

    width: int
    attention: int
    rows: int
    tokens: int
    source: int
    trains: Trains
    size: int


def block_work(layers: tuple[Layer, ...], run: BlockPass, live: bool,
               source_live: bool) -> BlockWork:
    """The work of one block.

    Args:
        layers: in order.
        run: what goes through.
        live: whether the states that enter ask for a gradient.
        source_live: whether those of the encoder do.
    """
    width, attention, rows, tokens, source, trains, size = run
    n, total = rows * tokens, BlockWork()
    entering = {0: live, 1: live, 2: live, 3: source_live, 4: live, 5: live, 6: live}
    for layer in layers:
        count = rows * source if layer.stage == 3 else n
        asks = entering[layer.stage]
        total += _layer(layer, count, trains, size, asks)
        if trains and (layer.rank or trains == "full" or asks):
            for later in range(layer.stage + 1, 7):
                # The cross query does not feed the cross keys; both feed what comes out.
                if (layer.stage, later) not in ((0, 3), (1, 3), (2, 3)):
                    entering[later] = True
    out_live = bool(trains) and (
        entering[6] or any(layer.rank for layer in layers) or trains == "full")
    stages = {layer.stage for layer in layers}
    for reads, leads in ((tokens, 1), (source, 4)):
        if leads in stages:
            total += _attention(run, reads, bool(trains) and entering[leads])
    inner = max((layer.n for layer in layers if layer.stage == 6), default=0)
    gated = sum(layer.stage == 5 for layer in layers) > 1
    around = [PASSES_D[i] * width + PASSES_W[i] * attention + PASSES_H[i] * inner for i in (0, 1)]
    kept = n * (2 * width + (3 if gated else 2) * inner) if out_live else 0.0
    numbers = n * (around[0] + (around[1] if out_live else 0.0))
    started = BLOCK_OPERATIONS[0] + (BLOCK_OPERATIONS[1] if out_live else 0.0)
    return (
        total + BlockWork(passes=(0.0, size * numbers, started), kept_bytes=size * kept,
                          live=out_live)
    )


def _layer(layer: Layer, n: int, trains: Trains, size: int, asks: bool) -> BlockWork:
    """A linear layer with its adapter; ``asks``: whether its input asks for a gradient."""
    _, m, k, rank = layer
    whole, full = 2.0 * n * m * k, trains == "full"
    times = 1 + (asks and bool(trains)) + full
    products = (times * whole, times * float(size) * (n * (m + k) + m * k), 0.0)
    trains_a, trains_b, trains_core = (
        rank > 0 and (trains == own or (trains == Trainable.AB and own != Trainable.R))
        for own in (Trainable.A, Trainable.B, Trainable.R))
    down, up = 2.0 * n * rank * k, 2.0 * n * rank * m
    asks = asks and bool(trains)
    flop = ((down + up) + up * ((trains_a or asks or trains_core) + trains_b)
            + down * (asks + trains_a) + 6.0 * n * rank * rank * trains_core)
    inward, outward = n * (k + rank), n * (m + rank)
    moved = 0.0
    if rank:
        moved = (
            (inward + outward + 3 * n * m) + outward * ((trains_a or asks) + trains_b) + inward
            * (asks + trains_a) + 3 * n * k * asks
        )
    backward = rank > 0 and bool(trains) and not full
    started = (LAYER_OPERATIONS[0] if rank else 0.0) + (LAYER_OPERATIONS[1] if backward else 0.0)
    # q, k and v share one input; the other inputs are kept once each. Only a gradient of A, or of
    # the weights, needs them.
    shared = 1 / 3 if layer.stage == 0 and m <= k else 1.0
    kept = n * k * shared * size if (trains_a or full) else 0.0
    kept += 4.0 * n * rank if backward else 0.0
    trained = float(rank * k * trains_a + rank * m * trains_b + rank * rank * trains_core)
    return BlockWork(products, (flop, 4 * moved, started), float(n) * m * k, float(rank * (m + k)),
                trained, float(trains_a + trains_b + trains_core), kept,
                PACKING_PASSES * times * size * m * k)


def _attention(run: BlockPass, reads: int, backward: bool) -> BlockWork:
    """Scores over ``reads`` tokens and their sums; the backward pass computes the scores again
    (five products for the forward pass's two)."""
    attention, size, heads = run.attention, run.size, max(1, run.attention // HEAD_WIDTH)
    pairs = float(run.rows) * run.tokens * reads
    flop = 4.0 * pairs * attention * (3.5 if backward else 1.0)
    moved = size * pairs * heads * (SCORE_PASSES[0] + (SCORE_PASSES[1] if backward else 0.0))
    kept = size * run.rows * (2.0 * run.tokens + 2.0 * reads) * attention if backward else 0.0
    return BlockWork(products=(flop, moved, 0.0), kept_bytes=kept)
