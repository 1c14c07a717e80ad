"""Which updates may be counted: known clients, one update of each, the expected names and shapes,
finite numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.core.types import ClientUpdate, Tensors
from aulait.privacy.clipping import length, norm

SURELY_SHORTER = 1.0 - 1e-6  # far beyond the rounding of a norm
SURELY_FINITE = 1e38  # an update of a smaller norm has no entry that is not a float32 number

Rejections = tuple[tuple[str, str], ...]  # (client, reason)
ExpectedShapes = Mapping[str, Tensors]  # client -> tensors of the names and shapes of its update


class Alike(Mapping[str, Tensors]):
    """The same names and shapes for whatever client is asked for; it lists nobody.

    Args:
        template: names and shapes.
    """

    def __init__(self, template: Tensors) -> None:
        self._template = template

    def __getitem__(self, client: str) -> Tensors:
        return self._template

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True)
class UpdateChecks:
    """What an update must be like to be counted.

    Attributes:
        template: names and shapes of every update.
        expected_shapes: client -> names and shapes of its update, instead of the template; a client
            that is missing was not asked. None: the template holds for every client.
        alternate_shapes: client -> second names and shapes that are as good; None: there are none.
        forbidden: sites whose updates have no place here.
        largest_norm: a longer update is rejected; inf allows any.
    """

    template: Tensors
    expected_shapes: ExpectedShapes | None = None
    alternate_shapes: ExpectedShapes | None = None
    forbidden: frozenset[str] = frozenset()
    largest_norm: float = math.inf

    def valid(self, updates: Iterable[ClientUpdate],
              rejected: list[tuple[str, str]]) -> Iterator[ClientUpdate]:
        """Valid updates, at most one of a client, as they come; (client, reason) of the others is
        added to ``rejected``."""
        seen: set[str] = set()
        for update in updates:
            fault = "replied twice" if update.client in seen else None
            if update.client in self.forbidden:
                fault = "is a proxy"
            seen.add(update.client)
            fault = fault or self._fault(update)
            if fault is None:
                yield update
            else:
                rejected.append((update.client, fault))

    def _expected(self, update: ClientUpdate) -> Tensors | None:
        """What the update must look like; None where its client was not asked."""
        expected = self.expected_shapes
        found = self.template if expected is None else expected.get(update.client)
        other = (self.alternate_shapes or {}).get(update.client)
        if found is not None and other is not None and _shapes(update.tensors) == _shapes(other):
            return other
        return found

    def _fault(self, update: ClientUpdate) -> str | None:
        """What is wrong with one update, or None."""
        template = self._expected(update)
        if template is None:
            return "was not asked"
        if update.tensors.keys() != template.keys():
            return "names of its tensors differ"
        if not 0 <= update.weight < math.inf:
            return "weight is not a finite number >= 0"
        if not all(isinstance(value, int | float) for value in update.info.values()):
            return "info holds something else than numbers"
        for name in sorted(template):
            if fault := _form_fault(update.tensors[name], template[name]):
                return f"{name} {fault}"
        about = length(update.tensors.values())
        if not about < SURELY_FINITE:
            for name in sorted(template):
                if not torch.isfinite(update.tensors[name].detach().to("cpu", torch.float32)).all():
                    return f"{name} holds NaN or infinity"
        if self._too_long(update.tensors, about):
            return f"its norm is above {self.largest_norm:g} (federation.max_norm)"
        return None

    def _too_long(self, update: Tensors, about: float) -> bool:
        """Whether an update of about this norm is longer than allowed; near the bound, and where
        squares overflow, the norm is computed with care."""
        if self.largest_norm == math.inf or about < self.largest_norm * SURELY_SHORTER:
            return False
        return norm(update) > self.largest_norm


def _form_fault(value: object, template: Tensor) -> str | None:
    """What is wrong with the form of one tensor, or None."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return "is not a dense floating tensor"
    if not value.is_floating_point():
        return "is not a dense floating tensor"
    if value.shape != template.shape:
        return "has another shape"
    return None


def _shapes(update: Tensors) -> dict[str, object]:
    return {name: getattr(value, "shape", None) for name, value in update.items()}


def unsplit(updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
    """The updates as they come.

    Raises:
        PrivacyError: one comes of a split model, whose activations have left the site beside the
            aggregator.
    """
    for update in updates:
        require("wire_up_bytes" not in update.info, PrivacyError,
                f"client '{update.client}' is split: activations of single records leave the site; "
                "use 'local' or 'proxy'")
        yield update
