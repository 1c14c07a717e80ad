"""Sums of the clipped gradients of single units: what of a private step is work, and holds neither
noise nor a draw.

The gradient of a unit is the sum of the gradients of its records, each computed in a pass of its
own, without padding and with float32 weights. So it is a function of the unit, the factors and the
machine, and of no other record: in a common pass, padding and the shapes of the kernels let records
move one another's last digits, and a hostile start can blow these up beyond the bound.

It is clipped to C in float64, rounded toward zero onto the public grid of the noise and added. Such
sums are exact, so a unit more or less moves the sum by at most C (``aulait.privacy.noise``), and
units may be summed in any order, in several parts, and by several processes of as many threads, to
the last bit. Everything here is sensitive until noise has been added, by who asked for the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Tensors
from aulait.core.units import RecordGroup
from aulait.models.loading import folded, in_basis
from aulait.privacy import clipping as clip
from aulait.privacy.noise import toward_zero
from aulait.privacy.noise_grid import grid
from aulait.training.batches import collate
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner


@dataclass(frozen=True)
class UnitSumWork:
    """Units whose clipped gradients are to be summed.

    Attributes:
        start: the factors that the gradients are of.
        trainable: those of them that are trained.
        units: of one step of one site; sensitive.
        clip: C, the bound of a unit's gradient; inf clips nothing (a control, not private).
        sigma: standard deviation of the noise that will be added; it fixes the grid.
        at: the seed of the training and the step, which with a record decide what dropout leaves
            out of it.
        fold: dense updates that the base's weights hold meanwhile, as of ``LocalTraining``.
        basis: as of ``LocalTraining``.
    """

    start: Adapter
    trainable: Trainable
    units: Sequence[RecordGroup]
    clip: float
    sigma: float
    at: tuple[int, int] = (0, 0)
    fold: Tensors | None = None
    basis: Mapping[str, tuple[Tensor, Tensor]] | None = None

    @property
    def numbers(self) -> int:
        """That are trained: the length of the sum."""
        return sum(factor.numel() for pair in self.start.factors.values()
                   for factor in self.trainable.of(pair))

    def of(self, units: Sequence[RecordGroup]) -> UnitSumWork:
        """The same of other units."""
        return replace(self, units=units)

    def empty(self) -> UnitSum:
        """The sum of no units."""
        return UnitSum(torch.zeros(self.numbers, dtype=torch.float64), [], 0)


@dataclass(frozen=True)
class UnitSum:
    """What units came to; sensitive.

    Attributes:
        total: the sum of their clipped gradients, float64, CPU: all trained factors one behind the
            other, layer by layer, A before B.
        losses: of their records, nats a token.
        tokens: read.
    """

    total: Tensor
    losses: list[float]
    tokens: int

    def and_of(self, other: UnitSum) -> UnitSum:
        """Of the units of both."""
        return UnitSum(self.total + other.total, self.losses + other.losses,
                       self.tokens + other.tokens)


SumUnits = Callable[[Sequence[UnitSumWork]], list[UnitSum]]


@runtime_checkable
class UnitSummer(Protocol):
    """A learner whose sums of clipped gradients are made by several processes."""

    def unit_sums(self, asked: Sequence[UnitSumWork]) -> list[UnitSum]:
        """The sums, in the order of what was asked: steps of any sites."""


def sum_units(learner: Learner, asked: UnitSumWork) -> UnitSum:
    """The exact sum of the clipped gradients of these units, on the grid of the noise: one unit
    more moves it by at most C.

    Args:
        learner: whose base holds the fold and has the basis already.
        asked: the units.
    """
    alone = _alone(learner)
    stack = Stack.of([asked.start], asked.trainable, alone.base.device)
    losses: list[float] = []
    tokens: list[int] = []

    def vectors() -> Iterator[Tensor]:  # one in memory at a time
        for unit in asked.units:
            own = unit_gradient(alone, stack, unit, asked.at)
            losses.extend(own.losses)
            tokens.append(own.tokens)
            yield own.vector

    total = clipped_units(vectors(), asked.numbers, asked.clip, asked.sigma)
    return UnitSum(total, losses, sum(tokens))


def sum_elsewhere(learner: Learner, asked: UnitSumWork) -> UnitSum:
    """The same by a learner whose base is bare."""
    with folded(learner.base, asked.fold), in_basis(learner.base, asked.basis):
        return sum_units(learner, asked)


def check_sum(asked: UnitSumWork, found: UnitSum) -> None:
    """Raise unless a sum that another process has made can be one of clipped gradients.

    Raises:
        PrivacyError: it is longer than its units allow, or lies off the grid of the noise.
    """
    step = grid(asked.sigma)
    if not step:
        return
    total = found.total
    most = asked.clip * len(asked.units) * (1 + 1e-9)
    require(len(total) == asked.numbers and float(total.norm()) <= most
            and torch.equal(total, toward_zero(total, step)), PrivacyError,
            f"a worker gave a sum of clipped gradients that is none: {len(total)} numbers of norm "
            f"above {most:.6g}, or off the grid of the noise, expected {asked.numbers} within; put "
            "the same release of aulait on every machine")


@dataclass(frozen=True)
class UnitGradient:
    """What one unit says of the factors; sensitive.

    Attributes:
        vector: gradients of all trained factors, one behind the other, summed over the unit's
            records; float64, CPU. Zeros where it is not finite.
        losses: of its records, nats a token.
        tokens: read.
    """

    vector: Tensor
    losses: list[float]
    tokens: int


def unit_gradient(learner: Learner, stack: Stack, unit: RecordGroup,
                  at: tuple[int, int] = (0, 0)) -> UnitGradient:
    """The gradient of the sum over a unit's records of their mean loss over tokens.

    Every record has a pass of its own, so that nothing here depends on another unit.

    Args:
        learner: from ``_alone``.
        stack: the factors, one copy.
        unit: its records.
        at: the seed of the training and the step, which with the record decide what dropout leaves
            out of it.
    """
    total = torch.zeros(sum(leaf.numel() for leaf in stack.leaves), dtype=torch.float64)
    losses: list[float] = []
    tokens = 0
    for record in unit:
        rows = collate(learner.base, learner.encode, [record])
        loss, count = learner.losses(rows, stack, 1, learner.masks([(*at, record)]))
        if int(count):
            found = torch.autograd.grad(loss.sum(), stack.leaves, allow_unused=True,
                                        materialize_grads=True)
            total += torch.cat([g.reshape(-1) for g in found]).to("cpu", torch.float64)
        losses.append(float(loss.detach()))
        tokens += int(count)
    return UnitGradient(total if bool(total.isfinite().all()) else torch.zeros_like(total), losses,
                        tokens)


def _alone(learner: Learner) -> Learner:
    """The learner without anything that lets sequences be read in company.

    On an accelerator, the states of leading blocks that a base remembers may have been computed for
    several sequences together.
    """
    if learner.base.device.type == "cpu":
        return learner
    alone = Learner(replace(learner.base, prefix=None), learner.config, learner.dropout)
    alone.encode = learner.encode
    return alone


def clipped_units(vectors: Iterable[Tensor], numbers: int, bound: float, sigma: float) -> Tensor:
    """The exact sum of units' clipped gradients on the grid of the noise: one unit more moves it by
    at most C.

    Args:
        vectors: a gradient of each unit, float64.
        numbers: of each vector.
        bound: C.
        sigma: standard deviation of the noise.
    """
    total = torch.zeros(numbers, dtype=torch.float64)
    for vector in vectors:
        total += toward_zero(clip.clip_vector(vector, bound), grid(sigma))
    return total
