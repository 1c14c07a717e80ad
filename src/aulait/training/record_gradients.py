"""Local LoRA steps of one site that protect its units: DP-SGD, DP-LoRA's own rule, and their
controls.

A unit is one record, or all records of one value of ``privacy.unit_field`` (``core.units``). A unit
more or less moves the sum of a step's clipped gradients by at most C (``training.unit_sums``).
Draws and noise are made here, in the site's or the run's own process, whoever makes the sums. The
optimiser, float32, sees only the noised sum. Only the rule of DP-LoRA, which clips a batch as a
whole and counts on nothing else, reads records in common passes.

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
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from aulait.core.errors import DataError, PrivacyError, require
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Record, Tensors
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
from aulait.training.unit_sums import SumUnits, UnitSum, UnitSumWork, sum_units

Mode = Literal["records", "batch"]
T = TypeVar("T")
PrivateSteps = Generator[UnitSumWork, UnitSum, T]


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
        fold: as of ``LocalTraining``, for those who make sums elsewhere.
        basis: likewise.

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
    fold: Tensors | None = None
    basis: Mapping[str, tuple[Tensor, Tensor]] | None = None

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
    """The site's steps, all of them here; ``private_steps`` says the rest. The base holds the fold
    and has the basis already."""
    return in_step([private_steps(learner, work)],
                   lambda asked: [sum_units(learner, own) for own in asked])[0]


def private_steps(learner: Learner, work: PrivateTraining) -> PrivateSteps[Trained]:
    """The site's steps. They ask for every sum of clipped gradients that they need and are sent it;
    who is in a batch is drawn here, and noise is added here.

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
        if isinstance(step, _RecordSteps):
            loss, count, norm = step(number, (yield step.asked(number, batch)))
        else:
            loss, count, norm = step(number, batch)
        losses += [loss] if batch else []
        tokens, norms = tokens + count, norms + norm
    done = {name: (a.detach().cpu().clone(), b.detach().cpu().clone())
            for name, (a, b) in factors.items()}
    mean = sum(losses) / len(losses) if losses else math.nan
    return Trained(work.start.holding(done), mean, tokens,
                   norms / work.steps)


def in_step(sites: Sequence[PrivateSteps[T]], sums: SumUnits) -> list[T]:
    """What several sites come to whose steps are made side by side: the sums that they need for
    their next steps are asked for together.

    Args:
        sites: their steps.
        sums: gives the sums.
    """
    found: dict[int, T] = {}
    sent: dict[int, UnitSum | None] = dict.fromkeys(range(len(sites)))
    while sent:
        asked: dict[int, UnitSumWork] = {}
        for site, own in sent.items():
            try:
                asked[site] = next(sites[site]) if own is None else sites[site].send(own)
            except StopIteration as done:
                found[site] = done.value
        sent = dict(zip(asked, sums(list(asked.values())), strict=True)) if asked else {}
    return [found[site] for site in range(len(sites))]


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


def summing_steps(learner: Learner,
                  work: PrivateTraining) -> PrivateSteps[tuple[Tensor, ...]]:
    """The exact sum of the clipped gradients of one secret batch of the site's units, on the grid
    of the noise: one unit more moves it by at most C. It is asked for as in ``private_steps``.

    Returns:
        Float64, one tensor for each trained factor, layer by layer, A before B; sensitive until
        noise has been added.

    Raises:
        DataError: the site has no records.
        PrivacyError: the base's weights are not float32 or are quantised, though there is noise.
    """
    live = _live(learner, work, SeededNoise(0))  # of which nothing is drawn
    found = yield _RecordSteps(live).asked(0, batches(work)[0])
    leaves = live.trained(0)
    parts = torch.split(found.total, [leaf.numel() for leaf in leaves])
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


def noised_steps(total: Tensor, work: PrivateTraining, noise: NoiseSource) -> Tensor:
    """A step's sum, which lies on the grid, with its noise, which does too."""
    return total + noise.gaussian(tuple(total.shape), work.sigma)


class _RecordSteps:
    """DP-SGD: every unit's gradient clipped, their exact sum noised, and an ordinary optimiser's
    step on noised sum / expected."""

    def __init__(self, live: _LiveFactors) -> None:
        self._live = live
        self._optimizer = optimizer_of(live.leaves, live.learner.config, live.work.lr)

    def asked(self, number: int, batch: Sequence[RecordGroup]) -> UnitSumWork:
        """The sum that a step needs, counted from 0."""
        work = self._live.work
        return UnitSumWork(self._live.adapter, work.trainable_at(number), batch, work.clip,
                           work.sigma, (work.seed, number), work.fold, work.basis)

    def __call__(self, number: int, found: UnitSum) -> tuple[float, int, float]:
        """The step, given that sum: it gets its noise here."""
        live = self._live
        mean = live.noised(found.total) / live.work.expected
        leaves = live.trained(number)
        parts = torch.split(mean, [leaf.numel() for leaf in leaves])
        for leaf, part in zip(leaves, parts, strict=True):
            leaf.grad = smoothed(part.view(leaf.shape), live.work.smoothing).to(leaf)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        losses = found.losses
        return sum(losses) / max(1, len(losses)), found.tokens, float(found.total.norm())


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
