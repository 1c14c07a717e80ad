"""``aulait dossier``: the page for the person who approves a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.account import recounted
from aulait.cli.options import JsonOption, OpenOption, SetOption
from aulait.core.errors import ConfigError, PrivacyError, require
from aulait.privacy.curve import curves_of
from aulait.reporting.dossier import DossierSubject, figures, write_dossier
from aulait.reporting.finished_run import finished_run
from aulait.runfolder.naming import folder_label
from aulait.runs import experiment_file, setup
from aulait.runs.planned_run import planned_run
from aulait.runs.prepared import SharedCache

SubjectArgument = Annotated[Path,
    typer.Argument(metavar="RUN|FILE", help="A finished run's folder, or an experiment file.")]
PageOption = Annotated[Path | None,
    typer.Option("--out", metavar="PATH",
                 help="The page. Default: RUN/dossier.html, or NAME-dossier.html here.")]
SiteOption = Annotated[list[str] | None,
    typer.Option("--site", metavar="NAME=RECORDS",
                 help="A site of a deployment that has not begun, and how many records it trains "
                      "on. Repeatable.")]


def dossier(
    subject: SubjectArgument,
    overrides: SetOption = None,
    site: SiteOption = None,
    out: PageOption = None,
    open_page: OpenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write one printable page for the person who approves a run: before it from its plan, after it
    from its ledger.

    It says purpose, roles, what leaves each site, the guarantee in plain words, who is trusted with
    what and which risks remain, with hashes and space for signatures. Print it, or save it as PDF,
    from the browser. A run whose ledger and result disagree gets none.

    Example: aulait dossier experiments/cafe-commits.toml --set run.purpose='...'
    """
    with terminal.work(as_json):
        if subject.is_dir():
            require(not overrides and not site, ConfigError,
                    f"--set or --site found together with the run folder {subject}, expected "
                    "neither: a run knows its settings; leave them out")
            found = _finished(subject)
            path = out or subject / "dossier.html"
        else:
            found = _planned(subject, overrides or [], site or [])
            path = out or Path(f"{folder_label(found.run.result.name or 'run')}-dossier.html")
        write_dossier(found, path, datetime.now(UTC).date())
    if as_json:
        terminal.document({"dossier": str(path), **figures(found)})
    else:
        terminal.say(str(path))
    if open_page:
        terminal.open_page(path)


def _finished(run: Path) -> DossierSubject:
    """A run whose ledger was counted again and agrees with what it told.

    Raises:
        DataError: the folder holds no finished run.
        PrivacyError: the ledger is broken, or does not say what result.json says.
    """
    rows, ledger = recounted(run)
    differing = [row["role"] for row in rows if not row["agrees"]]
    require(not differing, PrivacyError,
            f"ledger and result.json of {run} differ for role {', '.join(differing)}, expected the "
            f"same epsilon; see aulait account {run}, and ask who changed the files")
    return finished_run(run, curves_of(ledger))


def _planned(file: Path, overrides: list[str], sites: list[str]) -> DossierSubject:
    """A run as its experiment file plans it; with sites, as a deployment."""
    require(file.is_file(), ConfigError,
            f"found neither a folder nor a file {file}, expected a run folder or an experiment "
            "file; check the path")
    records = dict(map(_site, sites))
    deployed = ["engine.name=flower"] if records else []
    settings = experiment_file.read_settings(file, [*overrides, *deployed])
    require(bool(records) or not settings.engine.deployed, ConfigError,
            f"{file} is a deployment, whose sites are not known before it is served; name each one "
            "with --site NAME=RECORDS")
    return planned_run(setup.prepare(settings, SharedCache(), records or None), file)


def _site(text: str) -> tuple[str, int]:
    """Name and number of records of a site."""
    name, _, count = text.rpartition("=")
    require(bool(name) and count.isdecimal() and int(count) > 0, ConfigError,
            f"--site {text} found, expected a name and a number of records, as ward-a=1200; "
            "correct it")
    return name, int(count)
