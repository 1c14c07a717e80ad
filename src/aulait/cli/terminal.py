"""What the terminal shows: errors as one line, numbers with units, tables, one JSON document when
asked."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from aulait.core.errors import AulaitError
from aulait.core.files import JsonObject, plain_json

# click's UsageError, which newer typer carries inside itself
USAGE: Any = typer.BadParameter.__mro__[1]
INTERRUPTED = 130
# What a command prints with --json: plain values, under keys that are a public interface.
Document = JsonObject


class Commands(TyperGroup):
    """The command group: a problem becomes a red line on stderr and exit code 2, never a
    traceback."""

    def invoke(self, ctx: Any) -> object:
        """Run a command; AULAIT_TRACEBACK=1 lets errors through as they are."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            fail(f"interrupted; {stop}" if str(stop)
                 else "interrupted; nothing was left half-written")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except (AulaitError, OSError, USAGE) as error:
            if os.environ.get("AULAIT_TRACEBACK") == "1" and not isinstance(error, USAGE):
                raise
            fail(_in_words(error))
            raise typer.Exit(getattr(error, "exit_code", 2)
                             if isinstance(error, AulaitError) else 2) from None


class PlainCommand(TyperCommand):
    """A command whose help does not show where its docstring is broken into lines."""

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        joined = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        super().__init__(*args, help=joined, **settings)


def _in_words(error: Any) -> str:
    """An error in words, one line a problem."""
    if isinstance(error, AulaitError):
        return str(error)
    if isinstance(error, OSError):
        place = f" '{error.filename}'" if error.filename else ""
        reason = error.strerror or error
        return (
            f"the system refused{place}: {reason}; expected a place that can be read and written; "
            "check it"
        )
    name = error.ctx.command_path if getattr(error, "ctx", None) is not None else "aulait"
    text = " ".join(error.format_message().split())
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; see {name} --help"


def fail(text: str) -> None:
    """Every line of the text as an error."""
    for line in text.splitlines() or [""]:
        typer.secho(f"error: {line}", fg=typer.colors.RED, err=True)


def note(text: str) -> None:
    """A remark, on stderr."""
    typer.secho(text, err=True)


def say(text: str = "") -> None:
    """A line of the answer, on stdout."""
    typer.echo(text)


def document(value: object) -> None:
    """The one JSON document of a command; what is not a number in JSON becomes null."""
    typer.echo(json.dumps(plain_json(value), indent=2, ensure_ascii=False, default=str))


@contextmanager
def work(quiet: bool) -> Iterator[None]:
    """With ``quiet``, whatever a library prints goes to stderr, so that stdout holds the JSON
    document alone."""
    if not quiet:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def heading(text: str) -> None:
    """A line above what it names, on stdout."""
    typer.secho(text, bold=True)


def paragraph(text: str, width: int = 100, indent: str = "") -> None:
    """A remark on stdout, broken into lines: of the terminal's width, at most of ``width``."""
    if sys.stdout.isatty():
        width = min(width, shutil.get_terminal_size().columns)
    for line in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent):
        typer.echo(line)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]],
          right: Sequence[int] = (), width: int = 200) -> None:
    """A table on stdout; never cut off, also when stdout is no terminal.

    Args:
        title: above it.
        head: names of the columns.
        rows: cells, turned into text.
        right: numbers of the columns set flush right.
        width: in letters, when stdout is no terminal.
    """
    made = Table(box=None, pad_edge=False, header_style="dim", show_header=any(head))
    for index, name in enumerate(head):
        made.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*[Text(str(cell)) for cell in row])
    console = Console() if sys.stdout.isatty() else Console(width=width)
    console.print(Text(title, style="bold"))
    console.print(made)
