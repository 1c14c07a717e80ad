"""``aulait init``: a first experiment file from a look at the data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from aulait.cli import terminal
from aulait.core.errors import AulaitError, ConfigError, require
from aulait.data.row_fields import RowFields, resolved
from aulait.privacy.noise_ratio import times
from aulait.reporting import numbers as n
from aulait.runs import experiment_file, first_experiment, key_reference, size_law
from aulait.runs.advice import advise
from aulait.runs.experiment_file import Settings
from aulait.runs.first_experiment import NONE, Choices, Look
from aulait.runs.prepared import PreparedRun, SharedCache
from aulait.runs.setup import prepare

SCHEMA = "experiment.schema.json"  # beside the experiment file, for editors


def init(  # noqa: PLR0913 (the options of a command)
    data: Annotated[str, typer.Argument(
        metavar="DATA", help="Where the records are: a file, a folder, a pattern or hf:DATASET.")],
    to: Annotated[Path, typer.Option(
        "--to", metavar="FILE", help="The file to write.")] = Path("experiment.toml"),
    client: Annotated[str | None, typer.Option(
        "--client", metavar="FIELD", help="The field that names a row's owner; 'none' for none. "
                                          "Default: the one that looks like it.")] = None,
    text: Annotated[str | None, typer.Option(
        "--text", metavar="FIELD", help="The field that is learnt. Default: conversations, pairs "
                                        "or texts, by the fields of the rows.")] = None,
    strong: Annotated[float | None, typer.Option(
        "--strong", min=0.0, max=1.0, metavar="SHARE",
        help="Share of the clients whose machines can train; the others vote.")] = None,
    unit: Annotated[Literal["client", "record"] | None, typer.Option(
        "--unit", help="What is protected. Default: client, or record among few clients.")] = None,
    epsilon: Annotated[str | None, typer.Option(
        "--epsilon", metavar="NUMBER|off", help="The budget of each; off for no privacy.")] = None,
    model: Annotated[str, typer.Option(
        "--model", metavar="NAME", help="The base model.")] = "brew",
) -> None:
    """Write a first experiment file from a look at your data, with a remark at each choice.

    Asks what is left open on a terminal; elsewhere takes what it proposes. Example: aulait init
    notes.jsonl --client hospital --unit record --epsilon 8
    """
    require(not to.exists(), ConfigError,
            f"--to {to} exists already; expected a new file; name another, or move it away")
    seen = first_experiment.look(data)
    owner = _owner(seen, client)
    row = (resolved(RowFields(text=first_experiment.named_field(seen, "--text", text),
                              format="text"), seen.columns)
           if text is not None else first_experiment.learnt_of(seen, owner))
    clients = len(first_experiment.clients_of(seen, owner)) or 10
    proposed = first_experiment.unit_for(clients)
    share = float(_asked("share of the clients that can train, the others vote",
                         strong, "0.2" if clients >= 10 else "0.5"))
    chosen: str = _asked("what is protected, client or record", unit, proposed)
    require(chosen in ("client", "record"), ConfigError,
            f"what is protected is '{chosen}', expected client or record; write one of them")
    choices = Choices(owner, row, share, "record" if chosen == "record" else "client",
                      _epsilon(_asked("epsilon, or off", epsilon, "8")), model, to.stem)
    to.write_text(f"#:schema {SCHEMA}\n{first_experiment.written(seen, choices)}",
                  encoding="utf-8")
    _write_schema(to.parent / SCHEMA)
    try:
        settings = experiment_file.read_settings(to)
    except ConfigError as error:
        terminal.note(f"wrote {to}; change in it what the errors say")
        raise error
    _told(seen, choices, clients, to)
    if seen.whole and (run := _prepared(settings)) is not None:
        _outlook(run)
    terminal.say(f"next    aulait plan {to}")


def _write_schema(path: Path) -> None:
    """What lets an editor check and complete the file; another's file of the name is left alone."""
    schema = key_reference.schema()
    if not path.exists() or f'"title": "{schema["title"]}"' in path.read_text(encoding="utf-8"):
        path.write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _owner(seen: Look, client: str | None) -> str | None:
    proposed = first_experiment.owner_of(seen) or NONE
    name = _asked(f"field of the owner, of {', '.join(seen.columns)}, or {NONE}", client, proposed)
    return None if name == NONE else first_experiment.named_field(seen, "--client", name)


def _asked(what: str, given: object, proposed: str) -> str:
    """What was given, or the answer of somebody at a terminal, or what is proposed."""
    if given is not None:
        return str(given)
    return str(typer.prompt(what, default=proposed)) if sys.stdin.isatty() else proposed


def _epsilon(text: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--epsilon is '{text}', expected a number above 0, or off") from None


def _told(seen: Look, choices: Choices, clients: int, to: Path) -> None:
    """What was found and written."""
    fields = ", ".join(choices.row.needed.values())
    more = "" if seen.whole else " and more"
    bad = f", {n.counted(seen.malformed, 'row')} malformed" if seen.malformed else ""
    whose = (f"{n.counted(clients, 'client')} by '{choices.owner}'" if choices.owner
             else f"dealt to {clients} made-up clients")
    terminal.prose(f"found   {n.counted(seen.rows, 'row')}{more}{bad}, {whose}, "
                   f"{choices.row.format} from {fields}")
    promise = "no privacy" if choices.epsilon is None else (
        f"epsilon {choices.epsilon:g} for a {choices.unit}")
    terminal.say(f"wrote   {to} ({promise})")


def _prepared(settings: Settings) -> PreparedRun | None:
    """The run; None where data or base cannot be prepared yet, which the plan then says."""
    try:
        return prepare(settings, SharedCache())
    except AulaitError:
        return None


def _outlook(run: PreparedRun) -> None:
    """Whether what was written will learn, what it trains, and what would help."""
    advice, found, adapter = advise(run), size_law.noise_ratio(run), run.settings.adapter
    terminal.fact("verdict", advice.verdict)
    if found is None:
        return
    blocks = ("all blocks" if adapter.layers == "all" else "the last block"
              if adapter.layers == 1 else f"the last {n.counted(adapter.layers, 'block')}")
    target = run.settings.privacy.target_ratio
    affordable = found.ratio <= 1.01 * target
    why = (f"which keep the noise below {times(target)} the signal" if affordable
           else f"the fewest there are; {found.affordable(target):,} would keep the noise at "
                f"{times(target)} the signal")
    terminal.fact("trains ", f"rank {adapter.rank} on {blocks}: {found.numbers:,} numbers, {why}")
    for topic, text in advice.hints if not affordable else ():
        terminal.fact(f"{topic:7}", text)
