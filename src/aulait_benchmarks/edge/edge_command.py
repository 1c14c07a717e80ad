"""What ``aulait bench edge`` asks, shows and writes; the command itself is in ``command``."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.core.errors import ConfigError, require
from aulait.core.files import JsonObject, plain_json
from aulait.reporting import numbers as n
from aulait.reporting import page
from aulait_benchmarks.edge import edge_page, step_timing, study
from aulait_benchmarks.edge.document import StudyLine
from aulait_benchmarks.edge.study import Scope

EdgeOutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR",
        help="edge: write edge.json and edge.html there; deploy: keep sites and logs there.")
]
FamilyOption = Annotated[str | None,
    typer.Option("--family", help="edge: flan-t5 or tiny, by size with random weights.")]
ModelOption = Annotated[str | None, typer.Option("--model", metavar="ID_OR_PATH",
    help="edge: one model in place of a family; simulate --peers: brew, smollm2 or another.")]
BatchesOption = Annotated[str | None,
    typer.Option("--batches", help="edge, simulate --peers: rows of a step, as 1,2,4,8.")]
LengthsOption = Annotated[str | None,
    typer.Option("--lengths", help="edge: source and target tokens of a row, as 512,95.")]
MinutesOption = Annotated[float | None,
    typer.Option("--minutes", min=0.0, help="edge: for measured steps, 5; the rest is modelled.")]
WattsOption = Annotated[float | None,
                  typer.Option("--watts", min=0.0, help="edge: this machine's power under load.")]
JoulesPerByteOption = Annotated[
    float | None, typer.Option("--joules-per-byte", min=0.0,
                               help="edge: of the network, in place of each link's own.")
]
ServersOption = Annotated[bool, typer.Option("--servers/--no-servers",
    help="edge: federated runs of four server optimisers.")]


@dataclass(frozen=True)
class EdgeOptions:
    """The options as they were given; None where one is left out.

    Attributes:
        family: of models, in order of size.
        model: one model in place of a family.
        batches: rows of a step, between commas.
        lengths: source and target tokens, between a comma.
        minutes: for measured steps.
        watts: this machine's power under load.
        joules_per_byte: of the network.
        servers: whether the four server optimisers run.
    """

    family: str | None
    model: str | None
    batches: str | None
    lengths: str | None
    minutes: float | None
    watts: float | None
    joules_per_byte: float | None
    servers: bool


def scope(options: EdgeOptions, quick: bool, repetitions: int) -> Scope:
    """What the options ask for; an option that is left out takes what the scope says.

    Raises:
        ConfigError: an option cannot be read.
    """
    start = study.QUICK if quick else study.Scope()
    chosen: JsonObject = {
        "family": options.family, "model": options.model, "minutes": options.minutes,
        "power_w": options.watts, "joules_per_byte": options.joules_per_byte}
    if options.batches is not None:
        chosen["batches"] = tuple(
            sorted(set(numbers(options.batches, "--batches", "rows of a step, as 1,2,4,8"))))
    if options.lengths is not None:
        found = numbers(options.lengths, "--lengths", "source and target tokens, as 512,95")
        require(len(found) == 2, ConfigError,
                f"--lengths {options.lengths}: expected source and target tokens, as 512,95")
        chosen["lengths"] = step_timing.Lengths(*found)
    start = replace(start, **{key: value for key, value in chosen.items() if value is not None})
    if not options.servers:
        start = replace(start, federation=None)
    return start if quick else replace(start, repetitions=repetitions)


def measure(asked: Scope, out: Path | None) -> StudyLine:
    """The document of ``study.edge``, also written to a folder where one is given."""
    document = study.edge(asked, terminal.note)
    if out is not None:
        terminal.note(f"written: {write(document, out)}")
    return document


def numbers(text: str, option: str, expected: str) -> tuple[int, ...]:
    """Positive whole numbers between commas, in their order."""
    words = [word.strip() for word in text.split(",")]
    require(all(word.isdigit() and int(word) > 0 for word in words), ConfigError,
            f"{option} {text}: expected {expected}")
    return tuple(int(word) for word in words)


def write(document: StudyLine, out: Path) -> Path:
    """``edge.json`` and ``edge.html`` in a folder; the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain_json(document), indent=1, ensure_ascii=False)
    page.save_page(out / "edge.json", text + "\n")
    return page.save_page(out / "edge.html", edge_page.study_page(json.loads(text)))


def show(document: StudyLine) -> None:
    """Steps of this machine, and the study's claims, in the terminal."""
    rows = [
        (line["model"], line["way"], line["batch"], line["basis"], n.duration(line["step_s"])
         if line["step_s"] else "does not fit",
         n.significant(line["tokens_per_s"]) if line["step_s"] else "–",
         n.percent(line["mfu_model"]) if line["mfu_model"] else "–",
         n.percent(line["mfu_actual"]) if line["mfu_actual"] else "–")
        for line in document["steps"]
    ]
    lengths = document["settings"]["lengths"]
    title = f"a step on this machine, rows of {lengths['source']} + {lengths['target']} tokens"
    terminal.table(title, ("model", "way", "batch", "basis", "step", "tokens/s", "MFU, model",
                           "MFU, actual"), rows, right=(2, 4, 5, 6, 7))
    terminal.table("the study's claims, in shape", ("claim", "here"),
                   [(each["claim"], each["answer"]) for each in document["claims"]])
