"""Local LoRA steps of one site that protect its single records: DP-SGD, DP-LoRA's own rule, and
their controls.

Gradients record by record cost one backward pass: the base carries one copy of the site's factors
*per record* (``stacked``), so the gradient of the copies is the stack of the records' gradients.
Opacus clips and sums them and takes the step; noise and sampling are ours, because they must not be
guessed: torch's CPU generator keeps 32 bits of a seed.

Everything a site has after its steps is a function of the start, public numbers, and noised sums. A
record whose gradient is not finite counts as a zero gradient; an empty batch still gets its noise.
Not accounted, as everywhere: rounding (records of a batch are padded to one length, which moves
each other's last digits: 1e-7, in bfloat16 1e-3) and time.

Sources: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1; Liu et al.,
"Differentially Private Low-Rank Adaptation of Large Language Model Using Federated Learning", arXiv
2312.17493; Yousefpour et al., "Opacus", 2021.
Shape letters: B records of a batch · R rank · M out features · N in features.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aulait.core.errors import DataError, ModelError, PrivacyError, install, require
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Record
from aulait.privacy import clipping as clip
from aulait.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from aulait.training.batches import collate
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner, Trained, optimizer_of

Mode = Literal["records", "batch"]
MARGIN = 1e-5  # far above the rounding of a float32 norm


@dataclass(frozen=True)
class PrivateTraining:
    """The private training one site is asked to do.

    Attributes:
        start: the adapter to begin from; public.
        records: what to learn from; sensitive, but for their number.
        trainable: factors that are trained: B, or both.
        steps: noised steps.
        batch: expected records in a step; at most all of them.
        lr: learning rate.
        mode: "records" clips every record's gradient, A and B together; "batch" clips the gradient
            of a whole batch, A and B apart, and takes a plain gradient step.
        clip: C, the bound of what is clipped; inf clips nothing (a control, not private).
        sigma: standard deviation of the noise on what was clipped; 0 adds none (a control, not
            private).
        seed: of the batches, where they need not be secret.
        noise_seed: makes noise and batches reproducible (not private); None takes the operating
            system's entropy for both, as long as there is noise.
        most: largest probability with which a record may be in a batch of mode "records"; what is
            accounted.

    Raises:
        PrivacyError: noise without a finite bound, or a number outside its range.
    """

    start: Adapter
    records: tuple[Record, ...]
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

    def __post_init__(self) -> None:
        bounded = self.clip > 0 and (self.sigma == 0 or math.isfinite(self.clip))
        require(bounded and 0 <= self.sigma < math.inf, PrivacyError,
                f"clip = {self.clip} with sigma = {self.sigma} found, expected clip > 0 and finite "
                "where there is noise; set privacy.clip")
        require(0 < self.most <= 1, PrivacyError,
                f"largest sampling rate is {self.most}, expected a number in (0, 1]; correct it")

    @property
    def private(self) -> bool:
        """Whether the result may leave the site."""
        return self.sigma > 0 and self.noise_seed is None

    @property
    def rate(self) -> float:
        """Probability with which each record is in a step's batch."""
        return min(1.0, self.batch / len(self.records), self.most)

    @property
    def expected(self) -> float:
        """Records in a step to expect: the public divisor of a step's sum."""
        return self.rate * len(self.records)


def train_privately(learner: Learner, work: PrivateTraining) -> Trained:
    """The site's steps.

    Returns:
        The adapter, protected as far as ``PrivateTraining.private`` says; loss (mean over steps
        that saw a record, nan if none did), tokens and the norm of a step's gradient (before the
        noise), which are sensitive in any case.

    Raises:
        DataError: the site has no records.
        ModelError: Opacus is missing.
    """
    require(bool(work.records), DataError,
            "a site has no records to train on; give it some or leave it out")
    noise: NoiseSource = SystemNoise() if work.noise_seed is None else SeededNoise(work.noise_seed)
    device = learner.base.device
    factors = {n: (_own(a, device), _own(b, device)) for n, (a, b) in work.start.factors.items()}
    leaves = [leaf for pair in factors.values() for leaf in work.trainable.of(pair)]
    live = _LiveFactors(learner, work, factors, leaves, noise)
    step = _RecordSteps(live) if work.mode == "records" else _BatchStep(live)
    losses, tokens, norms = [], 0, 0.0
    for batch in batches(work):
        loss, count, norm = step(batch)
        losses += [loss] if batch else []
        tokens, norms = tokens + count, norms + norm
    done = {name: (a.detach().cpu().clone(), b.detach().cpu().clone())
            for name, (a, b) in factors.items()}
    mean = sum(losses) / len(losses) if losses else math.nan
    return Trained(Adapter(done, work.start.alpha, work.start.rank), mean, tokens,
                   norms / work.steps)


def _own(factor: Tensor, device: torch.device) -> nn.Parameter:
    """A copy to be trained; the start is others' too."""
    return nn.Parameter(factor.detach().to(device, torch.float32, copy=True))


def batches(work: PrivateTraining) -> list[list[Record]]:
    """The records of every step; who is in them is secret where privacy counts on it.

    With mode "records" each record on its own with probability ``rate`` (Poisson), anew in every
    step. With mode "batch" ``batch`` records without repetition: nothing is counted on their being
    secret, so a seed may draw them.
    """
    if work.mode == "batch":
        source = random.Random(work.seed)
        return [source.sample(work.records, min(work.batch, len(work.records)))
                for _ in range(work.steps)]
    secret: random.Random = random.SystemRandom() if work.private else random.Random(work.seed)
    return [[record for record in work.records if secret.random() < work.rate]
            for _ in range(work.steps)]


