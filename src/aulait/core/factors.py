"""Names of LoRA factors: which matrix of a layer, and how a tensor of one is called.

An adapted layer has A of shape (R, N) and B of shape (M, R); where both are fixed and public it has
a core of shape (R, R) between them, named R. On the wire and on disk a factor is called
``layer.A``, ``layer.B`` or ``layer.R``; ``FactorName`` is that name taken apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeVar

from aulait.core.errors import WireError, require

T = TypeVar("T")
_RANK_AXES = {"A": (0,), "B": (1,), "R": (0, 1)}


class Factor(StrEnum):
    """One of the matrices of a layer: A, B, or the core R between them."""

    A = "A"
    B = "B"
    R = "R"

    @property
    def rank_axes(self) -> tuple[int, ...]:
        """Along which axes the rank counts: A has it in its rows, B in its columns, a core in
        both."""
        return _RANK_AXES[self.value]

    def entries(self, shape: tuple[int, int], rank: int) -> int:
        """Numbers of this factor in a layer of (M, N) at a rank."""
        m, n = shape
        return rank * {"A": n, "B": m, "R": rank}[self.value]

    def of(self, pair: tuple[T, T]) -> T:
        """This one of a pair (A, B); a core is in no pair.

        Raises:
            WireError: it is the core.
        """
        require(self is not Factor.R, WireError,
                "a core R found where A or B was expected; read it by its own name")
        return pair[0] if self is Factor.A else pair[1]


_FACTORS = {letters: tuple(Factor(letter) for letter in letters)
            for letters in ("A", "B", "AB", "R")}


class Trainable(StrEnum):
    """Which factors are trained; the others stay as they are."""

    A = "A"
    B = "B"
    AB = "AB"
    R = "R"

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Them, A before B."""
        return _FACTORS[self.value]

    def entries(self, shape: tuple[int, int], rank: int) -> int:
        """Numbers that are trained in a layer of (M, N) at a rank."""
        return sum(factor.entries(shape, rank) for factor in self.factors)

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
        """The name ``layer.A``, ``layer.B`` or ``layer.R``, taken apart.

        Raises:
            WireError: it is no such name.
        """
        layer, _, letter = name.rpartition(".")
        if not layer or letter not in _RANK_AXES:
            raise WireError(f"tensor '{name[:200]}' found, expected a name as 'layer.A', "
                            "'layer.B' or 'layer.R'")
        return cls(layer, _FACTORS[letter][0])

    @classmethod
    def names_one(cls, name: str) -> bool:
        """Whether a tensor of this name is a factor."""
        return name.endswith((".A", ".B", ".R")) and len(name) > 2

    @property
    def partner(self) -> FactorName:
        """The other factor of the pair (A, B) of the layer."""
        return FactorName(self.layer, Factor.B if self.factor is Factor.A else Factor.A)
