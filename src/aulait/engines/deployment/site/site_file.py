"""The site file: one TOML in which a site says who it is, where its data and keys lie, and what it
allows.

It belongs to the site alone; nothing in it comes from the coordinator. Paths are relative to the
file. The names under ``[models]`` and ``[embedders]`` are the only ones that a coordinator can ask
for; what is loaded stands here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from aulait.core.errors import ConfigError, did_you_mean, require
from aulait.core.files import JsonObject
from aulait.core.parsing import parsed_toml, reason
from aulait.core.places import is_file, user_path
from aulait.data import sources
from aulait.data.row_fields import JOIN, RowFormat
from aulait.data.text_lines import encoding_problem
from aulait.engines.deployment.protocol.site_names import address_problem, name_problem
from aulait.engines.deployment.site.site_policy import SitePolicy
from aulait.methods import METHODS

_LARGEST_BYTES = 1 << 20
_IDENTITY = re.compile(r"[0-9a-f]{64}")


def _good_name(name: str) -> str:
    if (problem := name_problem(name)) is not None:
        raise ValueError(problem)
    return name


def _good_address(address: str) -> str:
    if (problem := address_problem(address)) is not None:
        raise ValueError(problem)
    return address


def _printable(value: Any) -> Any:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("expected printable text that is not empty")
    return value


def _good_identity(identity: str) -> str:
    if _IDENTITY.fullmatch(identity) is None:
        raise ValueError("expected 64 hexadecimal digits, as aulait keys sums tells them at that "
                         "site")
    return identity


PrintableText = Annotated[str, BeforeValidator(_printable)]
Place = Annotated[Path, BeforeValidator(_printable)]


class SiteTable(BaseModel):
    """``[site]``.

    Attributes:
        name: under which the coordinator enrolled this site; also the client's name.
        server: HOST:PORT of the coordinator.
        state: folder of this site's memory, socket and log, mode 0700; sensitive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, AfterValidator(_good_name)]
    server: Annotated[str, AfterValidator(_good_address)]
    state: Place = Path("state")


class KeyFiles(BaseModel):
    """``[keys]``.

    Attributes:
        private: this site's key; never leaves it.
        public: its public half, which the coordinator enrols.
        authority: certificate of the coordinator's authority, by which the server is known.
        orders: public key by which requests are verified.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    private: Place = Path("site-key")
    public: Place = Path("site-key.pub")
    authority: Place = Path("ca.pem")
    orders: Place = Path("order-key.pub")


class SiteData(BaseModel):
    """``[data]`` of a site.

    Attributes:
        source: as data.source of an experiment; sensitive.
        encoding: of its text files.
        format, text, prompt, response, input, join, messages: what a row holds, and its fields, as
            in ``[data]`` of an experiment; prompt and response both or none.
        label: a field with a public label.
        unit_field: this site's own name for the field whose value says which records are protected
            together; it stands in the place of the run's ``privacy.unit_field``. With it written,
            a run that protects single records alone is refused. None: the field has the run's
            name for it.
        client: a field; only rows where it is the site's name are read. "": every row is this
            site's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: PrintableText
    encoding: PrintableText = "utf-8"
    format: RowFormat = "auto"
    text: PrintableText = "text"
    prompt: PrintableText | None = None
    response: PrintableText | None = None
    input: PrintableText | None = None
    join: str = JOIN
    messages: PrintableText | None = None
    label: PrintableText | None = None
    unit_field: PrintableText | None = None
    client: str = ""


