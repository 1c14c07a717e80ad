"""``aulait bench edge``: the measurements of the "Very Edge" study on this machine, and modelled on
others.

Source: Woisetschlaeger et al., "Federated Fine-Tuning of LLMs on the Very Edge: The Good, the Bad,
the Ugly", DEEM 2024,
arXiv 2310.03150. Its figures are emulated in shape; its numbers are not public to us. Lengths of
512 and 95 tokens are those of the authors' public pipeline for FLAN-T5 on SAMSum; every row is full
here, no token is padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import torch

from aulait.core.types import Profile
from aulait.resources import devices as device
from aulait.resources.links import LINKS
from aulait.resources.profiles import PRESETS, USUAL_LINK, like
from aulait_benchmarks.edge import server_optimizers
from aulait_benchmarks.edge.claims import claims_in_shape
from aulait_benchmarks.edge.document import HERE, StudyLine
from aulait_benchmarks.edge.measured_steps import MeasuringPlan, measured_lines
from aulait_benchmarks.edge.modelled import StudyModel, lines_of_presets, round_of
from aulait_benchmarks.edge.reference_models import members
from aulait_benchmarks.edge.server_optimizers import FederationSize
from aulait_benchmarks.edge.step_timing import Lengths


@dataclass(frozen=True)
class Scope:
    """What is measured and modelled.

    Attributes:
        family: of ``family.FAMILIES``.
        model: one model in its place: "brew", a path or an id.
        batches: rows of a step on this machine.
        device_batches: rows of a step on modelled machines.
        lengths: tokens of a row.
        rank: of LoRA on the attention layers.
        repetitions: steps that are timed, after one to warm up.
        minutes: for all measurements of steps together.
        steps: of a client in a round; 40 steps of 8 are one pass over a 45th of SAMSum's 14,732
            training dialogues.
        round_batch: rows of these steps; where a machine holds no more, as many rows in more and
            smaller steps.
        dtype: precision on this machine.
        devices: presets to model.
        links: to tell the granularity for.
        power_w: of this machine under load; None takes the power of the nearest preset where none
            is known.
        joules_per_byte: of the network; None takes each link's own.
        federation: the runs that compare server optimisers; None leaves them out.
    """

    family: str = "flan-t5"
    model: str | None = None
    batches: tuple[int, ...] = (1, 2, 4, 8)
    device_batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    lengths: Lengths = field(default_factory=lambda: Lengths(512, 95))
    rank: int = 8
    repetitions: int = 3
    minutes: float = 5.0
    steps: int = 40
    round_batch: int = 8
    dtype: str = "float32"
    devices: tuple[str, ...] = tuple(PRESETS)
    links: tuple[str, ...] = tuple(LINKS)
    power_w: float | None = None
    joules_per_byte: float | None = None
    federation: FederationSize | None = field(default_factory=FederationSize)


QUICK = Scope(family="tiny", batches=(1, 2), device_batches=(1, 2, 4, 8), lengths=Lengths(32, 8),
              repetitions=2, minutes=0.3,
              federation=server_optimizers.QUICK)


def edge(scope: Scope, tell: Callable[[str], None] = lambda _: None,
         profile: Profile | None = None) -> StudyLine:
    """All measurements and models as one document.

    Args:
        scope: what to do.
        tell: told what is done next.
        profile: of this machine; None measures it.

    Returns:
        A document of plain values. ``machine``: the profile (``types.Profile``), ``power_basis``,
        torch, processor. ``settings``: the scope. ``models``: name, parameters, adapter_bytes.
        ``steps``: lines of this machine, ``devices``: lines of the presets. A line has device,
        dtype, model, parameters, way ("lora", "full"), batch, basis ("measured", "modelled"), fits,
        tokens (of a step, no padding), step_s, part_s (load, forward, loss, backward, optimizer;
        None where modelled), predicted_s, predicted_bytes, bound ("arithmetic", "memory",
        "operations": what takes most of the modelled step), model_flop, flop, tokens_per_s,
        mfu_model, mfu_actual, energy_j (a step), energy_basis, tokens_per_joule; on this machine
        also peak_bytes (process or GPU), reason (why it was not measured) and scaled_by (see
        ``measured_steps.measured_lines``). ``rounds``: of each machine, model, way and link: steps,
        computing_s, up_bytes, down_bytes, communicating_s, granularity, computing_j, waiting_j,
        network_j, communication_share, joules_per_byte. ``usual_links``: machine -> link.
        ``model_ratio``: measured over predicted seconds, median, least and greatest, or None.
        ``servers``: see ``server_optimizers.server_losses``, or None. ``claims``: claim, answer,
        evidence.
        None stands for what is not known or does not fit.
    """
    tell("measuring this machine")
    real = profile or device.measure_device((scope.dtype,))
    here, power_basis = _powered(replace(real, name=HERE), scope.power_w)
    works = [StudyModel.of(member, scope.rank, scope.lengths)
             for member in members(scope.family, scope.model)]
    plan = MeasuringPlan(here, scope.dtype, scope.repetitions, 60 * scope.minutes)
    steps = measured_lines(works, scope.batches, plan, tell)
    for line in steps:
        if power_basis and str(line["energy_basis"]).startswith("modelled"):
            line["energy_basis"] = power_basis
    presets = [PRESETS[name] for name in scope.devices]
    others = lines_of_presets(works, presets, scope.device_batches)
    found: StudyLine = {
        "name": "edge",
        "machine": dataclasses.asdict(here) | {"power_basis": power_basis,
            "torch": torch.__version__, "processor": real.name,
                                               "threads": torch.get_num_threads()},
        "settings": dataclasses.asdict(scope),
        "models": [{"name": work.member.name, "parameters": work.parameters,
                    "adapter_bytes": work.travel_bytes("lora", scope.dtype)}
                   for work in works],
        "steps": steps,
        "devices": others,
        "rounds": _rounds(scope, works, [here, *presets], [*steps, *others]),
        "usual_links": {HERE: "home"} | {name: USUAL_LINK[name] for name in scope.devices},
        "model_ratio": _ratio(steps),
        "servers": server_optimizers.server_losses(scope.federation, tell)
                   if scope.federation else None,
    }
    return found | {"claims": claims_in_shape(found)}


def _powered(here: Profile, power_w: float | None) -> tuple[Profile, str]:
    """This machine with a power, and where the power comes from; empty where its own is known."""
    if power_w is not None:
        return replace(here, power_w=power_w), f"modelled from {power_w:g} W, as given"
    nearest = like(here)
    if here.power_w is not None or nearest is None or nearest.power_w is None:
        return here, ""
    basis = f"modelled from {nearest.power_w:g} W, the power of the nearest preset, {nearest.name}"
    return replace(here, power_w=nearest.power_w, idle_w=nearest.idle_w), basis


def _rounds(scope: Scope, works: Sequence[StudyModel], machines: Sequence[Profile],
            every: Sequence[StudyLine]) -> list[StudyLine]:
    """A round for each machine, model, way and link, in steps of ``round_batch`` rows, or fewer
    where memory ends."""
    told = []
    for machine in machines:
        for work in works:
            for way in ("lora", "full"):
                line = _step_of_round(every, machine.name, work.member.name, way, scope.round_batch)
                rows = scope.steps * scope.round_batch
                told += [round_of(line, work, machine, link, rows, scope.joules_per_byte)
                         for link in scope.links]
    return told


def _step_of_round(every: Sequence[StudyLine], machine: str, model: str, way: str,
                   batch: int) -> StudyLine:
    """The line of the largest batch up to the round's that fits, else that of the smallest
    batch."""
    found = [line for line in every if (line["device"], line["model"], line["way"]) == (machine,
        model, way)]
    fitting = [line for line in found if line["fits"] and line["batch"] <= batch]
    return max(fitting, key=lambda line: line["batch"],
               default=min(found, key=lambda line: line["batch"]))


def _ratio(steps: Sequence[StudyLine]) -> dict[str, float] | None:
    """Measured over predicted seconds of the measured steps."""
    found = [line["step_s"] / line["predicted_s"] for line in steps if line["basis"] == "measured"]
    return (
        {"median": median(found), "least": min(found), "greatest": max(found), "steps": len(found)}
        if found else None
    )
