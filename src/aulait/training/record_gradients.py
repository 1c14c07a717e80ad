"""Local LoRA steps of one site that protect its units: DP-SGD, DP-LoRA's own rule, and their
controls.

A unit is one record, or all records of one value of ``privacy.unit_field`` (``core.units``). The
gradient of a unit is the sum of the gradients of its records, each computed in a pass of its own,
without padding and with float32 weights. So it is a function of the unit, the factors and the
machine, and of no other record: in a common pass, padding and the shapes of the kernels let records
move one another's last digits, and a hostile start can blow these up beyond the bound.

The gradient of a unit is clipped to C in float64, rounded toward zero onto the public grid of the
noise and added; such sums are exact, so a unit more or less moves the sum by at most C
(``aulait.privacy.noise``). The optimiser, float32, sees only the noised sum. Only the rule of
DP-LoRA, which clips a batch as a whole and counts on nothing else, reads records in common passes.

Everything a site has after its steps is a function of the start, public numbers, and noised sums. A
record whose gradient is not finite counts as a zero gradient; an empty batch still gets its noise.
Not accounted, as everywhere: time.

Sources: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1; Liu et al.,
"Differentially Private Low-Rank Adaptation of Large Language Model Using Federated Learning", arXiv
2312.17493.
Shape letters: B records of a batch · R rank · M out features · N in features.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from aulait.core.errors import DataError, PrivacyError, require
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Record
from aulait.core.units import RecordGroup, units
from aulait.privacy import clipping as clip
from aulait.privacy.noise import SeededNoise, SystemNoise, toward_zero
from aulait.privacy.noise_grid import check_exact, grid
from aulait.privacy.noise_source import NoiseSource
from aulait.privacy.record_level import precision_problems
from aulait.training.batches import collate
from aulait.training.smoothing import smoothed
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner, Trained, in_turns, optimizer_of

Mode = Literal["records", "batch"]


@dataclass(frozen=True)
class PrivateTraining:
    """The private training one site is asked to do.

    Attributes:
        start: the adapter to begin from; public.
        records: what to learn from; sensitive, but for the number of their units.
        trainable: factors that are trained: B, or both.
        steps: noised steps.
        batch: units in a step, expected ones with mode "records"; at most all of them.
        lr: learning rate.
        mode: "records" clips every unit's gradient, A and B together; "batch" clips the gradient
            of a whole batch, A and B apart, and takes a plain gradient step.
        clip: C, the bound of what is clipped; inf clips nothing (a control, not private).
        sigma: standard deviation of the noise on what was clipped; 0 adds none (a control, not
            private).
        seed: of the batches, where they need not be secret.
        noise_seed: makes noise and batches reproducible (not private); None takes the operating
            system's entropy for both, as long as there is noise.
        most: largest probability with which a unit may be in a batch of mode "records"; what is
            accounted.
        turn: as of ``LocalTraining``; a step clips and noises the factors that it trains.
        smoothing: as of ``LocalTraining``, of the noised sum.

    Raises:
        PrivacyError: noise without a finite bound, or a number outside its range.
    """

    start: Adapter
    records: Sequence[Record]
    trainable: Trainable
    steps: int
    batch: int
    lr: float
    mode: Mode
    clip: float
    sigma: float
    seed: int
    noise_seed: int | None = None
    most: float = 1.0
    turn: int | None = None
    smoothing: float = 0.0

    def trainable_at(self, step: int) -> Trainable:
        """The factors that a step trains, counted from 0."""
        return in_turns(self.trainable, self.turn, step)

    def __post_init__(self) -> None:
        bounded = self.clip > 0 and (self.sigma == 0 or math.isfinite(self.clip))
        require(bounded and 0 <= self.sigma < math.inf, PrivacyError,
                f"clip = {self.clip} with sigma = {self.sigma} found, expected clip > 0 and finite "
                "where there is noise; set privacy.clip")
        require(0 < self.most <= 1, PrivacyError,
                f"largest sampling rate is {self.most}, expected a number in (0, 1]; correct it")
        if self.sigma > 0:
            check_exact(self.clip * max(1, len(self.units)), grid(self.sigma))

    @property
    def private(self) -> bool:
        """Whether the result may leave the site."""
        return self.sigma > 0 and self.noise_seed is None

    @cached_property
    def units(self) -> list[RecordGroup]:
        """The records, unit by unit."""
        return units(self.records)

    @property
    def rate(self) -> float:
        """Probability with which each unit is in a step's batch."""
        return min(1.0, self.batch / len(self.units), self.most)

    @property
    def expected(self) -> float:
        """Units in a step to expect: the public divisor of a step's sum."""
        return self.rate * len(self.units)


