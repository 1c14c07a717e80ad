"""``aulait config``: what can be written in an experiment file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption
from aulait.core.errors import ConfigError, nearest, require
from aulait.runs import key_reference
from aulait.runs.key_reference import Key

KeyArgument = Annotated[str | None, typer.Argument(
    metavar="[KEY]", help="A key, as train.rounds, or a table, as train. Default: all keys.")]
SchemaOption = Annotated[bool, typer.Option(
    "--schema", help="Print the JSON schema of an experiment file, for an editor.")]


def config(key: KeyArgument = None, schema: SchemaOption = False,
           as_json: JsonOption = False) -> None:
    """Explain the keys of an experiment file: what each is, its type, its bounds and its
    default."""
    if schema:
        terminal.say(json.dumps(key_reference.schema(), indent=2))
        return
    found = asked(key_reference.keys(), key)
    if as_json:
        terminal.document([asdict(each) for each in found])
    elif key is not None and all(each.name == key for each in found):
        for each in found:
            _in_full(each)
    else:
        _listed(found)


def asked(known: Sequence[Key], name: str | None) -> list[Key]:
    """The keys of a name: one key (for several methods, one entry each), a table's, or all.

    Raises:
        ConfigError: there is no such key or table.
    """
    if name is None:
        return list(known)
    found = ([key for key in known if key.name == name]
             or [key for key in known if key.name.startswith((f"{name}.", f"{name}[]."))])
    require(bool(found), ConfigError,
            f"no key '{name}'; {_expected(name, known)}")
    return found


def _expected(name: str, known: Sequence[Key]) -> str:
    """What may have been meant: keys so called in their tables, a key of nearly that name, or what
    there is."""
    names = list(dict.fromkeys(key.name for key in known))
    if same := [other for other in names if other.rpartition(".")[2] == name]:
        return f"did you mean {' or '.join(repr(other) for other in same)}?"
    if close := nearest(name, names):
        return f"did you mean '{close}'?"
    tables = dict.fromkeys(other.partition(".")[0].removesuffix("[]") for other in names)
    return (f"expected a key or one of the tables {', '.join(tables)}; 'aulait config' without a "
            "name lists every key")


def _in_full(key: Key) -> None:
    terminal.heading(key.name + (f" (algorithm {', '.join(key.methods)})" if key.methods else ""))
    terminal.paragraph(key.description)
    terminal.say(f"  type: {key.kind}")
    terminal.say(f"  default: {key.default}")


def _listed(found: Sequence[Key]) -> None:
    """One paragraph a key, which needs no columns."""
    for key in found:
        terminal.heading(f"{key.name} = {key.default}")
        terminal.paragraph(key.description, indent="    ")
