"""Write what is made from the code: the pages of the keys of an experiment file and of the
commands, the JSON schema for editors, what ``aulait list`` shows, and the commands' help.

    python scripts/write_reference.py

A test compares what lies in the tree with what this writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import typer

from aulait.cli import COMMANDS, function_of, loaded
from aulait.cli.catalogue import catalogued
from aulait.cli.written_help import described
from aulait.runs import key_reference
from aulait.runs.key_reference import Key

ROOT = Path(__file__).resolve().parents[1]
MADE = "<!-- Made by scripts/write_reference.py from the code; change it there. -->"


def config_page() -> str:
    """docs/config.md: a section a table, a row a key."""
    lines = [
        MADE, "", "# Keys of an experiment file", "",
        "An experiment is one TOML file. Every key has a default but those marked *required*; "
        "where the default is *none*, leaving the key out means that there is none. "
        "`aulait config KEY` shows one of these entries in the terminal, and "
        "[experiment.schema.json](experiment.schema.json) lets an editor check and complete a "
        "file while it is written: the first line `#:schema PATH-OR-URL` names it to editors "
        "with TOML support.", "",
        "A key can be overridden for one run: `aulait run FILE --set train.rounds=3`.", ""]
    for table, found in groupby(key_reference.keys(), key=_table):
        group = list(found)
        lines += [f"## `[{table}]`" if not table.endswith("[]") else f"## `[[{table[:-2]}]]`", ""]
        lines += _algorithm(group) if table == "algorithm" else _rows(group)
        lines.append("")
    return "\n".join(lines)


def cli_page() -> str:
    """docs/cli.md: a section a command, with its usage, arguments and options."""
    lines = [
        MADE, "", "# Commands", "",
        "Every command explains itself with `--help`. Where a command has `--json`, it prints one "
        "JSON document on stdout and everything else on stderr. Exit status: 0 when all is well, "
        "2 for a problem that is told in one line, 130 when interrupted; other numbers stand with "
        "their command.", "", "| command | what |", "| --- | --- |"]
    lines += [f"| [`aulait {name}`](#aulait-{name}) | {_first_sentence(loaded(name))} |"
              for name in COMMANDS] + [""]
    for name in COMMANDS:
        lines += _command(f"aulait {name}", loaded(name), "##")
    return "\n".join(lines)


def schema_file() -> str:
    """docs/experiment.schema.json."""
    return json.dumps(key_reference.schema(), indent=1, ensure_ascii=False) + "\n"


def listed() -> str:
    """What ``aulait list`` shows of the package itself, which it would load torch to find out."""
    return json.dumps(catalogued(others=False)[0], indent=1, ensure_ascii=False) + "\n"


def helps() -> str:
    """What the help of each command shows, which would load torch otherwise."""
    told = {name: described(function_of(name)) for name in COMMANDS}
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


PAGES = {"docs/config.md": config_page, "docs/cli.md": cli_page,
         "docs/experiment.schema.json": schema_file, "src/aulait/cli/built_in.json": listed,
         "src/aulait/cli/command_help.json": helps}


def _table(key: Key) -> str:
    return key.name.rpartition(".")[0]


def _rows(keys: Sequence[Key]) -> list[str]:
    head = ["| key | default | type | meaning |", "| --- | --- | --- | --- |"]
    return head + [
        f"| `{key.name.rpartition('.')[2]}` | {_default(key)} | {_cell(key.kind)} | "
        f"{_cell(key.description)} |" for key in keys]


def _algorithm(keys: Sequence[Key]) -> list[str]:
    """The keys of the methods, each with those that know it."""
    head = ["| key | methods | default | type | meaning |", "| --- | --- | --- | --- | --- |"]
    return head + [
        f"| `{key.name.rpartition('.')[2]}` | {', '.join(key.methods) or 'every'} | "
        f"{_default(key)} | {_cell(key.kind)} | {_cell(key.description)} |" for key in keys]


def _default(key: Key) -> str:
    return f"*{key.default}*" if key.default in ("none", "required") else _cell(f"`{key.default}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _command(name: str, command: Any, level: str) -> list[str]:
    """A command's section, and those of the commands within it."""
    lines = [f"{level} `{name}`", "", _plain(command.help or ""), ""]
    inner = getattr(command, "commands", None)
    if inner:
        return lines + [line for key, each in inner.items()
                        for line in _command(f"{name} {key}", each, level + "#")]
    shown = [item for item in command.params if not getattr(item, "hidden", False)]
    arguments = [item for item in shown if item.param_type_name == "argument"]
    words = " ".join([name, *(["[OPTIONS]"] if len(arguments) < len(shown) else []),
                      *(item.make_metavar(_context(command)) for item in arguments)])
    lines += ["```text", words, "```", ""]
    for item in shown:
        lines.append(f"- {_names(item, command)}: {_plain(item.help or '')}{_said(item)}")
    return [*lines, ""] if shown else lines


def _first_sentence(command: Any) -> str:
    """Of a command's help, without its full stop."""
    return re.split(r"\.(?: |$)", _plain(command.help or ""), maxsplit=1)[0]


def _names(item: Any, command: Any) -> str:
    """An argument or option as it is typed."""
    metavar = item.make_metavar(_context(command))
    if item.param_type_name == "argument":
        return f"`{metavar}`"
    names = ", ".join(f"`{name}`" for name in [*item.opts, *item.secondary_opts])
    return names if item.is_flag else f"{names} `{metavar}`"


def _said(item: Any) -> str:
    """The default, where there is one to tell."""
    flag = getattr(item, "is_flag", False)
    told = item.default if isinstance(item.default, str | int | float) else None
    return "" if flag or told is None or isinstance(told, bool) else f" Default: `{told}`."


def _context(command: Any) -> Any:
    return typer.Context(command)


def _plain(text: str) -> str:
    return " ".join(text.replace("\b", "").split()).replace("<", "&lt;").replace("|", "\\|")


def main() -> None:
    """Write every page that differs."""
    for name, made in PAGES.items():
        path, text = ROOT / name, made()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
