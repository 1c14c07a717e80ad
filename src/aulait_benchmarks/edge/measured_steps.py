"""The step on this machine: measured where memory and time allow, else modelled, and each line says
which."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from aulait.core.types import Profile
from aulait.resources import cost_model
from aulait.resources.meters import Meter
from aulait_benchmarks.edge import step_timing
from aulait_benchmarks.edge.document import StudyLine
from aulait_benchmarks.edge.modelled import WAYS, StudyModel, modelled, peak, rates
from aulait_benchmarks.edge.reference_models import base
from aulait_benchmarks.edge.step_timing import Lengths, StepRows, Way

# of the memory, for what the cost model does not count: the interpreter, libraries, the allocator's
# gaps
ROOM = 0.85
# drawing random weights, of the order seen on a laptop; it only guards the time
MAKING_S_PER_WEIGHT = 3e-8


@dataclass(frozen=True)
class Case:
    """One way and batch of a model on this machine, with its modelled line."""

    work: StudyModel
    way: Way
    batch: int
    line: StudyLine


@dataclass(frozen=True)
class MeasuringPlan:
    """How steps are measured on this machine.

    Attributes:
        profile: of this machine.
        dtype: precision of the weights.
        repetitions: steps that are timed after one to warm up.
        seconds: for all measurements together.
    """

    profile: Profile
    dtype: str
    repetitions: int
    seconds: float


def measured_lines(works: Sequence[StudyModel], batches: Sequence[int], plan: MeasuringPlan,
                   tell: Callable[[str], None]) -> list[StudyLine]:
    """A line for every model, way and batch; the cheapest are measured first, until the time is
    spent.

    Lines that are modelled carry ``scaled_by``: their seconds are the modelled ones
    (``predicted_s``) times the median ratio of measured over modelled seconds on this machine, 1
    where nothing was measured.

    Args:
        works: the models, one after the other in memory.
        batches: rows of a step.
        plan: on which machine, how often, how long.
        tell: told what is measured next.
    """
    profile, dtype = plan.profile, plan.dtype
    cases = [Case(work, way, batch, modelled(work, way, batch, profile, dtype))
             for work in works for way in WAYS for batch in batches]
    ends = time.perf_counter() + plan.seconds
    ratios = [_calibrated(min(works, key=lambda work: work.parameters), profile, dtype)]
    chosen = _affordable(cases, plan, ends - time.perf_counter(), ratios[0])
    found: dict[int, StudyLine] = {}
    for work in works:
        mine = [(number, cases[number]) for number in chosen if cases[number].work is work]
        found |= dict(_of_model(mine, plan, ends, ratios, tell))
    scale = median(ratios[1:] or [1.0])
    return [found.get(number, _reasoned(case, number in chosen, profile, scale))
            for number, case in enumerate(cases)]


def _calibrated(work: StudyModel, profile: Profile, dtype: str) -> float:
    """Measured over modelled seconds of a step on rows an eighth as long: it settles what is tried,
    and no line."""
    lengths = Lengths(max(4, work.lengths.source // 8), max(4, work.lengths.target // 8))
    model = base(work.member, dtype, profile.device, max(work.lengths.source, work.lengths.target))
    took = step_timing.timed_step(model, step_timing.worn_for(model, work.rank),
                                  StepRows(1, lengths), "lora", 1, 0.0)
    return (
        took.step_s / cost_model.seconds(replace(work, lengths=lengths).cost("lora", 1, dtype),
            profile, dtype)
    )


def _affordable(cases: Sequence[Case], plan: MeasuringPlan, seconds: float,
                ratio: float) -> list[int]:
    """Numbers of the cases that fit into memory and, cheapest first, into the time; modelled
    seconds times ``ratio``."""
    chosen: list[int] = []
    made: set[int] = set()
    left = seconds
    room = [number for number, case in enumerate(cases) if _fits(case, plan.profile)]
    for number in sorted(room, key=lambda number: cases[number].line["predicted_s"]):
        case = cases[number]
        making_s = 0.0 if id(case.work) in made else MAKING_S_PER_WEIGHT * case.work.parameters
        need_s = (1 + plan.repetitions) * ratio * case.line["predicted_s"] + making_s
        if need_s <= left:
            left -= need_s
            chosen.append(number)
            made.add(id(case.work))
    return sorted(chosen)


def _fits(case: Case, profile: Profile) -> bool:
    """Whether the step fits with room to spare."""
    return (
        bool(case.line["fits"])
        and (profile.memory_bytes is None or case.line["predicted_bytes"] <= ROOM
             * profile.memory_bytes)
    )


def _of_model(
    mine: Sequence[tuple[int, Case]], plan: MeasuringPlan, ends: float, ratios: list[float],
    tell: Callable[[str], None],
) -> Iterator[tuple[int, StudyLine]]:
    """Measure the cases of one model: LoRA first, for full fine-tuning spoils the weights."""
    if not mine or time.perf_counter() > ends:
        return
    work, profile, dtype = mine[0][1].work, plan.profile, plan.dtype
    model = base(work.member, dtype, profile.device, max(work.lengths.source, work.lengths.target))
    adapter = step_timing.worn_for(model, work.rank)
    for number, case in sorted(mine, key=lambda each: (WAYS.index(each[1].way), each[1].batch)):
        left_s = ends - time.perf_counter()
        if 2 * median(ratios) * case.line["predicted_s"] > left_s:
            continue  # slower than the model said: leave it modelled
        tell(f"{work.member.name}, {case.way}, batch {case.batch}")
        with Meter(profile) as meter:
            took = step_timing.timed_step(model, adapter, StepRows(case.batch, work.lengths),
                                          case.way, plan.repetitions, left_s)
        ratios.append(took.step_s / case.line["predicted_s"])
        reading = meter.reading
        energy_j = (
            None if reading.energy_j is None else reading.energy_j * took.step_s / reading.wall_s
        )
        need = work.cost(case.way, case.batch, dtype)
        told = rates(work, need, case.batch, took.step_s, energy_j, peak(profile, dtype))
        yield number, case.line | told | {
            "basis": "measured", "part_s": took.part_s, "repetitions": took.repetitions,
            "energy_basis": reading.energy_source,
            "peak_bytes": reading.gpu_peak_bytes or reading.peak_bytes, "reason": ""}
    del model
    gc.collect()


def _reasoned(case: Case, chosen: bool, profile: Profile, scale: float) -> StudyLine:
    """The modelled line, its time scaled as the measured steps ask for, with why it was not
    measured."""
    need_gb, has_gb = case.line["predicted_bytes"] / 1e9, (profile.memory_bytes or 0) / 1e9
    if not case.line["fits"]:
        reason = f"needs {need_gb:.1f} GB, the machine has {has_gb:.1f} GB"
    elif not _fits(case, profile):
        reason = f"needs {need_gb:.1f} GB, too close to the machine's {has_gb:.1f} GB"
    else:
        reason = (
            f"about {scale * case.line['predicted_s']:.2g} s a step, too long for the time that "
            f"was {'left' if chosen else 'given'}"
        )
    line = case.line | {"reason": reason, "scaled_by": scale}
    if line["step_s"] is None:
        return line
    step_s = scale * line["step_s"]
    need = case.work.cost(case.way, case.batch, case.line["dtype"])
    return line | rates(case.work, need, case.batch, step_s, cost_model.joules(step_s, profile),
                        peak(profile, case.line["dtype"]))
