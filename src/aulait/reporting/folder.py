"""Reads a run folder as it is: what is missing or broken becomes a remark, never a crash.

Everything in a run folder is untrusted: a value may have the wrong kind, a line may be cut off. The
readers here
only promise the outer shape (tables are tables, lines are tables); `number` and `words` check the
leaves.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aulait.core.errors import DataError

Table = Mapping[str, Any]

MISSING: Final = object()
"""Stands for a key that is not there; null is a value (an infinite epsilon, for one)."""

LARGEST: Final = 1e100

FILES: Final = ("config.toml", "machine.json", "result.json", "rounds.jsonl", "ledger.jsonl",
                "synthetic.jsonl")


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        path: the folder.
        config_text: config.toml verbatim; None when there is none.
        config: config.toml as a tree; empty when missing or not TOML.
        machine: machine.json.
        result: result.json.
        rounds: lines of rounds.jsonl, both stages.
        ledger: lines of ledger.jsonl, in the order of release.
        synthetic: lines of synthetic.jsonl.
        remarks: one sentence for every file that could not be read in full.
    """

    path: Path
    config_text: str | None
    config: Table
    machine: Table
    result: Table
    rounds: tuple[Table, ...]
    ledger: tuple[Table, ...]
    synthetic: tuple[Table, ...]
    remarks: tuple[str, ...]

    def stage(self, name: str) -> tuple[Table, ...]:
        """The lines of one stage ("synthesis" or "train") in file order."""
        return tuple(line for line in self.rounds if line.get("stage") == name)

    @property
    def tiers(self) -> tuple[Table, ...]:
        """The tiers of the federation as the run resolved them."""
        return tables(self.result.get("tiers"))


def read(path: Path) -> Run:
    """Reads a run folder.

    Raises:
        DataError: the path is not a folder, or holds none of a run's files.
    """
    if not path.is_dir():
        raise DataError(
            f"found no folder {path}, expected a run folder; check the path or start a run first")
    if not any((path / name).is_file() for name in FILES):
        raise DataError(
            f"found no run in {path}, expected one of {', '.join(FILES)}; give the folder of a run")
    remarks: list[str] = []
    config_text = _text(path / "config.toml")
    return Run(
        path=path,
        config_text=config_text,
        config=_toml(config_text, remarks),
        machine=_json(path / "machine.json", remarks),
        result=_json(path / "result.json", remarks),
        rounds=_lines(path / "rounds.jsonl", remarks),
        ledger=_lines(path / "ledger.jsonl", remarks),
        synthetic=_lines(path / "synthetic.jsonl", remarks),
        remarks=tuple(remarks),
    )


def at(tree: Any, *keys: str, default: Any = None) -> Any:
    """The value under a path of keys; `default` when a step is missing or not a table."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return default
        tree = tree[key]
    return tree


def number(value: Any) -> float | None:
    """A number, or None for anything else: text, null, true, NaN, infinity, or beyond what any run
    could measure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -LARGEST <= value <= LARGEST else None


def words(value: Any) -> str | None:
    """A non-empty text, or None for anything else."""
    return value if isinstance(value, str) and value.strip() else None


def tables(value: Any) -> tuple[Table, ...]:
    """The tables in a list; empty for anything else."""
    return tuple(item for item in sequence(value) if isinstance(item, Mapping))


def sequence(value: Any) -> tuple[Any, ...]:
    """The items of a list; empty for anything else."""
    return tuple(value) if isinstance(value, list | tuple) else ()


def total(values: Iterable[Any]) -> float | None:
    """The sum of the numbers among the values; None when there is not one."""
    found = [n for n in map(number, values) if n is not None]
    return sum(found) if found else None


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _toml(text: str | None, remarks: list[str]) -> Table:
    try:
        return tomllib.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        remarks.append("config.toml is not valid TOML.")
        return {}


def _json(path: Path, remarks: list[str]) -> Table:
    text = _text(path)
    if text is None:
        return {}
    value = _parse(text)
    if isinstance(value, dict):
        return value
    remarks.append(f"{path.name} could not be read as JSON.")
    return {}


def _lines(path: Path, remarks: list[str]) -> tuple[Table, ...]:
    values = [_parse(line) for line in (_text(path) or "").split("\n") if line.strip()]
    found = tuple(value for value in values if isinstance(value, dict))
    if len(found) < len(values):
        remarks.append(
            f"{path.name}: {len(values) - len(found)} of {len(values)} lines could not be read.")
    return found


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return MISSING
