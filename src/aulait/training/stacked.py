"""Factors of K sites side by side, so that one pass over the frozen base trains them all.

Sites of lower rank than their neighbours are padded with zeros, layer by layer. Padded factors have
zero gradients and stay zero, so the result is that of training alone (test_trainer.py).

Shape letters: K sites · M out · N in · R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from aulait.core import lora
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Tensors
from aulait.models.adapter_dropout import AdapterDropout
from aulait.models.loading import Base


@dataclass(frozen=True)
class Penalty:
    """What a method adds to a site's loss in every step.

    Attributes:
        proximal: mu of mu/2 · ||theta - theta_start||^2 over the trained factors (Li et al.,
            FedProx, MLSys 2020).
        tail: lambda of lambda · sum over layers ||B[:, t:]||_F · ||A[t:, :]||_F (Cho et al.,
            HetLoRA, EMNLP 2024).
        keep: gamma in (0, 1): the tail of a layer of rank r begins at t = floor(gamma · r).
    """

    proximal: float = 0.0
    tail: float = 0.0
    keep: float = 0.99


class Stack:
    """The factors of K sites, as leaves of the gradient.

    Attributes:
        factors: layer -> (A_KRN, B_KMR), R the largest rank of the layer.
        scales: layer -> scale of every site (K,).
        leaves: the trained ones of these tensors.
    """

    def __init__(self, starts: Sequence[Adapter], trainable: Trainable,
                 device: torch.device) -> None:
        self._starts = list(starts)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.scales: dict[str, Tensor] = {}
        for name in starts[0].factors:
            rank = max(start.factors[name][0].shape[0] for start in starts)
            padded = [lora.pad(*start.factors[name], rank) for start in starts]
            self.factors[name] = (torch.stack([a for a, _ in padded]).to(device),
                                  torch.stack([b for _, b in padded]).to(device))
            self.scales[name] = torch.tensor([start.scale(name) for start in starts], device=device)
        self.leaves = [leaf for pair in self.factors.values() for leaf in trainable.of(pair)]
        self._kinds = [factor for _ in self.factors for factor in trainable.factors]
        self._origin = [leaf.clone() for leaf in self.leaves]

    @classmethod
    def of(cls, starts: Sequence[Adapter], trainable: Trainable, device: torch.device) -> Stack:
        """A stack whose trained factors ask for gradients."""
        stack = cls(starts, trainable, device)
        for leaf in stack.leaves:
            leaf.requires_grad_(True)
        return stack

    def only(self, trainable: Trainable) -> list[Tensor]:
        """The leaves of these factors, which alone ask for gradients from now on."""
        if len(trainable.factors) == len(set(self._kinds)):
            return self.leaves
        for leaf, kind in zip(self.leaves, self._kinds, strict=True):
            leaf.requires_grad_(kind in trainable.factors)
        return [leaf for leaf in self.leaves if leaf.requires_grad]

    def like(self, tensors: Sequence[Tensors]) -> dict[str, tuple[Tensor, Tensor]]:
        """Numbers of every site under flat names, side by side as the factors are."""
        found = {}
        for name, (a_KRN, _) in self.factors.items():
            rank = a_KRN.shape[1]
            padded = [lora.pad(*lora.factors_of(own, name), rank) for own in tensors]
            found[name] = (torch.stack([a for a, _ in padded]).to(a_KRN.device),
                           torch.stack([b for _, b in padded]).to(a_KRN.device))
        return found

    @torch.no_grad()
    def shift(self, by: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add what ``like`` has laid out to the factors."""
        for name, pair in by.items():
            for factor, change in zip(self.factors[name], pair, strict=True):
                factor.add_(change)

    @contextmanager
    def applied_to(self, base: Base, dropout: AdapterDropout | None = None) -> Iterator[None]:
        """Apply the stacks to the base, so that gradients reach the stacks themselves.

        Args:
            base: whose layers they are of.
            dropout: what is left out of what they read; None for nothing.
        """
        for name, (a, b) in self.factors.items():
            base.slots[name].worn = (a, b, self.scales[name])
            base.slots[name].dropout = dropout
        try:
            yield
        finally:
            for name in self.factors:
                base.slots[name].worn = base.slots[name].dropout = None

    def take(self, k: int) -> Adapter:
        """The adapter of site k at its own ranks, on the CPU."""
        start = self._starts[k]
        factors = {}
        for name, (a, b) in self.factors.items():
            rank = start.factors[name][0].shape[0]
            factors[name] = (a.detach()[k, :rank].to("cpu", copy=True),
                             b.detach()[k, :, :rank].to("cpu", copy=True))
        return start.holding(factors)

    def penalty(self, terms: Penalty) -> Tensor:
        """The sum over sites of their penalties; the gradient of each site is its own."""
        total = torch.zeros((), device=self.leaves[0].device)
        if terms.proximal:
            for leaf, origin in zip(self.leaves, self._origin, strict=True):
                total = total + terms.proximal / 2 * (leaf - origin).square().sum()
        if terms.tail:
            for name, (a, b) in self.factors.items():
                tail_KR = self._tail(name, terms.keep, a.shape[1])
                norms_K = _norm(a * tail_KR[:, :, None]) * _norm(b * tail_KR[:, None, :])
                total = total + terms.tail * norms_K.sum()
        return total

    def _tail(self, name: str, keep: float, rank: int) -> Tensor:
        """1 where a column of site k is in its tail, else 0: (K, R)."""
        own = [start.factors[name][0].shape[0] for start in self._starts]
        rows = [[1.0 if int(keep * r) <= j < r else 0.0 for j in range(rank)] for r in own]
        return torch.tensor(rows, device=self.factors[name][0].device)


def _norm(factors: Tensor) -> Tensor:
    """Frobenius norm of every site (K,), with a gradient of 0 rather than NaN at 0."""
    return (factors.square().flatten(1).sum(1) + 1e-24).sqrt()