def train_privately(learner: Learner, work: PrivateTraining) -> Trained:
    """The site's steps.

    Returns:
        The adapter, protected as far as ``PrivateTraining.private`` says; loss (mean over steps
        that saw a record, nan if none did), tokens and the norm of a step's gradient (before the
        noise), which are sensitive in any case.

    Raises:
        DataError: the site has no records.
        PrivacyError: the base's weights are not float32 or are quantised, though there is noise.
    """
    noise: NoiseSource = SystemNoise() if work.noise_seed is None else SeededNoise(work.noise_seed)
    live = _live(learner, work, noise)
    factors = live.factors
    step = _RecordSteps(live) if work.mode == "records" else _BatchStep(live)
    losses, tokens, norms = [], 0, 0.0
    for number, batch in enumerate(batches(work)):
        loss, count, norm = step(number, batch)
        losses += [loss] if batch else []
        tokens, norms = tokens + count, norms + norm
    done = {name: (a.detach().cpu().clone(), b.detach().cpu().clone())
            for name, (a, b) in factors.items()}
    mean = sum(losses) / len(losses) if losses else math.nan
    return Trained(work.start.holding(done), mean, tokens,
                   norms / work.steps)


def _live(learner: Learner, work: PrivateTraining, noise: NoiseSource) -> _LiveFactors:
    """The factors of a site that begins to train.

    Raises:
        DataError: the site has no records.
        PrivacyError: the base's weights are not float32 or are quantised, though there is noise.
    """
    require(bool(work.records), DataError,
            "a site has no records to train on; give it some or leave it out")
    base = learner.base.config
    problems = precision_problems(base.dtype, base.quant) if work.sigma else []
    require(not problems, PrivacyError, "; ".join(problems))
    device = learner.base.device
    factors = {n: (_own(a, device), _own(b, device)) for n, (a, b) in work.start.factors.items()}
    leaves = [leaf for pair in factors.values() for leaf in work.trainable.of(pair)]
    return _LiveFactors(learner, work, factors, leaves, noise)


def summed_gradients(learner: Learner, work: PrivateTraining) -> tuple[Tensor, ...]:
    """The exact sum of the clipped gradients of one secret batch of the site's units, on the grid
    of the noise: one unit more moves it by at most C. Float64, one tensor for each trained factor,
    layer by layer, A before B; sensitive until noise has been added.

    Raises:
        DataError: the site has no records.
        PrivacyError: the base's weights are not float32 or are quantised, though there is noise.
    """
    live = _live(learner, work, SeededNoise(0))  # of which nothing is drawn
    total, _, _ = _RecordSteps(live).clipped_sum(batches(work)[0])
    leaves = live.trained(0)
    parts = torch.split(total, [leaf.numel() for leaf in leaves])
    return tuple(part.view(leaf.shape) for part, leaf in zip(parts, leaves, strict=True))


def _own(factor: Tensor, device: torch.device) -> nn.Parameter:
    """A copy to be trained; the start is others' too."""
    return nn.Parameter(factor.detach().to(device, torch.float32, copy=True))


