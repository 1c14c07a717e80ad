"""How files of JSON that others wrote are read: whatever is wrong with one is one line."""

from __future__ import annotations

from pathlib import Path

from aulait.core.errors import AulaitError
from aulait.core.files import JsonObject, JsonTree
from aulait.core.parsing import parsed_json, reason


def read_json(path: Path, kind: type[AulaitError], expected: str) -> JsonTree:
    """What a JSON file says.

    Args:
        path: of the file.
        kind: of the error.
        expected: for its message, with what to do.

    Raises:
        kind: the file cannot be read, or is no JSON.
    """
    try:
        tree: JsonTree = parsed_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise kind(f"{path} cannot be read ({reason(error)}), expected {expected}") from error
    return tree


def read_json_object(path: Path, kind: type[AulaitError], expected: str) -> JsonObject:
    """As ``read_json``, of a file that holds one object."""
    tree = read_json(path, kind, expected)
    if not isinstance(tree, dict):
        raise kind(f"{path} holds {type(tree).__name__}, expected an object: {expected}")
    return tree
