"""Reads loose values, whose kind nobody promises: settings, and numbers of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aulait.core.files import LARGEST_NUMBER


def value_at(tree: object, *keys: str) -> object:
    """The value under a path of keys; None when a step is missing or not a table."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def number(value: object) -> float | None:
    """A number, or None for anything else: text, null, true, NaN, infinity, or beyond what any run
    could measure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -LARGEST_NUMBER <= value <= LARGEST_NUMBER else None


def words(value: object) -> str | None:
    """A non-empty text, or None for anything else."""
    return value if isinstance(value, str) and value.strip() else None


def sum_of(values: Iterable[float | None]) -> float | None:
    """The sum of the numbers among the values; None when there is not one."""
    found = [value for value in values if value is not None]
    return sum(found) if found else None
