"""What sites remember, as tensors that can be saved: equal objects are stored once and come back as
one object.

A site's memory is a dictionary of plain values, tensors, and dictionaries of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aulait.core.files import JsonMapping, JsonObject
from aulait.core.types import Tensors

PREFIX = "memory/"
Memories = dict[str, JsonObject]  # client -> what its site remembers


def packed(memory: Mapping[str, JsonMapping],
           prefix: str = PREFIX) -> tuple[Tensors, JsonObject]:
    """(tensors by number under a prefix, plain values that name them) of the memories of all sites;
    sites that remember nothing are left out."""
    numbers: dict[int, int] = {}
    stored: Tensors = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            number = numbers.setdefault(id(value), len(numbers))
            stored[f"{prefix}{number}"] = value
            return {"tensor": number}
        if isinstance(value, Mapping):
            return {"mapping": {key: plain(own) for key, own in value.items()}}
        return {"value": value}

    return stored, {name: plain(own) for name, own in memory.items() if own}


def unpacked(tensors: Tensors, remembered: JsonMapping, prefix: str = PREFIX) -> Memories:
    """The memories again; mappings of the very same tensors become one object."""
    made: dict[tuple[Any, ...], JsonObject] = {}

    def full(node: JsonMapping) -> Any:
        if "tensor" in node:
            return tensors[f"{prefix}{node['tensor']}"]
        if "mapping" not in node:
            return node["value"]
        inner = node["mapping"]
        if inner and all("tensor" in own for own in inner.values()):
            key = tuple((name, own["tensor"]) for name, own in inner.items())
            return made.setdefault(key, {name: full(own) for name, own in inner.items()})
        return {name: full(own) for name, own in inner.items()}

    return {name: full(own) for name, own in remembered.items()}
