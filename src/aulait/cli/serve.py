"""``aulait serve``: one experiment over the sites of a roster."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import FileArgument, JsonOption, ResumeOption, SetOption
from aulait.cli.progress import Bar
from aulait.cli.run import show
from aulait.cli.terminal import Document
from aulait.core.errors import ConfigError
from aulait.engines.deployment.coordinator import prometheus_export as metrics
from aulait.engines.flower import processes, serving
from aulait.runfolder.naming import fresh_folder
from aulait.runs import experiment_file
from aulait.runs.experiment_file import Settings

EVERYWHERE = "0.0.0.0"  # nosec B104  # sites come from other machines, and are asked for their keys


def serve(  # noqa: PLR0913 (the options of a command)
    file: FileArgument,
    keys: Annotated[Path, typer.Option("--keys", metavar="DIR",
        help="The server's keys and roster: aulait keys server.")],
    host: Annotated[str,
                    typer.Option("--host", help="Address to listen on for sites.")] = EVERYWHERE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535,
        help="Port to listen on for sites.")] = 9443,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN",
                                  help="The run folder. Default: runs/NAME-DATE-TIME.")
    ] = None,
    overrides: SetOption = None,
    resume: ResumeOption = False,
    insecure: Annotated[bool,
        typer.Option("--insecure", help="Without TLS; only with a loopback --host.")] = False,
    metrics: Annotated[
        int | None, typer.Option("--metrics", metavar="PORT", min=1, max=65535,
                                 help="Answer Prometheus on loopback.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run an experiment with the sites that join, over Flower.

    Example: aulait serve ward.toml --keys keys --out runs/ward
    """
    if insecure and not processes.loopback(host):
        raise ConfigError(
            f"found --insecure and host {host}, expected loopback where there is no TLS; add "
            "--host 127.0.0.1")
    if resume and (out is None or not (out / "serve" / "experiment.toml").is_file()):
        found = "no --out" if out is None else f"no served run in --out {out}"
        raise ConfigError(
            f"--resume found {found}, expected the folder of an interrupted run; add --out RUN, or "
            "leave --resume out")
    with terminal.work(as_json), stopped_like_interrupted():
        settings = experiment_file.read_settings(file, [*(overrides or []), "engine.name=flower"])
        path = out or fresh_folder(settings.run.name)
        if insecure:
            terminal.fail(
                "INSECURE: no TLS; whatever sites send can be read and changed on the way. For "
                "trials on one machine only.")
        again = ["aulait", "serve", str(file), "--keys", str(keys), "--host", host, "--port",
                 str(port), "--out", str(path),
                 *(word for o in overrides or [] for word in ("--set", o)),
                 *(["--insecure"] if insecure else []), "--resume"]
        options = serving.ServerOptions(keys, host, port, resume, insecure)
        result = carry_out(settings, path, again, options, metrics)
    show(result, path, as_json)


def carry_out(settings: Settings, path: Path, again: list[str],
              options: serving.ServerOptions, metrics_port: int | None) -> Document:
    """Serve with a progress bar; an interrupt says how to go on.

    Args:
        settings: the experiment.
        path: the run folder.
        again: the words of the command that goes on with it.
        options: how it is served.
        metrics_port: of loopback for Prometheus; None: none.

    Returns:
        What result.json holds.
    """
    done = serving.finished(settings, path, options.resume)
    if done is not None:
        terminal.note(f"the run in {path} is finished; nothing is left to do")
        return done
    try:
        with contextlib.ExitStack() as stack:
            if metrics_port is not None:
                stack.enter_context(measured(path, metrics_port))
            terminal.note(
                f"listening on {options.host}:{options.port} for the sites of "
                f"{options.keys}/roster; run folder {path}")
            return serving.serve(settings, path, options, stack.enter_context(Bar()))
    except KeyboardInterrupt:
        begun = (path / "config.toml").is_file()
        raise KeyboardInterrupt(f"go on with: {shlex.join(again)}" if begun
                                else "no round had started") from None


@contextlib.contextmanager
def measured(path: Path, port: int) -> Iterator[None]:
    """Metrics of the run as long as the block runs."""
    server = metrics.MetricsServer(path, port)
    try:
        yield
    finally:
        server.close()


@contextlib.contextmanager
def stopped_like_interrupted() -> Iterator[None]:
    """A service manager's SIGTERM ends everything as an interrupt does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
