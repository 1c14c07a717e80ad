"""Whose turn it is, where fixed cohorts of clients take turns; without torch, for the plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CohortTurn:
    """Whose turn it is where fixed cohorts take turns.

    Attributes:
        number: of the cohort, from 0.
        cohorts: how many there are; the same one comes again after so many rounds.
    """

    number: int
    cohorts: int

    @classmethod
    def of_round(cls, round: int, cohorts: int) -> CohortTurn | None:
        """The turn of a round, counted from 1; None where there is one cohort."""
        return None if cohorts == 1 else cls((round - 1) % cohorts, cohorts)