def batches(work: PrivateTraining) -> list[list[RecordGroup]]:
    """The units of every step; who is in them is secret where privacy counts on it.

    With mode "records" each unit on its own with probability ``rate`` (Poisson), anew in every
    step. With mode "batch" ``batch`` units without repetition: nothing is counted on their being
    secret, so a seed may draw them.
    """
    if work.mode == "batch":
        source = random.Random(work.seed)  # nosec B311  # where nothing counts on a secret draw
        return [source.sample(work.units, min(work.batch, len(work.units)))
                for _ in range(work.steps)]
    secret: random.Random = (random.SystemRandom() if work.private else
                             random.Random(work.seed))  # nosec B311  # not private, and says so
    return [[unit for unit in work.units if secret.random() < work.rate]
            for _ in range(work.steps)]


def gradients(learner: Learner, start: Adapter, records: Sequence[Record],
              trainable: Trainable, at: tuple[int, int] = (0, 0),
              ) -> tuple[list[Tensor], list[float], int]:
    """Gradients of the mean loss over its tokens of every record, each for itself.

    Args:
        learner: the base and its tokens.
        start: factors on the base's device.
        records: B of them.
        trainable: the factors.
        at: the seed of the training and the step, which decide what dropout leaves out.

    Returns:
        A tensor (B, R, N) or (B, M, R) for every one of these factors, layer by layer; losses (B,);
        tokens. All sensitive. A record without loss, or whose gradient is not finite, has zeros.
    """
    stack = Stack.of([start] * len(records), trainable, learner.base.device)
    rows = collate(learner.base, learner.encode, records)
    masks = learner.masks([(*at, record) for record in records])
    loss_B, count_B = learner.losses(rows, stack, len(records), masks)
    loss_B.sum().backward()  # type: ignore[no-untyped-call]
    found = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
             for leaf in stack.leaves]
    finite_B = torch.stack([g.square().flatten(1).sum(1) for g in found]).sum(0).isfinite()
    return ([torch.where(finite_B.view(-1, 1, 1), g, 0.0) for g in found],
            loss_B.detach().tolist(), int(count_B.sum()))


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


@dataclass(frozen=True)
class _LiveFactors:
    """The site's factors while they train, and how to read gradients off them.

    Attributes:
        learner: the base.
        work: what the site is asked to do.
        factors: layer -> (A, B), parameters.
        leaves: the trained ones of them.
        noise: where noise comes from.
    """

    learner: Learner
    work: PrivateTraining
    factors: Mapping[str, tuple[nn.Parameter, nn.Parameter]]
    leaves: list[nn.Parameter]
    noise: NoiseSource

    @property
    def adapter(self) -> Adapter:
        """The factors as they are now."""
        return self.work.start.holding(
            {n: (a.detach(), b.detach()) for n, (a, b) in self.factors.items()})

    def trained(self, step: int) -> list[nn.Parameter]:
        """The leaves that a step trains, counted from 0."""
        trainable = self.work.trainable_at(step)
        return [leaf for pair in self.factors.values() for leaf in trainable.of(pair)]

    def noised(self, total: Tensor) -> Tensor:
        """A float64 vector on the grid plus N(0, sigma²) on the grid; without noise the vector."""
        if self.work.sigma == 0:
            return total
        return noised_steps(total, self.work, self.noise)


def clipped_units(vectors: Iterable[Tensor], numbers: int, work: PrivateTraining) -> Tensor:
    """The exact sum of units' clipped gradients on the grid of the noise: one unit more moves it by
    at most C.

    Args:
        vectors: a gradient of each unit, float64.
        numbers: of each vector.
        work: the bound and the noise.
    """
    total = torch.zeros(numbers, dtype=torch.float64)
    for vector in vectors:
        total += toward_zero(clip.clip_vector(vector, work.clip), grid(work.sigma))
    return total


def noised_steps(total: Tensor, work: PrivateTraining, noise: NoiseSource) -> Tensor:
    """A step's sum, which lies on the grid, with its noise, which does too."""
    return total + noise.gaussian(tuple(total.shape), work.sigma)


