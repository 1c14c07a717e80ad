"""The step and the round of the "Very Edge" study on machines that are not here: modelled by cost
and profile.

What is told is a plain table, as the report reads it; every line names its basis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aulait.core.lora import Shapes
from aulait.core.types import Profile
from aulait.resources import cost_model as cost
from aulait.resources.cost_model import Batch, Cost, ModelShape
from aulait.resources.links import LINKS, transfer_s
from aulait_benchmarks.edge import efficiency as metrics
from aulait_benchmarks.edge.document import StudyLine
from aulait_benchmarks.edge.reference_models import Member, adapted, counted
from aulait_benchmarks.edge.step_timing import Lengths, Way

WAYS: tuple[Way, ...] = ("lora", "full")
BYTES = cost.SIZES


@dataclass(frozen=True)
class StudyModel:
    """What is trained: one size of a model.

    Attributes:
        member: the size.
        model_shape: its layers, as ``cost`` counts them.
        shapes: of the layers that carry LoRA.
        rank: of LoRA.
        lengths: tokens of a row.
    """

    member: Member
    model_shape: ModelShape
    shapes: Shapes
    rank: int
    lengths: Lengths

    @classmethod
    def of(cls, member: Member, rank: int, lengths: Lengths) -> StudyModel:
        """Counted from the configuration; no weights are made."""
        body = counted(member)
        return cls(member, body, adapted(body), rank, lengths)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.model_shape.parameters

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every adapted layer."""
        return {name: min(self.rank, *shape) for name, shape in self.shapes.items()}

    def cost(self, way: Way, batch: int, dtype: str) -> Cost:
        """Of one step."""
        source, target = self.lengths.source, self.lengths.target
        rows = (
            Batch(batch, target, source, target) if self.model_shape.kind == "seq2seq"
            else Batch(batch, source + target, 0, target)
        )
        held = replace(self.model_shape, weight_bytes=BYTES[dtype] * self.parameters)
        return (
            cost.lora_step(held, rows, self.ranks, dtype=dtype) if way == "lora"
            else cost.full_step(held, rows, dtype=dtype)
        )

    def tokens(self, batch: int) -> int:
        """Encoder and decoder tokens of a step, none of them padding."""
        return metrics.tokens_read([self.lengths.source] * batch, [self.lengths.target] * batch)

    def travel_bytes(self, way: Way, dtype: str) -> int:
        """One way in a round: factors travel in float32, all weights in the precision they are
        trained in."""
        if way == "lora":
            return 4 * metrics.adapter_numbers(self.shapes, self.rank)
        return BYTES[dtype] * self.parameters


def precision(profile: Profile) -> str:
    """What the machine trains in: bfloat16 on a GPU that has it, else float32."""
    return "bfloat16" if profile.device != "cpu" and "bfloat16" in profile.flop_per_s else "float32"


def peak(profile: Profile, dtype: str) -> float | None:
    """The denominator of MFU: the data sheet's peak, else what a large matrix product was measured
    to sustain."""
    return profile.peak_flop_per_s.get(dtype) or profile.flop_per_s.get(dtype)


def modelled(work: StudyModel, way: Way, batch: int, profile: Profile, dtype: str) -> StudyLine:
    """One step on a machine; seconds and joules are None where it does not fit the machine's
    memory."""
    need = work.cost(way, batch, dtype)
    fits = profile.memory_bytes is None or need.memory_bytes <= profile.memory_bytes
    step_s = cost.seconds(need, profile, dtype) if fits else None
    energy_j = cost.joules(step_s, profile) if step_s is not None else None
    line = {"device": profile.name, "dtype": dtype, "model": work.member.name,
            "parameters": work.parameters, "way": way, "batch": batch,
            "basis": "modelled", "fits": fits, "part_s": None, "predicted_s": step_s,
            "predicted_bytes": need.memory_bytes,
            "bound": bound(need, profile, dtype), "energy_basis": None if energy_j is None
            else f"modelled from {profile.power_w:g} W"}
    return line | rates(work, need, batch, step_s, energy_j, peak(profile, dtype))


