"""The sum that adaptive clipping releases: clipped updates, each with its answer whether it was
within the bound, as one vector (``aulait.privacy.adaptive_clip``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from aulait.core.types import ClientUpdate, Tensors
from aulait.privacy.adaptive_clip import AdaptiveClip
from aulait.privacy.clipping import clip, norm

ANSWER: Final = "aulait.within"  # name of the answers in a sum


def joint_template(template: Tensors) -> Tensors:
    """Names and shapes of the sum with the answers."""
    return {**template, ANSWER: torch.zeros(1)}


def with_answer(
    rule: AdaptiveClip, bound: float, transform: Callable[[ClientUpdate], Tensors] | None
) -> Callable[[ClientUpdate], Tensors]:
    """What a client adds: its update clipped to the bound, and its answer; together no longer than
    ``rule.joint_bound`` but for rounding, which whoever sums them takes away.

    Args:
        rule: of the run.
        bound: C of the round.
        transform: what an update adds to the sum without the answer; None: the update itself.
    """
    answer = rule.answer(bound)

    def joined(update: ClientUpdate) -> Tensors:
        summand = transform(update) if transform else update.tensors
        if not all(bool(torch.isfinite(value.detach()).all()) for value in summand.values()):
            return {**summand, ANSWER: torch.zeros(1, dtype=torch.float64)}  # is not counted
        within = answer if norm(summand) <= bound else -answer
        return {**clip(summand, bound), ANSWER: torch.tensor([within], dtype=torch.float64)}

    return joined


def parted(total: Tensors) -> tuple[Tensors, float]:
    """A released sum without the answers, and the sum of the answers."""
    rest = dict(total)
    return rest, float(rest.pop(ANSWER))