class SiteFile(BaseModel):
    """A whole site file; every path in it is absolute. ``[peers]`` names the other sites with which
    this one adds up secretly, and who each is: what ``aulait keys sums`` tells there."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    site: SiteTable
    keys: KeyFiles = KeyFiles()
    data: SiteData
    models: dict[PrintableText, PrintableText] = {"brew": "brew"}
    embedders: dict[PrintableText, PrintableText] = {"minilm": "minilm"}
    peers: dict[Annotated[str, AfterValidator(_good_name)],
                Annotated[str, AfterValidator(_good_identity)]] = {}
    limits: SitePolicy = SitePolicy()


def read(path: Path) -> SiteFile:
    """The site file at a path.

    Raises:
        ConfigError: not there, open to others, or wrong: all problems, one a line.
    """
    tree = _tree(path)
    try:
        site = SiteFile.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_explain(item)}"
                                    for item in error.errors(include_url=False))) from error
    problems = _problems(site)
    require(not problems, ConfigError, "\n".join(f"{path}: {line}" for line in problems))
    return _absolute(site, path.absolute().parent)


def absent(site: SiteFile) -> list[str]:
    """Files named in the site file that are not there, one line each with what to do."""
    advice = {"private": "make it: aulait keys site", "public": "make it: aulait keys site",
              "authority": "copy ca.pem of the coordinator",
              "orders": "copy order-key.pub of the coordinator"}
    found = [f"keys.{key}: found no file {path}; {advice[key]}"
             for key, path in dict(site.keys).items() if not is_file(path)]
    if site.data.source.startswith("/") and (wrong := sources.problem(site.data.source)):
        found.append(f"data.source: {wrong}, in the site file")
    return found


def own_state(site: SiteFile) -> Path:
    """The state folder, made with mode 0700 where it is missing.

    Raises:
        ConfigError: it is a link, belongs to somebody else, or others may enter it.
    """
    path = site.site.state
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink() and not path.exists():
            path.mkdir(mode=0o700)
        status = path.lstat()
    except (OSError, ValueError) as error:
        raise ConfigError(f"site.state {path} cannot be made ({reason(error)}); choose another "
                          "folder") from error
    mode = stat.S_IMODE(status.st_mode)
    require(stat.S_ISDIR(status.st_mode), ConfigError,
            f"site.state {path} is no folder; give the path of one, or of none yet")
    require(status.st_uid == os.geteuid(), ConfigError,
            f"site.state {path} belongs to another user; choose another folder")
    require(not mode & 0o077, ConfigError,
            f"site.state {path} has mode {mode:04o}, expected 0700; run: chmod 700 {path}")
    return path


def _tree(path: Path) -> JsonObject:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"site file {path} cannot be read ({reason}); make one: aulait keys site DIR --name "
            "NAME") from error
    text = (
        f"site file {path} has mode {mode:04o}: anybody may change what this site allows; run: "
        f"chmod o-w {path}"
    )
    require(not mode & 0o002, ConfigError, text)
    require(len(content) <= _LARGEST_BYTES, ConfigError,
            f"site file {path} is larger than 1 MiB; give the path of a site file")
    try:
        return parsed_toml(content)
    except ValueError as error:
        raise ConfigError(f"site file {path} is not TOML: {error}; correct it") from error


def _problems(site: SiteFile) -> list[str]:
    """What the tables alone do not show."""
    found = [line for line in [encoding_problem("data.encoding", site.data.encoding)] if line]
    if (site.data.prompt is None) != (site.data.response is None):
        found.append(
            "found only one of data.prompt and data.response; expected both or none; name the "
            "other field too")
    twice = [name for name, own in site.peers.items()
             if list(site.peers.values()).count(own) > 1]
    if twice:
        found.append(
            f"peers {', '.join(map(repr, sorted(twice)))} have one identity, expected one of each "
            "site's own; ask them for what aulait keys sums tells there")
    return found + [f"limits.methods: {unknown}" for method in site.limits.methods or ()
                    if (unknown := METHODS.unknown(method))]


def _absolute(site: SiteFile, folder: Path) -> SiteFile:
    """The same with absolute paths. A model is a path only when it begins with '.', '~' or '/': the
    rest are names."""

    def placed(path: Path | str) -> Path:
        return Path(os.path.normpath(folder / user_path(path)))

    def named(table: Mapping[str, str]) -> dict[str, str]:
        return {key: str(placed(value)) if value.startswith((".", "~", "/")) else value
                for key, value in table.items()}

    source = (
        str(placed(site.data.source)) if sources.is_file(site.data.source) else site.data.source
    )
    return site.model_copy(update={
        "site": site.site.model_copy(update={"state": placed(site.site.state)}),
        "keys": site.keys.model_copy(update={key: placed(path)
            for key, path in dict(site.keys).items()}),
        "data": site.data.model_copy(update={"source": source}),
        "models": named(site.models), "embedders": named(site.embedders)})


def _explain(item: Any) -> str:
    """One line for one validation error: found, expected, what to do."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return (f"unknown key '{where}'; "
                f"{did_you_mean(str(item['loc'][-1]), _known(item['loc'][:-1]))}")
    if item["type"] == "missing":
        return f"'{where}' is missing; write it, as in the file that aulait keys site makes"
    said = str(item["msg"]).removeprefix("Value error, ")
    return f"{where} = {short_form(item['input'])}: {said[:1].lower()}{said[1:]}; correct it"


def _known(place: Sequence[Any]) -> list[str]:
    """Names of the keys at a place of the file."""
    field = SiteFile.model_fields[place[0]].annotation if place else SiteFile
    return (
        list(field.model_fields) if isinstance(field, type) and issubclass(field, BaseModel) else []
    )


def short_form(value: Any) -> str:
    """A value of a file or of terms, short enough for a message."""
    text = (
        repr(value) if isinstance(value, str | int | float | bool | list | dict | None)
        else type(value).__name__
    )
    return text if len(text) <= 80 else f"{text[:77]}..."