def rates(work: StudyModel, need: Cost, batch: int, step_s: float | None, energy_j: float | None,
          peak_flop_per_s: float | None) -> StudyLine:
    """The metrics of a step that took so many seconds and joules."""
    tokens = work.tokens(batch)
    told: StudyLine = {"tokens": tokens, "step_s": step_s, "energy_j": energy_j,
                  "model_flop": need.model_flop, "flop": need.flop}
    if step_s is None:
        return told | dict.fromkeys(("tokens_per_s", "mfu_model", "mfu_actual", "tokens_per_joule"))
    return told | {
        "tokens_per_s": metrics.tokens_per_s(tokens, step_s),
        "mfu_model": metrics.mfu(need.model_flop, step_s, peak_flop_per_s),
        "mfu_actual": metrics.mfu(need.flop, step_s, peak_flop_per_s),
        "tokens_per_joule": metrics.tokens_per_joule(tokens, energy_j),
    }


def bound(need: Cost, profile: Profile, dtype: str) -> str:
    """What takes most of the step: "arithmetic", "memory" (its bandwidth) or "operations" (starting
    them)."""
    arithmetic_s = (
        need.flop / profile.flop_per_s.get(dtype, next(iter(profile.flop_per_s.values())))
    )
    memory_s = need.moved_bytes / profile.memory_bytes_per_s if profile.memory_bytes_per_s else 0.0
    taken_s = {"arithmetic": arithmetic_s, "memory": memory_s,
               "operations": need.operations * profile.operation_s}
    return max(taken_s, key=lambda part: taken_s[part])


def round_of(line: StudyLine, work: StudyModel, profile: Profile, link: str, rows: int,
             joules_per_byte: float | None) -> StudyLine:
    """A federated round in steps of a line: computing, communicating, granularity, and where the
    joules go.

    Args:
        line: of one step; where it does not fit, what depends on its seconds is None.
        work: the model.
        profile: the machine.
        link: in ``LINKS``.
        rows: that a client reads in a round; it takes as many steps as these need.
        joules_per_byte: of the network; None takes the link's.
    """
    over, steps = LINKS[link], math.ceil(rows / line["batch"])
    size_bytes = work.travel_bytes(line["way"], line["dtype"])
    transfers_s = sum(transfer_s(size_bytes, rate, over.latency_s)
                      for rate in (over.down_bytes_per_s, over.up_bytes_per_s))
    per_byte = over.joules_per_byte if joules_per_byte is None else joules_per_byte
    told: StudyLine = {key: line[key] for key in ("device", "dtype", "model", "parameters", "way",
        "batch", "basis", "fits")}
    told |= {"link": link, "steps": steps, "up_bytes": size_bytes, "down_bytes": size_bytes,
             "communicating_s": transfers_s}
    told |= {"joules_per_byte": per_byte, "network_j": metrics.network_j(size_bytes, size_bytes,
        per_byte),
             "waiting_j": None if profile.idle_w is None else profile.idle_w * transfers_s}
    empty = dict.fromkeys(("computing_s", "granularity", "computing_j", "communication_share"))
    if line["step_s"] is None:
        return told | empty
    computing_s = steps * line["step_s"]
    told |= {"computing_s": computing_s, "granularity": metrics.granularity(computing_s,
        transfers_s)}
    if line["energy_j"] is None:
        return told | {"computing_j": None, "communication_share": None}
    computing_j = steps * line["energy_j"]
    share = metrics.communication_share(computing_j, told["waiting_j"] or 0.0, told["network_j"])
    return told | {"computing_j": computing_j, "communication_share": share}


def lines_of_presets(works: Sequence[StudyModel], profiles: Sequence[Profile],
                     batches: Sequence[int]) -> list[StudyLine]:
    """Every model, way and batch on every machine."""
    return [modelled(work, way, batch, profile, precision(profile))
            for profile in profiles for work in works for way in WAYS for batch in batches]

