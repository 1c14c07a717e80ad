"""Names of LoRA factors: which of the two matrices of a layer, and how a tensor of one is called.

An adapted layer has A of shape (R, N) and B of shape (M, R). On the wire and on disk a factor is
called ``layer.A`` or ``layer.B``; ``FactorName`` is that name taken apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeVar

from aulait.core.errors import WireError

T = TypeVar("T")


class Factor(StrEnum):
    """One of the two matrices of a layer."""

    A = "A"
    B = "B"

    @property
    def rank_axis(self) -> int:
        """Along which axis the rank counts: A has it in its rows, B in its columns."""
        return 0 if self is Factor.A else 1

    def of(self, pair: tuple[T, T]) -> T:
        """This one of a pair (A, B)."""
        return pair[0] if self is Factor.A else pair[1]


class Trainable(StrEnum):
    """Which factors are trained; the others stay as they are."""

    A = "A"
    B = "B"
    AB = "AB"

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Them, A before B."""
        return tuple(Factor(letter) for letter in self.value)

    def of(self, pair: tuple[T, T]) -> tuple[T, ...]:
        """The trained ones of a pair (A, B)."""
        return tuple(factor.of(pair) for factor in self.factors)


@dataclass(frozen=True, slots=True)
class FactorName:
    """One factor of one layer. ``str`` of it is its name on the wire and on disk."""

    layer: str
    factor: Factor

    def __str__(self) -> str:
        return f"{self.layer}.{self.factor.value}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The name ``layer.A`` or ``layer.B``, taken apart.

        Raises:
            WireError: it is no such name.
        """
        layer, _, letter = name.rpartition(".")
        if not layer or letter not in ("A", "B"):
            raise WireError(f"tensor '{name[:200]}' found, expected a name as 'layer.A' or "
                            "'layer.B'")
        return cls(layer, Factor(letter))

    @classmethod
    def names_one(cls, name: str) -> bool:
        """Whether a tensor of this name is a factor."""
        return name.endswith((".A", ".B")) and len(name) > 2

    @property
    def partner(self) -> FactorName:
        """The other factor of the layer."""
        return FactorName(self.layer, Factor.B if self.factor is Factor.A else Factor.A)
