"""Who must stay in a round of secure aggregation, and who may collude; without torch, so that a
plan can be held against it before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Quorum:
    """Who must stay, and who may collude.

    Attributes:
        least: the fewest clients whose sum is released, and that must answer to the end.
        colluders: the most clients that work with the coordinator.
    """

    least: int
    colluders: int

    @classmethod
    def of(cls, planned: int, dropouts: float, colluders: int) -> Self:
        """That of a round planned for so many clients, of whom a share may drop out."""
        return cls(math.ceil((1.0 - dropouts) * planned - 1e-9), colluders)

    @property
    def honest(self) -> int:
        """The fewest clients whose noise nobody else knows."""
        return self.least - self.colluders

    def agreeing(self, clients: int) -> int:
        """Signatures under one list of survivors without which a client reveals nothing: more
        than half of all clients and colluders together, so no two lists can have them."""
        return (clients + self.colluders) // 2 + 1

    def holds(self, clients: int) -> bool:
        """Whether a round of so many can keep the promise."""
        return (3 <= self.least <= clients and self.honest >= 2 and self.colluders >= 0
                and 2 * self.least > clients + max(self.colluders, 1))

    def problem(self, clients: int, who: str) -> str | None:
        """Why it cannot, in one line; None where it can."""
        if self.holds(clients):
            return None
        return (f"privacy.trust = 'secure' found with {clients} {who}, of whom {self.least} must "
                f"stay and {self.colluders} may collude, expected at least 3 that stay, 2 of them "
                "honest, and more than half of clients and colluders together; lower "
                "privacy.dropouts or privacy.colluders, or set privacy.trust = \"server\"")
