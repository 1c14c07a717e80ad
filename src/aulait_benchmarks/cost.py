"""``aulait bench cost``: the closed-form cost model beside the clock, for every kind of work it is
used for.

Machines change their speed from one second to the next when they are shared. So every repetition
measures the machine's constants right before and right after the work, predicts from their mean,
and compares with what the work then took. The work is aulait's own code on the built-in base and
embedder; the constants come from matrix products, copies and small operations alone, and no
constant is fitted to any case.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aulait.core.factors import Trainable
from aulait.core.lora import initial
from aulait.core.seeds import Seeds
from aulait.core.types import Profile, Record
from aulait.evaluation.config import EvaluateConfig
from aulait.evaluation.losses import evaluate
from aulait.models.generation import Sampling, TextModel, encode, extend, opening
from aulait.models.loading import AdapterConfig, Base, ModelConfig, load_base, targets
from aulait.models.shape import model_shape
from aulait.resources import cost_model as cost
from aulait.resources import devices
from aulait.resources.cost_model import Batch, Cost, ModelShape
from aulait.synthesis import embedding
from aulait.training.batches import Rows
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner, TrainConfig, optimizer_of, shorten, squares
from aulait_benchmarks.clock import own_clock

ENOUGH_S = 30.0  # of measured work: a case that has run this long is not repeated


@dataclass(frozen=True)
class Sizes:
    """What is measured: steps of all combinations, and how much of the other kinds of work."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    ranks: tuple[int, ...]
    texts: int
    records: int
    candidates: int
    written: int
    constants_s: float


FULL = Sizes(batches=(4, 16, 64), lengths=(32, 96, 256), ranks=(2, 8), texts=64, records=300,
             candidates=600, written=16, constants_s=0.6)
QUICK = Sizes(batches=(4,), lengths=(32, 96), ranks=(2,), texts=32, records=40, candidates=100,
              written=4, constants_s=0.2)


@dataclass(frozen=True)
class Case:
    """One piece of work: what it is called, what it should cost, and the work itself."""

    name: str
    cost: Cost
    work: Callable[[], Any]


def predict(sizes: Sizes = FULL, repetitions: int = 3, keep: bool = True) -> dict[str, Any]:
    """Predicted against measured seconds on this machine.

    Args:
        sizes: what is measured.
        repetitions: how often each case runs after one warm-up; medians are told.
        keep: whether the process keeps freed memory, see ``device.keep_freed_memory``. It cannot be
            undone in this process.

    Returns:
        cases: of each its name, predicted_s, measured_s, ratio (predicted over measured), gflop,
            moved_mb, operations,
        flop_s, moved_s, operation_s (the three terms of the prediction).
        machine (medians of the measured constants), smallest_ratio, largest_ratio, within (share of
        ratios in 0.75 to 1.25),
        keeps_freed_memory, threads, clock: with one thread the processor's time, which leaves out
            waiting for other programs.
    """
    clock = own_clock()
    kept = keep and devices.keep_freed_memory()
    base = load_base(ModelConfig(device="cpu"))
    found, seen = [], []
    for case in _cases(base, sizes):
        row, profiles = _measured(case, repetitions, sizes.constants_s, clock.now)
        found.append(row)
        seen += profiles
    ratios = [row["ratio"] for row in found]
    return {
        "cases": found,
        "machine": {"name": seen[0].name, "flop_per_s": statistics.median(p.flop_per_s["float32"]
            for p in seen),
                    "memory_bytes_per_s": statistics.median(p.memory_bytes_per_s or 0.0
                        for p in seen),
                    "operation_s": statistics.median(p.operation_s for p in seen)},
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
        "within": sum(0.75 <= ratio <= 1.25 for ratio in ratios) / len(ratios),
        "keeps_freed_memory": kept,
        "clock": clock.name,
        "threads": torch.get_num_threads(),
    }


