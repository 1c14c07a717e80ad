"""``aulait generate``: continue or answer a prompt with the base and the adapter of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from aulait.cli import terminal
from aulait.cli.options import ClientOption, JsonOption, RunArgument
from aulait.core.errors import ConfigError, DataError, require
from aulait.core.types import Turn
from aulait.data import formats, sources
from aulait.data.row_fields import RowFields
from aulait.data.source_row import Asked
from aulait.models import answering, exported
from aulait.models.generation import Sampling, TextModel

Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Speaker:
    """What speaks, and how.

    Attributes:
        writer: the base with its adapter.
        answers: whether it answers what is asked; otherwise it continues it.
        how: how tokens are drawn.
        seed: of the draws.
    """

    writer: TextModel
    answers: bool
    how: Sampling
    seed: int

    def say(self, asked: list[Turns]) -> list[str]:
        """An answer to every conversation, or what comes after its last turn."""
        if self.answers:
            return answering.answers(self.writer, asked, self.how, self.seed)
        return answering.continuations(self.writer, [turns[-1].content for turns in asked],
                                       self.how, self.seed)


def generate(  # noqa: PLR0913 (the options of a command)
    run: RunArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", show_default=False,
                       help="The text to continue or to answer. Default: what stdin has.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE",
                     help="Many prompts: a .txt with one a line, or rows with a prompt or a "
                          "conversation (.jsonl, .csv, ...). -: stdin, one a line.")] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat",
                     help="A conversation: every line of stdin is a turn of yours.")] = False,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="The system's turn before yours.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="New tokens, at most.")] = 60,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token each time.")
    ] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    base: Annotated[bool,
                    typer.Option("--base", help="The base alone, without the adapter.")] = False,
    client: ClientOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt with what a run has learnt, or answer it where the run's data had prompts.

    An answer is in the form of the records: in the base's chat template, where it has one.

    Example: aulait generate runs/demo "Return the"
    """
    if base and client is not None:
        raise ConfigError(
            "found --base and --client, expected one of them; --base is the base without any "
            "adapter")
    given = [name for name, found in (("PROMPT", prompt is not None), ("--prompts", prompts),
                                      ("--chat", chat)) if found]
    require(len(given) < 2, ConfigError,
            f"found {' and '.join(given)}, expected one of them; leave the others out")
    row = _row(run)
    asked = [] if chat else _asked(prompt, prompts, row)
    with terminal.work(as_json):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, tokenizer = exported.load_exported(run, adapted=not base, client=client,
            device=device)
        template = str(exported.settings(run).get("template", "auto"))
        writer = TextModel(model, tokenizer, torch.device(device), template)
        before = () if system is None else (Turn("system", system),)
        speaker = Speaker(writer, row.answers or chat or system is not None,
                          Sampling(tokens, temperature), seed)
        told = {"adapter": not base, "client": client, "tokens": tokens,
                "temperature": temperature, "seed": seed}
        if chat:
            turns = _converse(speaker, before, as_json)
            document: terminal.Document = {"turns": [{"role": t.role, "content": t.content}
                                                     for t in turns], **told}
        else:
            texts = speaker.say([(*before, *turns) for turns in asked])
            found = [{"prompt": turns[-1].content, "text": text}
                     for turns, text in zip(asked, texts, strict=True)]
            document = {"answers": found, **told} if prompts is not None else {**found[0], **told}
    if as_json:
        terminal.document(document)
    elif not chat:
        _print(speaker.answers, document, prompts is not None)


def _row(run: Path) -> RowFields:
    """What the run learnt of a row."""
    table = exported.settings(run, "data")
    known = {key: table[key] for key in RowFields.__dataclass_fields__ if key in table}
    return RowFields(**known)  # type: ignore[arg-type]


def _asked(prompt: str | None, prompts: str | None, row: RowFields) -> list[Turns]:
    """What is asked, from the command line, stdin or a file.

    Raises:
        ConfigError: nothing is.
        DataError: a row of the file asks nothing.
    """
    if prompts is not None:
        found = list(_lines() if prompts == "-" else _rows(prompts, row))
        require(bool(found), ConfigError, f"--prompts {prompts} has no prompt, expected one a line "
                "or a row; give another file")
        return found
    if prompt is None or prompt == "-":
        require(prompt == "-" or not sys.stdin.isatty(), ConfigError,
                "found no prompt, expected PROMPT, --prompts FILE, --chat, or a text on stdin; "
                "give one")
        prompt = sys.stdin.read().strip()
        require(bool(prompt), ConfigError, "found no prompt on stdin, expected PROMPT, --prompts "
                "FILE, --chat, or a text on stdin; give one")
    return [(Turn("user", prompt),)]


def _lines() -> Iterator[Turns]:
    for line in sys.stdin:
        if line.strip():
            yield (Turn("user", line.strip()),)


def _rows(file: str, row: RowFields) -> Iterator[Turns]:
    for found in sources.rows(file, Asked(text=row.text)):
        try:
            if found.fields is None:
                raise ValueError(found.fault)
            yield formats.asked_of(found.fields, row)
        except ValueError as error:
            raise DataError(f"--prompts: {found.place}: {error}; expected a prompt or a "
                            "conversation; correct the row") from error


def _converse(speaker: Speaker, turns: Turns, quiet: bool) -> Turns:
    """Answer line after line until stdin ends; the whole conversation."""
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        if mark:
            typer.echo(mark, nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return turns
        if line.strip():
            turns = (*turns, Turn("user", line.strip()))
            (text,) = speaker.say([turns])
            turns = (*turns, Turn("assistant", text))
            if not quiet:
                terminal.say(text)


def _print(answers: bool, document: terminal.Document, many: bool) -> None:
    """The answer, or the prompt and what comes after it; of many prompts each with its own."""
    if not many:
        terminal.say(document["text"].strip() if answers
                     else document["prompt"] + document["text"])
        return
    for own in document["answers"]:
        terminal.say(f"> {own['prompt']}")
        terminal.say(own["text"].strip() if answers else own["prompt"] + own["text"])
        terminal.say()
