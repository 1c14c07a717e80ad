"""Every command line that a reader may paste: its command, its options, the keys it sets, and the
experiment files it names exist."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from aulait.cli import COMMANDS, app, loaded
from aulait.methods import METHODS
from aulait.runs.key_reference import keys

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
         *sorted((ROOT / "results").glob("*.md"))]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))
# words that stand for a reader's own, or end a line of prose
END = re.compile(r"(?:\s+(?:#|>|\||&&|;).*)$")
TABLES = {key.name.partition(".")[0] for key in keys()}
KNOWN = {re.sub(r"\[\]", "", key.name) for key in keys()}


def _lines(path: Path) -> list[str]:
    """Lines of code blocks (indented or fenced) and whole comments that begin with a command;
    backslashes join a line with the next."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        text = "\n".join("    " + line[1:].strip() for line in text.splitlines()
                         if line.startswith("#   "))
    text = text.replace("\\\n", " ")
    found, fenced = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        bare = re.sub(r"^\$ ", "", line.strip())
        bare = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", bare)
        if (fenced or line.startswith("    ")) and bare.startswith("aulait "):
            found.append(END.sub("", bare))
    return found


CASES = [pytest.param(line, id=f"{path.relative_to(ROOT)}: {line[:60]}")
         for path in [*PAGES, *EXPERIMENTS] for line in _lines(path)
         if path.name not in ("cli.md",)]


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """The command of a line, and what follows its name."""
    assert words[0] in COMMANDS, f"aulait has no command '{words[0]}'"
    command, rest = loaded(words[0]), words[1:]
    while getattr(command, "commands", None) and rest:
        assert rest[0] in command.commands
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def _known_key(key: str) -> bool:
    """Whether a key, with or without an index of a tier, is one of an experiment file."""
    bare = re.sub(r"\.\d+(?=\.|$)", "", key)
    if bare in TABLES or bare in ("federation.tier", "KEY"):
        return True
    if bare.startswith("algorithm."):
        return any(bare.partition(".")[2] in METHODS.find(name).Config.model_fields
                   for name in METHODS.names()) or bare == "algorithm.name"
    return bare in KNOWN


@pytest.mark.parametrize("line", CASES)
def test_a_command_line_can_be_pasted(line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        assert CliRunner().invoke(app, words).exit_code == 0
        return
    command, rest = _command([word for word in words if word != "..."])  # and more of the kind
    if "--help" in rest:
        return
    context = typer.Context(command, info_name=words[0])
    values, left, _ = command.make_parser(context).parse_args(rest)
    assert not left or any(item.nargs == -1 for item in command.params), f"too many: {left}"
    arms = [word for arm in values.get("arm") or [] for word in shlex.split(
        arm.partition(":")[2])]
    for item in [*(values.get("overrides") or []), *(values.get("over") or []), *arms]:
        assert _known_key(item.partition("=")[0]), f"no key '{item.partition('=')[0]}'"
    for word in rest:
        if word.startswith("experiments/"):
            assert (ROOT / word).is_file(), word


def test_there_are_lines_to_check() -> None:
    assert len(CASES) > 40


@pytest.mark.parametrize("path", [*PAGES, *EXPERIMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_of_several_lines_is_joined(path: Path) -> None:
    """Else the shell would take its first line alone."""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
    for before, line in pairwise(lines):
        if re.match(r"--(?:arm|over|set|seeds|out)\b", line) and re.match(r"aulait |--", before):
            assert before.endswith("\\"), f"{before[:60]} ends without a backslash"
