"""``aulait keys``: keys and certificates of a deployment; the server's, a site's, which site has
which key, and who a site is to the others."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption
from aulait.core.errors import ConfigError
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.pki.keys import Validity

app = typer.Typer(
    name="keys",
    help="Make keys and certificates for a deployment, and enrol sites. Example: aulait keys "
         "server keys --host fl.example.org",
    invoke_without_command=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KeysArgument = Annotated[Path,
    typer.Argument(metavar="DIR", help="Folder of the keys; made where it is missing.")]
ServerKeysArgument = Annotated[Path, typer.Argument(metavar="SERVER_DIR",
    help="The coordinator's folder, made by aulait keys server.")]
HostOption = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="NAME_OR_IP",
                 help="Under which sites reach the server. Repeatable."),
]


@app.callback()
def _shown(context: typer.Context) -> None:
    """Without a command, what there is; the help text is above."""
    if context.invoked_subcommand is None:
        terminal.say(context.get_help())
        raise typer.Exit(2)


@app.command("server", cls=terminal.PlainCommand)
def server(
    folder: KeysArgument,
    host: HostOption = None,
    days: Annotated[int,
        typer.Option("--days", min=1, help="How long the server's certificate is good.")] = 825,
    renew: Annotated[
        bool,
        typer.Option("--renew",
            help="A new certificate from the kept authority; the hosts stay unless given.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make what the coordinator needs: authority, server certificate, the key that signs orders, an
    empty roster.

    Example: aulait keys server keys --host fl.example.org --host 203.0.113.7
    """
    if not host and not renew:
        raise ConfigError(
            "keys server found no --host, expected the names under which sites reach the server; "
            "add --host NAME_OR_IP")
    made = (
        keys.renew(folder, host or (), days) if renew else keys.server(folder, host or (), days)
    )
    if as_json:
        terminal.document({"path": str(folder), **_ends(made), "hosts": list(made.hosts)})
        return
    terminal.prose(
        f"{'renewed the certificate' if renew else 'made keys'} in {folder} for "
        f"{', '.join(made.hosts)}")
    terminal.prose(
        f"server certificate  until {_day(made.server)}  (then: aulait keys server {folder} "
        "--renew)")
    terminal.prose(
        f"authority           until {_day(made.authority)}  (then: new keys, and a new ca.pem at "
        "every site)")
    if not renew:
        terminal.prose(
            f"every site needs {folder / 'ca.pem'} and {folder / 'order-key.pub'}; no other file "
            "may leave this folder")


@app.command("site", cls=terminal.PlainCommand)
def site(
    folder: KeysArgument,
    name: Annotated[str, typer.Option("--name", metavar="NAME",
        help="Of the site; also the client's name in runs.")],
    address: Annotated[
        str, typer.Option("--server", metavar="HOST:PORT",
                          help="Of the coordinator, for the site file.")
    ] = "coordinator.example.org:9443",
    as_json: JsonOption = False,
) -> None:
    """Make a site's key and its site file, at the site: the private key never travels.

    Example: aulait keys site . --name ward-a --server fl.example.org:9443
    """
    mark = keys.site(folder, name, address)
    if as_json:
        terminal.document({"path": str(folder), "name": name, "fingerprint": mark})
        return
    terminal.prose(f"made the key of '{name}' in {folder}, without an end date; fingerprint {mark}")
    terminal.prose(
        f"send {folder / 'site-key.pub'} to the coordinator and read out the fingerprint by "
        "telephone")
    terminal.prose(
        "put the coordinator's ca.pem and order-key.pub beside it, then say what this site allows "
        f"in {folder / 'site.toml'}")


@app.command("sums", cls=terminal.PlainCommand)
def sums(
    path: Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file.")],
    as_json: JsonOption = False,
) -> None:
    """Tell, at a site, who it is in secure sums: the line that the other sites write under [peers].

    Example: aulait keys sums site.toml
    """
    name, identity = keys.sums(path)
    if as_json:
        terminal.document({"name": name, "identity": identity})
        return
    terminal.say(f'"{name}" = "{identity}"')
    terminal.prose(
        "every other site writes this line under [peers] of its own site file; read it out by "
        "telephone, the coordinator must not be the one who vouches for it")


@app.command("enrol", cls=terminal.PlainCommand)
def enrol(
    folder: ServerKeysArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the site.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.pub", help="The site's public key.")],
    replace: Annotated[
        bool,
        typer.Option("--replace",
            help="Give the name another key, or the key another name; the old entry is gone.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a site's public key into the roster, at the coordinator.

    Example: aulait keys enrol keys ward-a ward-a/site-key.pub
    """
    gone = keys.enrol(folder, name, file, replace)
    mark = keys.fingerprint(keys.roster(folder)[name])
    if as_json:
        terminal.document({"name": name, "fingerprint": mark, "replaced": gone})
        return
    terminal.prose(f"enrolled '{name}' with {mark}; compare it with what the site reads out")
    if gone:
        terminal.prose(
            f"no longer enrolled as before: {', '.join(gone)}; a running server turns the old key "
            "away and knows a new one when it starts again")


@app.command("list", cls=terminal.PlainCommand)
def listing(folder: ServerKeysArgument, as_json: JsonOption = False) -> None:
    """Show the roster with fingerprints, and until when the certificates are good.

    Example: aulait keys list keys
    """
    marks = {name: keys.fingerprint(line) for name, line in keys.roster(folder).items()}
    made = keys.validity(folder)
    if as_json:
        rows = [{"name": name, "fingerprint": mark} for name, mark in marks.items()]
        terminal.document({"sites": rows, **_ends(made), "hosts": list(made.hosts)})
        return
    terminal.table(f"{len(marks)} enrolled site{'' if len(marks) == 1 else 's'}",
                   ("name", "fingerprint"), list(marks.items()))
    terminal.prose(
        f"server certificate until {_day(made.server)} for {', '.join(made.hosts)}; authority "
        f"until {_day(made.authority)}")


def _ends(made: Validity) -> dict[str, str]:
    return {"server_until": made.server.isoformat(), "authority_until": made.authority.isoformat()}


def _day(moment: datetime) -> str:
    left = (moment - datetime.now(UTC)).days
    return f"{moment:%Y-%m-%d}, {f'{left} days' if left >= 0 else 'ENDED'}"
