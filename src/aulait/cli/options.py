"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool,
    typer.Option("--json",
                 help="Print one JSON document on stdout; everything else goes to stderr.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE",
        help="Override a setting, as train.rounds=3 or federation.tier.0.share=0.1. Repeatable."),
]
FileArgument = Annotated[Path,
    typer.Argument(metavar="FILE", help="The experiment, a TOML file.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
OutOption = Annotated[Path | None,
    typer.Option("--out", metavar="DIR", help="The run folder. Default: runs/NAME-DATE-TIME.")]
ResumeOption = Annotated[bool,
    typer.Option("--resume", help="Go on with the interrupted run in --out.")]
VerboseOption = Annotated[bool,
    typer.Option("--verbose", "-v", help="Also show what libraries say, and where an error came "
                                         "from. RUN/log.jsonl has both without it.")]
OpenOption = Annotated[bool,
    typer.Option("--open", help="Open the page in the browser once it is written.")]
ClientOption = Annotated[str | None,
    typer.Option("--client", metavar="NAME",
                 help="The personal adapter of this client, where the method makes them.")]
