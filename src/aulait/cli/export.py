"""``aulait export``: take the adapter, or the whole adapted model, out of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import ClientOption, JsonOption, RunArgument
from aulait.core.errors import ConfigError, did_you_mean, require
from aulait.models import exported
from aulait.models.exported import ExportForm
from aulait.models.gguf_export import PRECISIONS, Precision
from aulait.reporting.model_card import write_card


def export(  # noqa: PLR0913 (the options of a command)
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.")],
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Fold the adapter into the base and write the whole model.")
    ] = False,
    gguf: Annotated[
        bool,
        typer.Option("--gguf", help="The same as one GGUF file, for llama.cpp and Ollama.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="KIND",
                     help=f"Of the numbers in the GGUF file: {', '.join(PRECISIONS)}. Default: f32 "
                          "up to 1 GB, which writes the merged model's very words, else f16.")
    ] = None,
    client: ClientOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the adapter in PEFT format, with --merge write a model that AutoModelForCausalLM (or
    ForSeq2SeqLM) loads, with --gguf a file that llama.cpp and Ollama run. What was written is read
    back and compared.

    Example: aulait export runs/hospitals --client ward-3 --to ward-3
    """
    with terminal.work(as_json):
        form = _form(merge, gguf, precision)
        written = exported.export(run, to, form, client=client)
        files = written.names
        if form.kind != "adapter" or "README.md" not in files:
            write_card(run, to, form.kind, personal=client is not None)
            files = sorted({*files, "README.md"})
    if as_json:
        terminal.document({"to": str(to), "merged": merge, "gguf": written.precision,
                           "client": client, "files": files})
    else:
        whose = "the adapter" if client is None else f"the personal adapter of {client}"
        what = {"adapter": f"{whose} (PEFT format)", "merged": f"model with {whose} folded in",
                "gguf": f"GGUF file ({written.precision}) of the model with {whose} folded in"}
        terminal.say(f"{what[form.kind]}  {to}")
        terminal.prose(f"files  {', '.join(files)}")


def _form(merge: bool, gguf: bool, precision: str | None) -> ExportForm:
    """What the options ask for.

    Raises:
        ConfigError: they exclude one another, or name a precision that there is not.
    """
    require(not (merge and gguf), ConfigError,
            "found --merge and --gguf, expected one of them; run the command twice for both")
    known: dict[str, Precision] = {kind: kind for kind in PRECISIONS}
    if precision is not None:
        require(precision in known, ConfigError,
                f"--precision '{precision}' is unknown; {did_you_mean(precision, known)}")
        require(gguf, ConfigError,
                "found --precision without --gguf; it is the precision of a GGUF file; add --gguf")
    return ExportForm("gguf" if gguf else "merged" if merge else "adapter",
                      None if precision is None else known[precision])
