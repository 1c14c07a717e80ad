"""What comes in at the door: which replies are sound, and the running sum over those that are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aulait.core.errors import PrivacyError
from aulait.core.registry import require
from aulait.core.types import Info, Reply, Tensors
from aulait.privacy.clipping import clip, norm

Refused = tuple[tuple[str, str], ...]
Forms = Mapping[str, Tensors]  # client -> what its share must look like
Become = Callable[[Reply], Tensors]


@dataclass
class Tally:
    """A running sum in float64, with who is in it."""

    total: Tensors
    weights: dict[str, float] = field(default_factory=dict)
    info: dict[str, list[float]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def add(self, reply: Reply, summand: Tensors, bound: float, weight: float) -> None:
        """Clip one client's summand to the bound and add it; one that overflowed on the way is
        refused, not raised."""
        if not all(bool(torch.isfinite(value.detach()).all()) for value in summand.values()):
            self.refused.append((reply.client, "what it adds is not finite"))
            return
        share = clip(summand, bound)
        require(norm(share) <= bound, PrivacyError,
                "a clipped share exceeds its bound; report this as a defect")
        for name, total in self.total.items():
            total += share[name].detach().to("cpu", torch.float64) * weight
        self.weights[reply.client] = weight
        for name, value in reply.info.items():
            self.info.setdefault(name, []).append(float(value))

    def mean_weight(self) -> float:
        """Mean over those counted; 1 where that is no number to divide by."""
        return (sum(self.weights.values()) / len(self.weights) if self.weights else 0.0) or 1.0

    def mean_info(self) -> Info:
        """Mean of every diagnostic over the replies that have it; bytes on the wire are counted
        elsewhere."""
        return {name: sum(values) / len(values) for name, values in sorted(self.info.items())
                if not name.startswith("wire_")}


def sift(
    replies: Iterable[Reply], form: Any, each: bool, forbidden: frozenset[str], limit: float,
    refused: list[tuple[str, str]],
    also: Forms | None = None,
) -> Iterator[Reply]:
    """Sound replies, at most one of a client, as they come; (client, reason) of the others goes to
    ``refused``.

    ``form`` is the form of every share, or with ``each`` a form by client; ``also`` a second form
    that is as good.
    """
    seen: set[str] = set()
    for reply in replies:
        like = form.get(reply.client) if each else form
        if reply.client in forbidden:
            fault: str | None = "is a proxy"
        elif reply.client in seen:
            fault = "replied twice"
        elif like is None:
            fault = "was not asked"
        else:
            other = None if also is None else also.get(reply.client)
            fault = _fault(reply, other if other is not None
                           and _shapes(reply.share) == _shapes(other) else like, limit)
        seen.add(reply.client)
        if fault is None:
            yield reply
        else:
            refused.append((reply.client, fault))


def _fault(reply: Reply, like: Tensors, limit: float) -> str | None:
    """What is wrong with one reply, or None."""
    if reply.share.keys() != like.keys():
        return "names of its tensors differ"
    if not 0 <= reply.weight < math.inf:
        return "weight is not a finite number >= 0"
    if not all(isinstance(value, int | float) for value in reply.info.values()):
        return "info holds something else than numbers"
    for name in sorted(like):
        value = reply.share[name]
        if not isinstance(value,
                          Tensor) or value.layout != torch.strided or not value.is_floating_point():
            return f"{name} is not a dense floating tensor"
        if value.shape != like[name].shape:
            return f"{name} has another shape"
        if not torch.isfinite(value.detach().to("cpu", torch.float32)).all():
            return f"{name} holds NaN or infinity"
    if limit < math.inf and norm(reply.share) > limit:
        return f"its norm is above {limit:g} (federation.max_norm)"
    return None


def _shapes(share: Tensors) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in share.items()}


def unsplit(replies: Iterable[Reply]) -> Iterator[Reply]:
    """The replies as they come.

    Raises:
        PrivacyError: one comes of a split model, whose activations have left the site beside the
            door.
    """
    for reply in replies:
        text = (
            f"client '{reply.client}' is split: activations of single records leave the site; use "
            "'local' or 'proxy'"
        )
        require("wire_up_bytes" not in reply.info, PrivacyError, text)
        yield reply