class _RecordSteps:
    """DP-SGD: every unit's gradient clipped, their exact sum noised, and an ordinary optimiser's
    step on noised sum / expected."""

    def __init__(self, live: _LiveFactors) -> None:
        self._live = live
        self._learner = _alone(live.learner)
        self._optimizer = optimizer_of(live.leaves, live.learner.config, live.work.lr)

    def __call__(self, number: int,
                 batch: Sequence[RecordGroup]) -> tuple[float, int, float]:
        """One step, counted from 0."""
        live = self._live
        total, losses, tokens = self.clipped_sum(batch, number)
        mean = live.noised(total) / live.work.expected
        leaves = live.trained(number)
        parts = torch.split(mean, [leaf.numel() for leaf in leaves])
        for leaf, part in zip(leaves, parts, strict=True):
            leaf.grad = smoothed(part.view(leaf.shape), live.work.smoothing).to(leaf)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return sum(losses) / max(1, len(losses)), tokens, float(total.norm())

    def clipped_sum(self, batch: Sequence[RecordGroup],
                    number: int = 0) -> tuple[Tensor, list[float], int]:
        """The exact sum of the clipped gradients of these units, on the grid of the noise; losses
        of their records; tokens. One unit more moves the sum by at most C."""
        work = self._live.work
        stack = Stack.of([self._live.adapter], work.trainable_at(number),
                         self._learner.base.device)
        numbers = sum(leaf.numel() for leaf in stack.leaves)
        losses: list[float] = []
        tokens: list[int] = []

        def vectors() -> Iterator[Tensor]:  # one in memory at a time
            for unit in batch:
                own = unit_gradient(self._learner, stack, unit, (work.seed, number))
                losses.extend(own.losses)
                tokens.append(own.tokens)
                yield own.vector

        return clipped_units(vectors(), numbers, work), losses, sum(tokens)


class _BatchStep:
    """DP-LoRA as written: g · min(1, C / ||g||) + N(0, sigma²), for the A group and the B group; a
    plain step. Records of a batch share passes: whatever they do to one another, each group stays
    within C."""

    def __init__(self, live: _LiveFactors) -> None:
        self._live = live

    def __call__(self, number: int,
                 batch: Sequence[RecordGroup]) -> tuple[float, int, float]:
        """One step, counted from 0, on the gradient of the mean loss over the records of the
        batch's units."""
        work, leaves = self._live.work, self._live.leaves
        gradient, losses, tokens = self._mean_gradient([r for unit in batch for r in unit],
                                                       (work.seed, number))
        groups = len(work.trainable.factors)
        norms = []
        for group in range(groups):
            vector = torch.cat([g.reshape(-1) for g in gradient[group::groups]])
            vector = vector if bool(vector.isfinite().all()) else torch.zeros_like(vector)
            norms.append(float(vector.norm()))
            clipped = toward_zero(clip.clip_vector(vector, work.clip), grid(work.sigma))
            mine = leaves[group::groups]
            parts = torch.split(self._live.noised(clipped), [leaf.numel() for leaf in mine])
            with torch.no_grad():
                for leaf, part in zip(mine, parts, strict=True):
                    leaf.sub_((work.lr * part).view(leaf.shape).to(leaf))
        return sum(losses) / max(1, len(losses)), tokens, math.hypot(*norms)

    def _mean_gradient(self, records: Sequence[Record],
                       at: tuple[int, int]) -> tuple[list[Tensor], list[float], int]:
        """The gradient of the mean of the records' losses, float64, CPU; their losses; tokens."""
        live = self._live
        size = live.learner.config.rows_at_once
        total = [torch.zeros(leaf.shape, dtype=torch.float64) for leaf in live.leaves]
        losses: list[float] = []
        tokens = 0
        for i in range(0, len(records), size):
            found, loss_B, count = gradients(live.learner, live.adapter, records[i : i + size],
                                             live.work.trainable, at)
            for t, g in zip(total, found, strict=True):
                t += g.to("cpu", torch.float64).sum(0) / len(records)
            losses, tokens = losses + loss_B, tokens + count
        return total, losses, tokens
