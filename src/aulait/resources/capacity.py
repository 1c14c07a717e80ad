"""What a machine could carry of bases of common sizes, before any base is loaded: for ``aulait
probe``.

The sizes are those of published models; work, memory and seconds are counted by ``cost``, as the
planner counts a loaded base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from aulait.core.types import Placement, Profile
from aulait.resources import cost_model
from aulait.resources.cost_model import Batch, Block, Cost, ModelShape

EMBEDDER: Final = (22_700_000, 384)
"""Parameters and width of the built-in embedder; another one is taken to be as large."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a llama-like causal model.

    Attributes:
        like: the published model whose sizes these are.
        blocks: transformer blocks.
        width: D of the hidden states.
        inner: H of the gated feed-forward part.
        keys: width of keys, and of values, over all their heads.
        vocabulary: V.
        tied: whether the head is the embedding.
    """

    like: str
    blocks: int
    width: int
    inner: int
    keys: int
    vocabulary: int
    tied: bool = True


SHAPES: Final[Mapping[str, Shape]] = {
    "brew": Shape("built-in", 6, 256, 640, 256, 8192),
    "0.5B": Shape("Qwen2.5-0.5B", 24, 896, 4864, 128, 151936),
    "1B": Shape("Llama-3.2-1B", 16, 2048, 8192, 512, 128256),
    "3B": Shape("Llama-3.2-3B", 28, 3072, 8192, 1024, 128256),
    "8B": Shape("Llama-3.1-8B", 32, 4096, 14336, 1024, 128256, tied=False),
}
"""Name -> sizes, from the models' published configurations; biases are left out."""


@dataclass(frozen=True)
class Task:
    """The work that is asked about.

    Attributes:
        rows: sequences in a step.
        tokens: of a sequence; all of them carry loss.
        rank: of the adapter, on every linear layer.
        cut: blocks at the client of a split share.
        records: texts that a proxied client embeds and votes with.
        candidates: it votes on.
    """

    rows: int = 4
    tokens: int = 256
    rank: int = 8
    cut: int = 2
    records: int = 30
    candidates: int = 300


@dataclass(frozen=True)
class Share:
    """One placement of a base on the machine.

    Attributes:
        placement: "local", "split" or "proxy".
        memory_bytes: at the client; the running program comes on top.
        fits: whether that is in the machine's memory; None where the memory is not known.
        seconds: of a training step at the client (the server's half and the link not counted); of a
            vote for "proxy".
    """

    placement: Placement
    memory_bytes: float
    fits: bool | None
    seconds: float


def model_shape(shape: Shape, dtype: str) -> ModelShape:
    """The base of these sizes as the cost model sees it, its weights in a precision."""
    width, keys, inner = shape.width, shape.keys, shape.inner
    layers = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
    }
    blocks = tuple(Block({f"model.layers.{i}.{name}": size for name, size in layers.items()}, width,
                         "decoder", False)
                   for i in range(shape.blocks))
    table = shape.vocabulary * width
    norms = (2 * shape.blocks + 1) * width
    parameters = (
        sum(m * n for block in blocks for m, n in block.layers.values()) + norms + table * (1
            if shape.tied else 2)
    )
    kind: Literal["causal"] = "causal"
    return ModelShape(blocks, width, shape.vocabulary, parameters, table,
                   cost_model.SIZES[dtype] * parameters, kind, True)


def precision(machine: Profile) -> str:
    """The precision in which such a machine would hold a base: bfloat16 where it is not much slower
    than float32, else float32."""
    half, full = machine.flop_per_s.get("bfloat16"), machine.flop_per_s.get("float32")
    return "bfloat16" if half and half >= (full or 0.0) / 2 else "float32"


def shares(machine: Profile, shape: Shape, task: Task = Task()) -> tuple[Share, ...]:
    """Local, split and proxy share of a base on a machine.

    Raises:
        ConfigError: the machine has no measured speed.
    """
    dtype = precision(machine)
    base, batch = model_shape(shape, dtype), Batch(task.rows, task.tokens, 0, task.tokens)
    ranks = {name: task.rank for block in base.blocks for name in block.layers}
    voting = (
        cost_model.embedding(*EMBEDDER, task.records, task.tokens) + cost_model.voting(task.records,
            task.candidates, EMBEDDER[1])
    )
    return (
        _share("local", machine, cost_model.lora_step(base, batch, ranks, dtype=dtype), dtype),
        _share("split", machine, cost_model.split_step(
            base, cost_model.Cut(task.cut), batch, ranks, dtype=dtype).client, dtype),
        _share("proxy", machine, voting, "float32"),
    )


def _share(placement: Placement, machine: Profile, work: Cost, dtype: str) -> Share:
    fits = None if machine.memory_bytes is None else work.memory_bytes <= machine.memory_bytes
    return Share(placement, work.memory_bytes, fits, cost_model.seconds(work, machine, dtype))
