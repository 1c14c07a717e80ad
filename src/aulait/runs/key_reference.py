"""Every key of an experiment file, described from the models that read it: what it is, its type,
its bounds and its default.

The words are those of the ``Attributes:`` part of each model's docstring, so that they are written
once. ``aulait config``, docs/config.md and the JSON schema for editors are made from here.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aulait.core.files import JsonObject
from aulait.methods import METHODS
from aulait.models.loading import or_auto
from aulait.runs.experiment_file import Settings

SCHEMA = "https://json-schema.org/draft/2020-12/schema"
WORDS: Mapping[object, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false"}
BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}",
          "min_length": "of length at least {}", "max_length": "of length at most {}"}
_SECTION = re.compile(r"^(\w[\w ]*):$")
_ENTRY = re.compile(r"^ {4}(\w[\w, ]*): (.*)$")


@dataclass(frozen=True)
class Key:
    """One key of an experiment file.

    Attributes:
        name: with its table, as "train.rounds"; "federation.tier[].rank" in a list of tables.
        description: one paragraph.
        kind: the type in words, with the bounds that the model states.
        default: as TOML writes it; "none" where leaving the key out means that there is none;
            "required" where it cannot be left out.
        methods: the methods that know it; empty for the keys that every run has.
    """

    name: str
    description: str
    kind: str
    default: str
    methods: tuple[str, ...] = ()


def keys() -> list[Key]:
    """Every key, in the order of the tables; those of methods together, each with the methods that
    know it. Third parties' methods are not among them."""
    found: list[Key] = []
    for table, field in Settings.model_fields.items():
        if table == "algorithm":
            found += _method_keys()
        else:
            assert field.annotation is not None
            found += _keys_of(field.annotation, table)
    return found


def described(model: type[BaseModel]) -> dict[str, str]:
    """Field -> paragraph, from the ``Attributes:`` of the docstrings of a model and its bases."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if kind is not BaseModel and issubclass(kind, BaseModel):
            found |= _attributes(inspect.cleandoc(kind.__doc__ or ""))
    return {name: text for name, text in found.items() if name in model.model_fields}


def schema() -> JsonObject:
    """The JSON schema of an experiment file, for editors.

    Methods of third parties are let through with any keys.
    """
    tree: JsonObject = Settings.model_json_schema()
    for definition, model in _models(Settings):
        part = tree["$defs"].get(definition)
        if part is not None:
            _describe(part, model)
    names = METHODS.names()
    tree["properties"]["algorithm"] = {
        "description": "The method and its own settings.", "type": "object",
        "properties": {"name": {"type": "string", "default": "ffa",
                                "description": _METHOD_NAME}},
        "allOf": [_when(name, METHODS.find(name).Config) for name in names]}
    return {"$schema": SCHEMA, "title": "An experiment of aulait", **tree}


_METHOD_NAME = "The method that merges what clients learn; 'aulait list' shows them."


def _when(name: str, config: type[BaseModel]) -> JsonObject:
    """The keys of ``[algorithm]`` where it names one method."""
    own: JsonObject = config.model_json_schema()
    _describe(own, config)
    return {"if": {"properties": {"name": {"const": name}}, "required": ["name"]},
            "then": {"properties": {"name": {}, **own["properties"]},
                     "additionalProperties": False}}


def _describe(part: JsonObject, model: type[BaseModel]) -> None:
    """Put the paragraphs of a model's docstring beside the properties of its schema."""
    part.pop("description", None)
    for name, text in described(model).items():
        part["properties"][name]["description"] = text


def _models(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A model's tables and theirs, with the names under which a JSON schema defines them."""
    for field in model.model_fields.values():
        for kind in _tables(field.annotation):
            yield kind.__name__, kind
            yield from _models(kind)


def _tables(annotation: object) -> list[type[BaseModel]]:
    """The models in a type: itself, the members of a union, the items of a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _tables(part)]


def _method_keys() -> list[Key]:
    """The keys of ``[algorithm]``: the same key of several methods once, where all is the same."""
    found = [Key("algorithm.name", _METHOD_NAME, "text", '"ffa"')]
    for name in METHODS.names():
        for key in _keys_of(METHODS.find(name).Config, "algorithm"):
            at = next((i for i, other in enumerate(found)
                       if replace(other, methods=()) == key), None)
            if at is None:
                found.append(replace(key, methods=(name,)))
            else:
                found[at] = replace(found[at], methods=(*found[at].methods, name))
    return found


def _keys_of(annotation: object, place: str) -> Iterator[Key]:
    """The keys of a table, and of the tables within."""
    (model,) = _tables(annotation)
    words = described(model)
    for name, field in model.model_fields.items():
        inner, many = _tables(field.annotation), get_origin(field.annotation) is tuple
        if inner:
            yield from _keys_of(inner[0], f"{place}.{name}" + ("[]" if many else ""))
        else:
            yield Key(f"{place}.{name}", words.get(name, ""), _kind(field), _default(field))


def _kind(field: FieldInfo) -> str:
    """The type of a field in words, and its bounds."""
    bounds = [words.format(getattr(item, bound)) for item in field.metadata
              for bound, words in BOUNDS.items() if getattr(item, bound, None) is not None]
    kind = ", ".join([_type(field.annotation), *bounds])
    return f'{kind}, or "auto"' if field.json_schema_extra is or_auto else kind


def _type(annotation: object) -> str:
    """A type in words; that a key may be left out is said by its default."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(_toml(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"a list, each {_type(parts[0])}"
    if origin in (dict, Mapping):
        return "a table"
    if origin is not None:  # with bounds
        return _type(parts[0])
    return WORDS[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else _toml(value)


def _toml(value: object) -> str:
    """A plain value as TOML writes it, on one line."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return tomli_w.dumps({"v": value}).partition("=")[2].strip()


def _attributes(text: str) -> dict[str, str]:
    """Name -> paragraph, of the ``Attributes:`` section of a docstring without its indentation."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in text.splitlines():
        if section := _SECTION.match(line):
            inside = section[1] == "Attributes"
        elif inside and (entry := _ENTRY.match(line)):
            names = [name.strip() for name in entry[1].split(",")]
            found |= dict.fromkeys(names, entry[2].strip())
        elif inside and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text.replace("``", "") for name, text in found.items()}
