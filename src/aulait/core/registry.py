"""Names to builders: methods, data sources, generators, embedders.

A third party adds its own through the entry-point group ``aulait.<kind>``; entry points are read
only when a name is not found among the built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from aulait.core.errors import ConfigError, did_you_mean

_TABLES: dict[str, dict[str, Any]] = {}


def register(kind: str, name: str) -> Callable[[Any], Any]:
    """Decorator that files an object under ``kind`` and ``name``.

    Raises:
        ConfigError: the name is taken.
    """

    def file(thing: Any) -> Any:
        table = _TABLES.setdefault(kind, {})
        if name in table and table[name] is not thing:
            raise ConfigError(f"{kind} '{name}' is registered twice; choose another name")
        table[name] = thing
        return thing

    return file


def find(kind: str, name: str) -> Any:
    """The object filed under ``kind`` and ``name``.

    Raises:
        ConfigError: nothing has that name; the message names the nearest one.
    """
    table = _TABLES.setdefault(kind, {})
    if name not in table:
        for point in entry_points(group=f"aulait.{kind}"):
            table.setdefault(point.name, point.load())
    if name not in table:
        raise ConfigError(f"{kind} '{name}' is unknown; {did_you_mean(name, table)}")
    return table[name]


def names(kind: str) -> list[str]:
    """All built-in and already loaded names of a kind, sorted."""
    return sorted(_TABLES.get(kind, {}))
