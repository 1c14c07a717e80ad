"""Sums over clients some of whom may send anything: rules that a few hostile updates cannot move
far.

Each looks at all updates of a round at once. So none has a sensitivity that noise on the sum could
cover: they are for runs without privacy, and for the unit "record", whose updates carry their noise
when they arrive. Under privacy of clients it is clipping that bounds what one of them can do; under
secure aggregation nobody sees an update to judge it by.

Sources: Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (median, trimmed mean);
Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE TSP 2022 (geometric
median); Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017 (Krum); Sun et al.,
"Can You Really Backdoor Federated Learning?", 2019 (norm bound).
Shape letters: K clients · D numbers of an update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.core.types import ClientUpdate, ReleasedSum, Tensors
from aulait.privacy.clipping import ClippedSum, clip

RuleName = Literal["median", "trimmed-mean", "geometric-median", "krum", "norm-bound"]
_STEPS: Final = 1000  # of the geometric median
_NEAR: Final = 1e-9  # of the spread of the updates: where its steps end


@dataclass(frozen=True)
class RobustRule:
    """What takes the place of the mean of a round's updates.

    Attributes:
        name: "median", coordinate by coordinate; "trimmed-mean", the mean without the largest and
            the smallest of each coordinate; "geometric-median", the point whose distances to all
            updates sum to the least; "krum", the one update that is nearest to its neighbours;
            "norm-bound", the mean of updates shortened to the median of their lengths.
        hostile: share of the clients that may be hostile, in [0, 0.5): how many are trimmed at
            either end, and how many Krum leaves out.
    """

    name: RuleName
    hostile: float

    def of(self, updates_KD: Tensor) -> Tensor:
        """What stands for the mean of K updates, at least one: (D,)."""
        return {"median": _median, "trimmed-mean": self._trimmed_mean,
                "geometric-median": _geometric_median, "krum": self._krum,
                "norm-bound": _norm_bound}[self.name](updates_KD)

    def _assumed(self, clients: int) -> int:
        """How many of so many clients may be hostile, fewer than half."""
        return min(math.floor(self.hostile * clients), (clients - 1) // 2)

    def _trimmed_mean(self, updates_KD: Tensor) -> Tensor:
        clients = len(updates_KD)
        cut = self._assumed(clients)
        return updates_KD.sort(0).values[cut : clients - cut].mean(0)

    def _krum(self, updates_KD: Tensor) -> Tensor:
        clients = len(updates_KD)
        near = max(1, clients - self._assumed(clients) - 2)
        if clients == 1:
            return updates_KD[0]
        distances_KK = torch.cdist(updates_KD, updates_KD).square()
        others = distances_KK.sort(1).values[:, 1 : 1 + near]  # the nearest is itself
        return updates_KD[int(others.sum(1).argmin())]


def _median(updates_KD: Tensor) -> Tensor:
    ordered, clients = updates_KD.sort(0).values, len(updates_KD)
    return (ordered[(clients - 1) // 2] + ordered[clients // 2]) / 2


def _geometric_median(updates_KD: Tensor) -> Tensor:
    """By Weiszfeld's steps, each a mean weighed by one over the distance, from the median; where a
    step ends on updates, these hold it back by their number (Vardi and Zhang, PNAS 2000)."""
    middle = _median(updates_KD)
    spread = float((updates_KD - middle).norm(dim=1).mean())
    for _ in range(_STEPS):
        distance_K = (updates_KD - middle).norm(dim=1)
        away_K = distance_K > 1e-9 * spread
        if not bool(away_K.any()):
            break
        weight_K = torch.where(away_K, 1.0 / distance_K.clamp(min=1e-300), 0.0)
        after = (weight_K[:, None] * updates_KD).sum(0) / weight_K.sum()
        pull = float((after - middle).norm() * weight_K.sum())
        held = min(1.0, float((~away_K).sum()) / pull) if pull else 1.0
        after = (1.0 - held) * after + held * middle
        moved, middle = float((after - middle).norm()), after
        if moved <= _NEAR * spread:
            break
    return middle


def _norm_bound(updates_KD: Tensor) -> Tensor:
    length_K = updates_KD.norm(dim=1)
    factor_K: Tensor = (_median(length_K[:, None]) / length_K.clamp(min=1e-300)).clamp(max=1.0)
    return (updates_KD * factor_K[:, None]).mean(0)


@dataclass
class RobustSum(ClippedSum):
    """As many times what the rule gives as there are updates; all of them are in memory."""

    rule: RobustRule | None = None
    vectors: list[Tensor] = field(default_factory=list)

    @classmethod
    def under(cls, rule: RobustRule, template: Tensors) -> RobustSum:
        """The sum over nobody, with the names and shapes of ``template``."""
        return cls(ClippedSum.zero(template).total, rule=rule)

    def add(self, update: ClientUpdate, summand: Tensors, bound: float, weight: float,
            discount: float = 1.0) -> None:
        """Keep one client's summand, shortened to the bound.

        Raises:
            PrivacyError: a client weighs more than another.
        """
        require(weight == discount == 1.0, PrivacyError,
                f"an update of weight {weight} and discount {discount} found with a robust sum, "
                "expected 1; report this as a defect")
        before = len(self.weights)
        super().add(update, summand, bound, weight)
        if len(self.weights) > before:
            kept = clip(summand, bound)
            self.vectors.append(torch.cat([kept[name].detach().to("cpu", torch.float64).reshape(-1)
                                           for name in self.total]))

    def weighted(self, private: bool) -> ReleasedSum:
        """The rule's stand-in for the mean, times the number counted; else as ``ClippedSum``."""
        if self.rule is not None and self.vectors:
            whole = self.rule.of(torch.stack(self.vectors)) * len(self.vectors)
            parts = torch.split(whole, [total.numel() for total in self.total.values()])
            self.total = {name: part.view(total.shape) for (name, total), part in zip(
                self.total.items(), parts, strict=True)}
        return super().weighted(private)
