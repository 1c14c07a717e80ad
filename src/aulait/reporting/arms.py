"""Which runs are repetitions of one another: the arm's label, told apart where runs under one label
differ in more than the seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from aulait.reporting.folder import RunFiles
from aulait.reporting.values import value_at, words

ASIDE = ("run", "engine")
"""Tables of the settings that do not make another arm."""


def runs_by_arm(runs: Iterable[RunFiles]) -> dict[str, list[RunFiles]]:
    """Runs by arm, arms in the order of their first run.

    Runs of one label are one arm, unless they are of several methods or a seed occurs twice with
    different settings; then the label goes on with what they differ in.
    """
    groups: dict[str, list[RunFiles]] = {}
    for label, members in _by(runs, arm_label).items():
        methods = _by(members, method_name)
        for method, same in methods.items():
            groups |= _by_settings(f"{label} {method}" if len(methods) > 1 else label, same)
    return groups


def arm_label(run: RunFiles) -> str:
    """The label that runs are grouped under: arm, or else the name, or else the folder."""
    return run.result.arm or run.result.name or run.path.name


def plain_label(label: object) -> str:
    """A label for people: "name=fedit preset=uniform" is "fedit preset=uniform"."""
    words = str(label).split(" ")
    return " ".join(word.removeprefix("name=") or word for word in words)


def method_name(run: RunFiles) -> str:
    """The name of the method; a question mark where it is not recorded."""
    return run.result.algorithm or words(value_at(run.config, "algorithm", "name")) or "?"


def _by_settings(name: str, members: Sequence[RunFiles]) -> dict[str, list[RunFiles]]:
    """One arm, or several where a seed occurs twice with different settings."""
    seeds = [run.result.seed for run in members]
    trees = [_flat_settings(run.config) for run in members]
    differing = [key for key in dict.fromkeys(key for tree in trees for key in tree)
                 if len({tree.get(key) for tree in trees}) > 1]
    if len(set(seeds)) == len(seeds) or not differing:
        return {name: list(members)}
    if "federation.preset" in differing:
        differing = [key for key in differing if not key.startswith("federation.tier")]
    found: dict[str, list[RunFiles]] = {}
    for run, tree in zip(members, trees, strict=True):
        says = " ".join(f"{key.rpartition('.')[2]}={tree.get(key, 'none')}"
                        for key in differing[:4])
        found.setdefault(f"{name} {says}", []).append(run)
    return found


def _flat_settings(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """The settings as dotted key -> value in words."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if not prefix and key in ASIDE:
            continue
        if isinstance(value, Mapping):
            found |= _flat_settings(value, f"{prefix}{key}.")
            continue
        listed = value if isinstance(value, list) else []
        named = {name: item for item in listed
                 if isinstance(item, Mapping) and (name := words(item.get("name")))}
        if named and len(named) == sum(isinstance(item, Mapping) for item in listed):
            for name, item in named.items():  # tiers, told apart by their names
                found |= _flat_settings(item, f"{prefix}{key}.{name}.")
        else:
            found[f"{prefix}{key}"] = (
                value if isinstance(value, str) else json.dumps(value, default=str)
            )
    return found


def _by(runs: Iterable[RunFiles], key: Callable[[RunFiles], str]) -> dict[str, list[RunFiles]]:
    groups: dict[str, list[RunFiles]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups
