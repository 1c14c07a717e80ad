"""One training step in its parts, on the clock: batch load, forward, loss, backward, optimiser.

The parts are those of the "Very Edge" study (Woisetschlaeger et al., 2024). The step is the one of
this package: text is tokenised and padded by ``rows``, LoRA is worn by the shared base, gradients
are clipped, AdamW steps.

Shape letters: X scored positions · V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from aulait.core.lora import initial
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, Record
from aulait.models.loading import AdapterConfig, Base, targets, wearing
from aulait.training.batches import Coded, Encoder, collate, scored

Way = Literal["lora", "full"]
Result = TypeVar("Result")
PARTS = ("load", "forward", "loss", "backward", "optimizer")


@dataclass(frozen=True)
class Lengths:
    """Tokens of every row, all of them real: ``source`` at the encoder (or of the prompt),
    ``target`` at the decoder."""

    source: int
    target: int


@dataclass(frozen=True)
class StepRows:
    """The rows of one step: how many, and the tokens of each."""

    count: int
    lengths: Lengths


@dataclass(frozen=True)
class Timed:
    """Medians over repetitions after one step to warm up.

    Attributes:
        part_s: seconds of every part of ``PARTS``.
        source_lengths: non-pad tokens of every row at the encoder.
        target_lengths: non-pad tokens of every row at the decoder.
        repetitions: steps that were timed.
    """

    part_s: dict[str, float]
    source_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]
    repetitions: int

    @property
    def step_s(self) -> float:
        """Seconds of a step: the sum of its parts."""
        return sum(self.part_s.values())


class Cut(Encoder):
    """Encodes a record afresh every time, so that a batch pays for its tokens, and cuts it to the
    lengths."""

    def __init__(self, base: Base, lengths: Lengths) -> None:
        super().__init__(base)
        self._lengths = lengths

    def coded(self, record: Record) -> Coded:
        """Prompt without loss, and response."""
        prompt, response = self.uncut(record)
        prompt = prompt[: self._lengths.source]
        ids = prompt + response[: self._lengths.target]
        return Coded(ids, len(prompt), ((len(prompt), len(ids)),))


def texts(base: Base, lengths: Lengths, count: int, seed: int = 0) -> list[Record]:
    """Made-up records that are at least as long as asked: words of random tokens of the base's own
    vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = base.tokenizer

    def words(number: int) -> str:
        ids = torch.randint(3, len(tokenizer), (2 * number,), generator=generator).tolist()
        return (
            " ".join(tokenizer.convert_ids_to_tokens(i) for i in ids) if base.config.name != "brew"
            else str(tokenizer.decode(ids))
        )

    return [Record(words(lengths.target), prompt=words(lengths.source)) for _ in range(count)]


def timed_step(base: Base, adapter: Adapter, rows: StepRows, way: Way, repetitions: int,
               seconds: float) -> Timed:
    """Time the parts of a step.

    Args:
        base: the model. Full fine-tuning changes its weights: take it for nothing else afterwards.
        adapter: what is applied and trained by "lora".
        rows: how many, and their tokens.
        way: "lora" trains the adapter's factors, "full" every weight of the base.
        repetitions: steps to time, at least 1.
        seconds: after so many no further step is begun; one step after the first is always timed.
    """
    records, encode = texts(base, rows.lengths, rows.count), Cut(base, rows.lengths)
    with ExitStack() as stack:
        if way == "lora":
            stack.enter_context(wearing(base, [adapter]))
            leaves = [factor for name in adapter.factors
                      if (worn := base.slots[name].worn) is not None for factor in worn[:2]]
        else:
            leaves = list(base.model.parameters())
        for leaf in leaves:
            leaf.requires_grad_(True)
            stack.callback(_at_rest, leaf)
        optimizer = torch.optim.AdamW(leaves, lr=1e-4)
        began, spent = time.perf_counter(), [_step(base, encode, records, leaves, optimizer)]
        while len(spent) < 2 or (len(spent) <= repetitions and time.perf_counter() - began
                                 < seconds):
            spent.append(_step(base, encode, records, leaves, optimizer))
    lines = spent[1:]
    coded = [encode(record) for record in records]
    part_s = {part: statistics.median(line[number] for line in lines)
              for number, part in enumerate(PARTS)}
    return Timed(part_s, tuple(n for _, n in coded), tuple(len(ids) - n for ids, n in coded),
                 len(lines))


def worn_for(base: Base, rank: int, chosen: str | tuple[str, ...] = "attention") -> Adapter:
    """A fresh adapter for the base's attention layers, alpha twice the rank."""
    return initial(targets(base, AdapterConfig(rank=rank, targets=chosen)), rank, 2.0 * rank,
                   Seeds(0))


def _at_rest(leaf: Tensor) -> None:
    leaf.grad = None
    leaf.requires_grad_(False)


def _step(base: Base, encode: Encoder, records: Sequence[Record], leaves: list[Tensor],
          optimizer: torch.optim.Optimizer) -> list[float]:
    """Seconds of each part of one step, in the order of ``PARTS``."""
    rows, load_s = _clocked(base, lambda: collate(base, encode, records))
    (out_XV, target_X, _), forward_s = _clocked(base, lambda: scored(base, rows))
    loss, loss_s = _clocked(base, lambda: cross_entropy(out_XV, target_X))
    _, backward_s = _clocked(base, loss.backward)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    _, optimizer_s = _clocked(base, step)
    return [load_s, forward_s, loss_s, backward_s, optimizer_s]


def _clocked(base: Base, work: Callable[[], Result]) -> tuple[Result, float]:
    """A result, and the seconds until it is there."""
    started = time.perf_counter()
    result = work()
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
    return result, time.perf_counter() - started
