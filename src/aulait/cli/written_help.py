"""What a command's help tells of it, without the command: its words, arguments and options.

A command's module loads what the command works with, which takes seconds. ``command_help.json``
beside this file holds what the help needs; ``scripts/write_reference.py`` writes it from the
commands, and a test compares the two.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from aulait.cli.terminal import PlainCommand
from aulait.core.errors import ConfigError
from aulait.core.files import JsonObject

Callback: TypeAlias = Callable[..., object]

_TYPES: dict[str, type] = {
    "path": Path, "text": str, "whole": int, "number": float, "flag": bool}


def described(found: Callback | typer.Typer) -> JsonObject:
    """A command, or a group of them, as the file holds it."""
    if not isinstance(found, typer.Typer):
        return {"help": inspect.getdoc(found), "parameters": dict(_parameters(found))}
    return {"help": found.info.help, "commands": {
        command.name: described(command.callback) for command in found.registered_commands
        if command.callback is not None}}


def stand_in(name: str) -> Callback | typer.Typer:
    """What has the help of a command, and cannot be run."""
    text = (files("aulait") / "cli" / "command_help.json").read_text(encoding="utf-8")
    return _group(name, json.loads(text)[name])


def _group(name: str, told: JsonObject) -> Callback | typer.Typer:
    if "commands" not in told:
        return _function(told)
    group = typer.Typer(name=name, help=told["help"], invoke_without_command=True,
                        add_completion=False)
    group.callback()(lambda: None)
    for inner, own in told["commands"].items():
        group.command(inner, cls=PlainCommand)(_function(own))
    return group


def _parameters(function: Callback) -> Iterator[tuple[str, JsonObject]]:
    """The arguments and options of a command's function."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if get_origin(hints[name]) is not Annotated:
            continue  # what typer gives it without asking anybody
        kind, info = get_args(hints[name])[:2]
        wanted = [info.default, *(info.param_decls or ())]
        plain = vars(typer.Option() if isinstance(info, OptionInfo) else typer.Argument())
        told = {"option": isinstance(info, OptionInfo), "type": _type_in_words(kind),
                "names": [word for word in wanted if word is not ...],
                "settings": {key: value for key, value in vars(info).items()
                             if key not in ("default", "param_decls") and value != plain[key]}}
        if parameter.default is not parameter.empty:
            told["default"] = (str(parameter.default) if isinstance(parameter.default, Path)
                               else parameter.default)
        yield name, told


def _type_in_words(kind: object) -> JsonObject:
    """A type of an argument or option: one of _TYPES or some words, whether there may be none, and
    whether it is a list of them."""
    none = NoneType in get_args(kind)
    some = [one for one in get_args(kind) if one is not NoneType] if none else [kind]
    if len(some) != 1:
        raise TypeError(f"{kind} is a type of a command's parameter that its help cannot hold")
    many = get_origin(some[0]) is list
    one = get_args(some[0])[0] if many else some[0]
    words = list(get_args(one)) if get_origin(one) is Literal else None
    name = None if words else next(name for name, known in _TYPES.items() if known is one)
    return {"name": name, "words": words, "many": many, "none": none}


def _function(told: JsonObject) -> Callback:
    """A function that says of itself what the command's says."""
    def never(**given: object) -> None:
        raise ConfigError("found --help where an option expects its value; give it one, or write "
                          "--help alone")

    parameters = []
    for name, own in told["parameters"].items():
        made = typer.Option if own["option"] else typer.Argument
        default = own.get("default", inspect.Parameter.empty)
        if own["type"]["name"] == "path" and isinstance(default, str):
            default = Path(default)
        parameters.append(inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default,
            annotation=Annotated[_type(own["type"]), made(*own["names"], **own["settings"])]))
    never.__doc__ = told["help"]
    never.__annotations__ = {own.name: own.annotation for own in parameters}
    never.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return never


def _type(told: JsonObject) -> Any:
    """The type of these words."""
    one: Any = Literal[tuple(told["words"])] if told["words"] else _TYPES[told["name"]]
    many: Any = GenericAlias(list, (one,)) if told["many"] else one
    return many | None if told["none"] else many