def _measured(case: Case, repetitions: int, constants_s: float,
              clock: Callable[[], float]) -> tuple[dict[str, Any], list[Profile]]:
    """A row of the table, and the constants seen on the way."""
    case.work()
    profiles = [devices.measure_device(device="cpu", budget_s=constants_s, clock=clock)]
    measured_s: list[float] = []
    predicted_s: list[float] = []
    while len(measured_s) < repetitions and sum(measured_s) < ENOUGH_S:
        started = clock()
        case.work()
        measured_s.append(clock() - started)
        profiles.append(devices.measure_device(device="cpu", budget_s=constants_s, clock=clock))
        predicted_s.append(statistics.fmean(cost.seconds(case.cost, machine)
            for machine in profiles[-2:]))
    spent = case.cost
    return {
        "name": case.name,
        "predicted_s": statistics.median(predicted_s),
        "measured_s": statistics.median(measured_s),
        "ratio": statistics.median(p / m for p, m in zip(predicted_s, measured_s, strict=True)),
        "gflop": spent.flop / 1e9,
        "moved_mb": spent.moved_bytes / 1e6,
        "operations": spent.operations,
        "flop_s": statistics.median(spent.flop / p.flop_per_s["float32"] for p in profiles),
        "moved_s": statistics.median(spent.moved_bytes / (p.memory_bytes_per_s or 1.0)
            for p in profiles),
        "operation_s": statistics.median(spent.operations * p.operation_s for p in profiles),
        "repetitions": len(measured_s),
    }, profiles


def _cases(base: Base, sizes: Sizes) -> Iterator[Case]:
    body, learner = model_shape(base), Learner(base, TrainConfig())
    for rank in sizes.ranks:
        for length in sizes.lengths:
            for batch in sizes.batches:
                yield _step(learner, body, batch, length, rank)
    yield _evaluation(learner, body)
    yield _embedding(sizes.texts)
    yield _voting(sizes.records, sizes.candidates)
    yield _generation(base, body, sizes.written)


def _step(learner: Learner, body: ModelShape, batch: int, length: int, rank: int) -> Case:
    """A LoRA step on all linear layers, on random tokens, all of them scored but the first of a
    row."""
    base, shapes = learner.base, targets(learner.base, AdapterConfig())
    stack = Stack.of([initial(shapes, rank, 16.0, Seeds(0))], Trainable.AB, base.device)
    optimizer = optimizer_of(stack.leaves, learner.config, 1e-3)
    ids = torch.randint(3, body.vocabulary, (batch, length),
                        generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, 0] = -100

    def work() -> None:
        loss, _ = learner.losses(Rows(ids, labels), stack, 1)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        shorten(stack.leaves, squares(stack.leaves, 1).sqrt(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    spent = cost.lora_step(body, Batch(batch, length, 0, length - 1), dict.fromkeys(shapes, rank))
    return Case(f"LoRA step, {batch} x {length} tokens, rank {rank}", spent, work)


def _evaluation(learner: Learner, body: ModelShape) -> Case:
    """Losses of 32 held-out records under an adapter, in one pass."""
    shapes = targets(learner.base, AdapterConfig())
    adapter = initial(shapes, 8, 16.0, Seeds(0))
    records = [Record(" ".join(["value"] * 60 + [str(i)])) for i in range(32)]
    tokens = max(len(learner.encode(record)[0]) for record in records)
    config = EvaluateConfig(records_per_client=32, rows=32)
    spent = cost.evaluation(body, Batch(32, tokens, 0, tokens - 1), dict.fromkeys(shapes, 8))
    return Case(f"evaluation, 32 x {tokens} tokens", spent,
                lambda: evaluate(learner, adapter, {"client": records}, config))


def _embedding(texts: int) -> Case:
    """Long texts by the built-in embedder, which remembers nothing here."""
    tokens, made = 128, embedding.load_embedder("minilm", capacity=0)
    words = [" ".join(["word"] * 200 + [str(i)]) for i in range(texts)]
    return Case(f"embedding, {texts} x {tokens} tokens", cost.embedding(22_700_000, made.width,
        texts, tokens), lambda: made.embed(words))


def _voting(records: int, candidates: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    own, others = (torch.randn(count, 384, generator=generator) for count in (records, candidates))
    spent = cost.voting(records, candidates, 384)
    return Case(f"voting, {records} records on {candidates} candidates", spent,
                lambda: embedding.votes(own, others))


def _generation(base: Base, body: ModelShape, rows: int, new: int = 32) -> Case:
    """Texts by the base; those that end early are left out of later passes, so the mean number of
    rows is costed."""
    ids = (
        opening(base.tokenizer) + encode(base.tokenizer, "Return the number of items that the list")
    )
    prompts: Sequence[Sequence[int]] = [ids] * rows

    def work() -> int:
        found = extend(TextModel(base.model, base.tokenizer, base.device), prompts,
                       Sampling(max_tokens=new, batch=rows), 0)
        return sum(len(text.ids) + text.ended for text in found)

    alive = max(1, round(work() / new))
    return Case(f"generation, {rows} texts of {new} tokens", cost.generation(body, alive, len(ids),
        new), work)
