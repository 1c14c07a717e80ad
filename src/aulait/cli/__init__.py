"""The command line: one file a command. A command's module is imported when the command is called;
the list of commands and their own help need none of them."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo

from aulait.cli.terminal import Commands, PlainCommand
from aulait.cli.written_help import Callback, stand_in
from aulait.core.errors import ConfigError, install
from aulait.core.version import PACKAGE_VERSION


class Listed(NamedTuple):
    """A command as the list of commands shows it.

    Attributes:
        panel: the heading under which it stands.
        place: its function, or the ``typer.Typer`` of its own commands, as ``module:name``.
        line: what it does: the first paragraph of its help (a test compares them).
    """

    panel: str
    place: str
    line: str


COMMANDS = {
    "demo": Listed("Start", "aulait.cli.demo:demo",
        "See the whole thing work on this machine, in a few minutes, without a download."),
    "init": Listed("Start", "aulait.cli.init:init",
        "Write a first experiment file from a look at your data, with a remark at each choice."),
    "run": Listed("Start", "aulait.cli.run:run",
        "Run an experiment: the two stages, the evaluation, the report."),
    "plan": Listed("Start", "aulait.cli.plan:plan",
        "See whether a run will learn and what it costs; then placement, work, bytes, FLOPs, "
        "seconds, memory, joules and epsilon of every tier, and why. Nothing is trained."),
    "sweep": Listed("Compare", "aulait.cli.sweep:sweep",
        "Run all arms with all seeds and compare them. The same command again goes on where it "
        "stopped."),
    "compare": Listed("Compare", "aulait.cli.compare:compare",
        "Compare finished runs: one row for each arm, mean and spread over its seeds, the best arm "
        "first."),
    "watch": Listed("Start", "aulait.cli.watch:watch",
        "Follow a run while it goes on: its report in the browser, or its rounds in the terminal."),
    "report": Listed("Compare", "aulait.cli.report:report",
        "Write RUN/report.html, one self-contained page, from what is in the folder."),
    "dossier": Listed("Start", "aulait.cli.dossier:dossier",
        "Write one printable page for the person who approves a run: before it from its plan, "
        "after it from its ledger."),
    "runs": Listed("Use a finished run", "aulait.cli.runs:runs",
        "List run folders, the newest first: where each stands, what it gained, at what epsilon."),
    "generate": Listed("Use a finished run", "aulait.cli.generate:generate",
        "Continue a prompt with what a run has learnt, or answer it where the run's data had "
        "prompts."),
    "export": Listed("Use a finished run", "aulait.cli.export:export",
        "Copy the adapter in PEFT format, with --merge write a model that AutoModelForCausalLM "
        "(or ForSeq2SeqLM) loads, with --gguf a file that llama.cpp and Ollama run. What was "
        "written is read back and compared."),
    "serve": Listed("Deploy", "aulait.cli.serve:serve",
        "Run an experiment with the sites that join, over Flower."),
    "join": Listed("Deploy", "aulait.cli.join:join",
        "Take part as a site, until stopped: answers orders within the limits of its own file."),
    "status": Listed("Deploy", "aulait.cli.status:status",
        "Show where a run stands, with its sites and epsilon; or whether a site is running, and at "
        "what."),
    "list": Listed("Look things up", "aulait.cli.listing:catalogue",
        "List methods, federation presets, data sources, generators, embedders, task metrics, "
        "machines and links."),
    "config": Listed("Look things up", "aulait.cli.config:config",
        "Explain the keys of an experiment file: what each is, its type, its bounds and its "
        "default."),
    "probe": Listed("Look things up", "aulait.cli.probe:probe",
        "Measure this machine: speed, memory, link, energy counters, and what work it could "
        "carry."),
    "account": Listed("Look things up", "aulait.cli.account:account",
        "Turn epsilon into noise, or noise into epsilon; or check a run."),
    "audit": Listed("Look things up", "aulait.cli.audit:audit_run",
        "Attack the releases that a run makes, and hold what is proven against what is claimed."),
    "bench": Listed("Look things up", "aulait_benchmarks.command:bench",
        "Measure this installation beside the straightforward way to the same result."),
    "keys": Listed("Deploy", "aulait.cli.keys:app",
        "Make keys and certificates for a deployment, and enrol sites. Example: aulait keys server "
        "keys --host fl.example.org"),
}
_FLOWER = ("cryptography", "flwr", "prometheus_client")  # packages of the extra "flower"


class LazyCommands(Commands):
    """Knows its commands by their lines alone, and imports the one that is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (panel, _, line) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line, rich_help_panel=panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the first argument names, loaded, and the arguments left for it."""
        name, known, rest = super().resolve_command(ctx, args)
        if known is None:
            return name, None, rest
        only_told = ctx.resilient_parsing or not {"-h", "--help"}.isdisjoint(rest)
        return name, (explained if only_told else loaded)(known.name or ""), rest


def explained(name: str) -> Any:
    """What has a command's help and completes its options, without its module."""
    return _command(name, stand_in(name))


def loaded(name: str) -> Any:
    """A command, ready to run, from its module."""
    return _command(name, function_of(name))


def function_of(name: str) -> Callback | typer.Typer:
    """A command's function, or the ``typer.Typer`` of its own commands.

    Raises:
        ConfigError: the module needs a package that is not installed.
    """
    module, _, attribute = COMMANDS[name].place.partition(":")
    try:
        found: Callback | typer.Typer = getattr(import_module(module), attribute)
        return found
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _FLOWER:
            raise ConfigError(f"aulait {name} needs the package {missing} and it is missing; "
                              f"{install('flower')}") from error
        if missing == module.partition(".")[0]:
            raise ConfigError(f"aulait {name} needs the package {missing}, which belongs to this "
                              "distribution, and it is missing; install aulait again") from error
        raise


def _command(name: str, found: Callback | typer.Typer) -> Any:
    """The command of a function or of a ``typer.Typer``."""
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name, cls=PlainCommand)(found)
        return _with_help(typer.main.get_command(alone), found)
    group: Any = typer.main.get_command(found)
    for command, told in zip(group.commands.values(), found.registered_commands, strict=True):
        _with_help(command, told.callback)
    return group


def _with_help(command: Any, function: Any) -> Any:
    """The command with what its function says of its arguments: click 8.5 forgets what typer's
    arguments hold."""
    hints = get_type_hints(function, include_extras=True)
    for argument in command.params:
        if argument.param_type_name == "argument":
            argument.help = next((item.help for item in get_args(hints[argument.name])
                                  if isinstance(item, ArgumentInfo)), None)
    return command


_ABOUT = (
    "Fine-tune a language model across institutions that may not share their text and do not own "
    "the same machines."
)

app = typer.Typer(
    name="aulait",
    cls=LazyCommands,
    help=_ABOUT,
    epilog="Begin with: aulait demo. Errors exit with 2, an interrupted run with 130; "
           "AULAIT_TRACEBACK=1 shows where.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aulait {PACKAGE_VERSION}")
        raise typer.Exit


@app.callback()
def _settle(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True,
                           help="Show the version and exit.")
    ] = False,
) -> None:
    """Set what every command needs; the help text is above."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)


def main() -> None:
    """Entry point of the ``aulait`` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal without these letters shows others, and never fails
            stream.reconfigure(errors="replace")
    app()