def gradients(learner: Learner, start: Adapter, records: Sequence[Record],
              trainable: Trainable) -> tuple[list[Tensor], list[float], int]:
    """Gradients of the mean loss over its tokens of every record, each for itself.

    Args:
        learner: the base and its tokens.
        start: factors on the base's device.
        records: B of them.
        trainable: the factors.

    Returns:
        A tensor (B, R, N) or (B, M, R) for every one of these factors, layer by layer; losses (B,);
        tokens. All sensitive. A record without loss, or whose gradient is not finite, has zeros.
    """
    stack = Stack.of([start] * len(records), trainable, learner.base.device)
    rows = collate(learner.base, learner.encode, records)
    loss_B, count_B = learner.losses(rows, stack, len(records))
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

    def gradients(self, records: Sequence[Record]) -> tuple[list[Tensor], list[float], int]:
        """As the function of that name, at the current factors."""
        now = Adapter({n: (a.detach(), b.detach()) for n, (a, b) in self.factors.items()},
                      self.work.start.alpha, self.work.start.rank)
        return gradients(self.learner, now, records, self.work.trainable)

    def drawn(self, like: Tensor) -> Tensor:
        """Noise for one tensor."""
        return self.noise.gaussian(tuple(like.shape), self.work.sigma).to(like)


class _RecordSteps:
    """DP-SGD: Opacus clips record by record, our noise goes on the sum, its optimiser steps on sum
    / expected."""

    def __init__(self, live: _LiveFactors) -> None:
        self._live = live
        self._optimizer = _optimizer(live)

    def __call__(self, batch: Sequence[Record]) -> tuple[float, int, float]:
        """One step; a batch too large for one pass is taken in pieces, as Opacus'
        BatchMemoryManager does."""
        live, norm = self._live, 0.0
        size = live.learner.config.rows_at_once
        pieces = [batch[i : i + size] for i in range(0, len(batch), size)] or [batch]
        losses: list[float] = []
        tokens = 0
        for number, piece in enumerate(pieces, start=1):
            if piece:
                found, loss_B, count = live.gradients(piece)
                losses, tokens = losses + loss_B, tokens + count
            else:
                found = [leaf.new_zeros(0, *leaf.shape) for leaf in live.leaves]
            for leaf, gradient in zip(live.leaves, found, strict=True):
                leaf.grad_sample = gradient  # type: ignore[attr-defined]
            self._optimizer.signal_skip_step(number < len(pieces))
            self._optimizer.step()
            if number == len(pieces):
                norm = clip.norm({str(i): leaf.summed_grad  # type: ignore[attr-defined]
                                  for i, leaf in enumerate(live.leaves)})
            self._optimizer.zero_grad(set_to_none=True)
        return sum(losses) / max(1, len(losses)), tokens, norm


class _BatchStep:
    """DP-LoRA as written: g · min(1, C / ||g||) + N(0, sigma²), for the A group and the B group; a
    plain step."""

    def __init__(self, live: _LiveFactors) -> None:
        self._live = live

    @torch.no_grad()
    def __call__(self, batch: Sequence[Record]) -> tuple[float, int, float]:
        """One step on the gradient of the mean loss over the batch's records."""
        live, work = self._live, self._live.work
        size = live.learner.config.rows_at_once
        total = [torch.zeros_like(leaf) for leaf in live.leaves]
        losses: list[float] = []
        tokens = 0
        for i in range(0, len(batch), size):
            with torch.enable_grad():
                found, loss_B, count = live.gradients(batch[i : i + size])
            total = [t + g.sum(0) / len(batch) for t, g in zip(total, found, strict=True)]
            losses, tokens = losses + loss_B, tokens + count
        norms, groups = [], len(work.trainable.factors)
        for group in range(groups):
            members = {str(i): total[i] for i in range(group, len(total), groups)}
            norms.append(clip.norm(members))
            finite = math.isfinite(norms[-1])
            clipped = clip.clip({i: g if finite else torch.zeros_like(g)
                                 for i, g in members.items()}, work.clip)
            for name, g in clipped.items():
                noised = g + live.drawn(g) if work.sigma > 0 else g
                live.leaves[int(name)].sub_(work.lr * noised)
        return sum(losses) / max(1, len(losses)), tokens, math.hypot(*norms)


def missing(mechanism: str | None) -> list[str]:
    """What the steps of a mechanism need and is not installed here, one line each."""
    if mechanism != "dp-sgd" or find_spec("opacus") is not None:
        return []
    return ["steps that protect single records need the package opacus and it is missing; "
            f"{install('dpsgd')}"]


def _optimizer(live: _LiveFactors) -> Any:  # Opacus has no types
    """Opacus' optimiser around AdamW or SGD, with noise from our source instead of its
    generator."""
    require(not (lines := missing("dp-sgd")), ModelError, "; ".join(lines))
    from opacus.optimizers import DPOptimizer  # optional: only this mechanism needs it

    work = live.work

    class NoisedOptimizer(DPOptimizer):  # type: ignore[misc]
        def add_noise(self) -> None:
            """The sum of clipped gradients plus N(0, sigma²); nothing is drawn for a control
            without noise."""
            for leaf in self.params:
                total = leaf.summed_grad
                noised = total + live.drawn(total) if work.sigma > 0 else total.clone()
                leaf.grad = noised.view_as(leaf)

    inner = optimizer_of(live.leaves, live.learner.config, work.lr)
    # A little below C, because Opacus clips in float32; the noise is that of C itself.
    return NoisedOptimizer(inner, noise_multiplier=work.sigma / work.clip,
                           max_grad_norm=work.clip * (1 - MARGIN),
                           expected_batch_size=work.expected)
