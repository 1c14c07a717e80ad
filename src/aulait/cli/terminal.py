"""What the terminal shows: errors as one line, numbers with units, tables, one JSON document when
asked."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from aulait.core.errors import AulaitError
from aulait.core.files import JsonObject, plain_json

# click's UsageError, which newer typer carries inside itself
USAGE: Any = typer.BadParameter.__mro__[1]
INTERRUPTED = 130
GAP = 2  # letters between two columns of a table
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
    told, hint, names = text.partition("Did you mean")
    if hint:  # typer and click both say it, and name all that are near
        text = f"{told}{hint} {names.partition('?')[0].strip().partition(',')[0]}?"
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; see {name} --help"


# control characters and marks that turn the direction of writing, but the ends of lines and tabs
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text without what would steer a terminal: names and texts come from files."""
    return _STEERING.sub("?", text)


def fail(text: str) -> None:
    """Every line of the text as an error."""
    for line in harmless(text).splitlines() or [""]:
        typer.secho(f"error: {line}", fg=typer.colors.RED, err=True)


def alarm(text: str) -> None:
    """A remark on stdout that must not be overlooked, broken into lines."""
    for line in textwrap.wrap(text, columns() or 100):
        typer.secho(line, fg=typer.colors.RED)


def note(text: str) -> None:
    """A remark, on stderr."""
    typer.secho(harmless(text), err=True)


def say(text: str = "") -> None:
    """A line of the answer, on stdout."""
    typer.echo(harmless(text))


def document(value: object) -> None:
    """The one JSON document of a command; what is not a number in JSON becomes null."""
    typer.echo(json.dumps(plain_json(value), indent=2, ensure_ascii=False, default=str))


def open_page(path: Path) -> None:
    """Open a page in the browser; a line where there is none."""
    if not webbrowser.open(path.resolve().as_uri()):
        note(f"no browser was found; the page is {path}")


@contextmanager
def work(quiet: bool, verbose: bool = False) -> Iterator[None]:
    """With ``quiet``, whatever a library prints goes to stderr, so that stdout holds the JSON
    document alone; with ``verbose`` what libraries log is shown there, and an error comes as it
    is."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        os.environ["AULAIT_TRACEBACK"] = "1"
    if not quiet:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def heading(text: str) -> None:
    """A line above what it names, on stdout."""
    typer.secho(text, bold=True)


def paragraph(text: str, width: int = 100, indent: str = "", bold: bool = False) -> None:
    """A remark on stdout, broken into lines: of the terminal's width, at most of ``width``."""
    width = min(width, columns() or width)
    for line in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent):
        typer.secho(line, bold=bold)


def prose(text: str) -> None:
    """A sentence of the answer, on stdout: broken between words where the terminal is narrower, one
    line elsewhere. Paths stay whole."""
    width = columns()
    lines = [text] if width is None else textwrap.wrap(
        text, width, break_long_words=False, break_on_hyphens=False)
    for line in lines:
        typer.echo(line)


def fact(name: str, text: str) -> None:
    """A remark on stdout under its name, broken into lines that stand behind the name."""
    lead = f"{name}  "
    width = min(100, columns() or 100)
    for line in textwrap.wrap(text, width, initial_indent=lead, break_on_hyphens=False,
                              subsequent_indent=" " * min(len(lead), 12)):
        typer.echo(line)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]],
          right: Sequence[int] = (), width: int = 200) -> None:
    """A table on stdout that fits: no number and no word is broken.

    Where the terminal is too narrow for all columns, the last ones are left out and named below.

    Args:
        title: above it.
        head: names of the columns, the most important first.
        rows: cells, turned into text.
        right: numbers of the columns set flush right.
        width: in letters, when stdout is no terminal and COLUMNS is not set.
    """
    room = columns() or width
    made = fitted_table(head, rows, right, room)
    console = Console(width=room)
    console.print(Text(harmless(title), style="bold"))
    console.print(made)
    if left_out := [" ".join(name.split()) for name in head[len(made.columns):]]:
        names = ", ".join(left_out)
        paragraph(f"left out of a narrow terminal: {names}; --json has all", room)


def fitted_table(head: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int],
                 room: int) -> Table:
    """As ``table``, in ``room`` letters, to be shown by the caller."""
    cells = [[harmless(str(cell)) for cell in row] for row in rows]
    shown = fitting([_Measured.of(name, [row[i] for row in cells], i in right)
                     for i, name in enumerate(head)], room)
    made = Table(box=None, pad_edge=False, header_style="dim", show_header=any(head))
    for index, wide in enumerate(shown):
        made.add_column(head[index], justify="right" if index in right else "left",
                        overflow="fold", width=wide)
    for row in cells:
        made.add_row(*[Text(cell) for cell in row[:len(shown)]])
    return made


def columns() -> int | None:
    """Letters of a line of the terminal; None where stdout is none and COLUMNS is not set."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return None


@dataclass(frozen=True)
class _Measured:
    """The width of a column in letters: of its longest line, and the least at which nothing in it
    is broken (a column of numbers may not be broken at blanks either)."""

    longest: int
    least: int

    @classmethod
    def of(cls, name: str, cells: Sequence[str], number: bool) -> _Measured:
        lines = [line for text in (name, *cells) for line in text.splitlines()]
        parts = [word for line in name.splitlines() for word in line.split()]
        for cell in cells:
            parts += [cell] if number else cell.split()
        return cls(max(map(cell_len, lines), default=1) or 1,
                   max(map(cell_len, parts), default=1) or 1)


def fitting(wanted: Sequence[_Measured], room: int) -> list[int]:
    """The widths of as many columns, from the first, as fit into so many letters; at least two."""
    count = len(wanted)
    while count > 2 and sum(column.least + GAP for column in wanted[:count]) - GAP > room:
        count -= 1
    widths = [column.longest for column in wanted[:count]]
    for _ in range(max(0, sum(widths) + GAP * (count - 1) - room)):
        # two columns may be too wide without any blank: then the wider one is folded
        above = [i for i in range(count) if widths[i] > wanted[i].least] or range(count)
        widest = max(above, key=lambda i: widths[i])
        widths[widest] -= 1
    return widths
