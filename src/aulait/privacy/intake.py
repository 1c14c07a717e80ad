"""What comes in at the aggregator: which updates are sound, and the running sum over those that
are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.core.types import ClientUpdate, Info, Tensors
from aulait.privacy.clipping import clip, norm

Refused = tuple[tuple[str, str], ...]
ExpectedShapes = Mapping[str, Tensors]  # client -> what its share must look like
Transform = Callable[[ClientUpdate], Tensors]


@dataclass
class Tally:
    """A running sum in float64, with who is in it."""

    total: Tensors
    weights: dict[str, float] = field(default_factory=dict)
    info: dict[str, list[float]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def add(self, update: ClientUpdate, summand: Tensors, bound: float, weight: float) -> None:
        """Clip one client's summand to the bound and add it; one that overflowed on the way is
        refused, not raised."""
        if not all(bool(torch.isfinite(value.detach()).all()) for value in summand.values()):
            self.refused.append((update.client, "what it adds is not finite"))
            return
        share = clip(summand, bound)
        require(norm(share) <= bound, PrivacyError,
                "a clipped share exceeds its bound; report this as a defect")
        for name, total in self.total.items():
            total += share[name].detach().to("cpu", torch.float64) * weight
        self.weights[update.client] = weight
        for name, value in update.info.items():
            self.info.setdefault(name, []).append(float(value))

    def mean_weight(self) -> float:
        """Mean over those counted; 1 where that is no number to divide by."""
        return (sum(self.weights.values()) / len(self.weights) if self.weights else 0.0) or 1.0

    def mean_info(self) -> Info:
        """Mean of every diagnostic over the updates that have it; bytes on the wire are counted
        elsewhere."""
        return {name: sum(values) / len(values) for name, values in sorted(self.info.items())
                if not name.startswith("wire_")}


def sift(
    updates: Iterable[ClientUpdate], form: Any, each: bool, forbidden: frozenset[str], limit: float,
    refused: list[tuple[str, str]],
    alternate_shapes: ExpectedShapes | None = None,
) -> Iterator[ClientUpdate]:
    """Sound updates, at most one of a client, as they come; (client, reason) of the others goes to
    ``refused``.

    ``form`` is the form of every share, or with ``each`` a form by client; ``also`` a second form
    that is as good.
    """
    seen: set[str] = set()
    for update in updates:
        template = form.get(update.client) if each else form
        if update.client in forbidden:
            fault: str | None = "is a proxy"
        elif update.client in seen:
            fault = "replied twice"
        elif template is None:
            fault = "was not asked"
        else:
            other = None if alternate_shapes is None else alternate_shapes.get(update.client)
            fault = _fault(update, other if other is not None
                           and _shapes(update.tensors) == _shapes(other) else template, limit)
        seen.add(update.client)
        if fault is None:
            yield update
        else:
            refused.append((update.client, fault))


def _fault(update: ClientUpdate, template: Tensors, limit: float) -> str | None:
    """What is wrong with one update, or None."""
    if update.tensors.keys() != template.keys():
        return "names of its tensors differ"
    if not 0 <= update.weight < math.inf:
        return "weight is not a finite number >= 0"
    if not all(isinstance(value, int | float) for value in update.info.values()):
        return "info holds something else than numbers"
    for name in sorted(template):
        value = update.tensors[name]
        if not isinstance(value,
                          Tensor) or value.layout != torch.strided or not value.is_floating_point():
            return f"{name} is not a dense floating tensor"
        if value.shape != template[name].shape:
            return f"{name} has another shape"
        if not torch.isfinite(value.detach().to("cpu", torch.float32)).all():
            return f"{name} holds NaN or infinity"
    if limit < math.inf and norm(update.tensors) > limit:
        return f"its norm is above {limit:g} (federation.max_norm)"
    return None


def _shapes(share: Tensors) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in share.items()}


def unsplit(updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
    """The updates as they come.

    Raises:
        PrivacyError: one comes of a split model, whose activations have left the site beside the
            aggregator.
    """
    for update in updates:
        text = (
            f"client '{update.client}' is split: activations of single records leave the site; use "
            "'local' or 'proxy'"
        )
        require("wire_up_bytes" not in update.info, PrivacyError, text)
        yield update
