"""Which runs are repetitions of one another: the arm's label, told apart where runs under one label
differ in more than the seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aulait.reporting.folder import Run, at, number, tables, words

ASIDE = ("run", "engine")
"""Tables of the settings that do not make another arm."""


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by arm, arms in the order of their first run.

    Runs of one label are one arm, unless they are of several methods or a seed occurs twice with
    different settings; then the label goes on with what they differ in.
    """
    labelled = _by(runs, label)
    groups: dict[str, list[Run]] = {}
    for name, members in labelled.items():
        several = len({method(run) for run in members}) > 1
        for own, same in _by(members, lambda run: f"{name} {method(run)}" if several else name).items():  # noqa: B023
            groups |= _apart(own, same)
    return groups


def label(run: Run) -> str:
    """The label that runs are grouped under: arm, or else the name, or else the folder."""
    return words(run.result.get("arm")) or words(run.result.get("name")) or run.path.name


def method(run: Run) -> str:
    """The name of the method; a question mark where it is not recorded."""
    return words(run.result.get("algorithm")) or words(at(run.config, "algorithm", "name")) or "?"


def _apart(name: str, members: Sequence[Run]) -> dict[str, list[Run]]:
    """One arm, or several where a seed occurs twice with different settings."""
    seeds = [number(run.result.get("seed")) for run in members]
    trees = [_flat(run.config) for run in members]
    differing = [key for key in dict.fromkeys(key for tree in trees for key in tree)
                 if len({tree.get(key) for tree in trees}) > 1]
    if len(set(seeds)) == len(seeds) or not differing:
        return {name: list(members)}
    if "federation.preset" in differing:
        differing = [key for key in differing if not key.startswith("federation.tier")]
    found: dict[str, list[Run]] = {}
    for run, tree in zip(members, trees, strict=True):
        says = " ".join(f"{key.rpartition('.')[2]}={tree.get(key, 'none')}"
                        for key in differing[:4])
        found.setdefault(f"{name} {says}", []).append(run)
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings as dotted key -> value in words."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if not prefix and key in ASIDE:
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        # tiers, told apart by their names
        elif tables(value) and all(words(item.get("name")) for item in tables(value)):
            found |= {name: own for item in tables(value) for name,
                      own in _flat(item, f"{prefix}{key}.{item['name']}.").items()}
        else:
            found[f"{prefix}{key}"] = (
                value if isinstance(value, str) else json.dumps(value, default=str)
            )
    return found


def _by(runs: Iterable[Run], key: Any) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups
