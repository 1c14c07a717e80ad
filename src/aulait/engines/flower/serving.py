"""The coordinator: Flower's SuperLink and one run in it, started, watched and ended.

What this process does: it starts the SuperLink, lets the sites of the roster in, submits the run,
follows the files that
the server app writes, and ends everything. It decides nothing about the run: a second ``aulait
serve --resume`` takes up where a killed one stopped. The folder RUN/serve is the operator's: its
database holds messages of sites until they are read, so it has mode 0700, and the database goes
when the run has ended well.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aulait.core import errors
from aulait.core.errors import AulaitError, ConfigError, require
from aulait.core.files import JsonMapping, JsonObject
from aulait.core.process_lock import lock_is_held, only_process_of
from aulait.engines.deployment.coordinator.event_log import FOLDER, EventLog, read_table
from aulait.engines.deployment.pki import keys as key_files
from aulait.engines.flower import processes
from aulait.engines.flower.hardening import supported
from aulait.reporting.report import write_report
from aulait.runfolder.run_folder import RunFolder, differing_settings, read_result
from aulait.runs import experiment_file
from aulait.runs.experiment_file import Settings
from aulait.runs.ledger_curves import ledger_curves
from aulait.runs.settled import as_begun

if TYPE_CHECKING:
    from aulait.engines.flower.hardening.control import Control

Watch = Callable[[str, int, int, str], None]
EXPERIMENT: Final = f"{FOLDER}/experiment.toml"
_PORT_WAIT_S: Final = 10.0
_START_S: Final = 60.0
_APP_START_S: Final = 120.0
_APP_END_S: Final = 30.0
_LOOK_S: Final = 0.3
_FULL_BYTES: Final = 2**20


@dataclass
class SuperLinkProcess:
    """A running SuperLink.

    Attributes:
        process: its leader.
        folder: where its log, database and launchers lie.
        address: host:port that sites join.
        control: its Control API; loopback, with a pass.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    address: str
    control: Control
    _seen: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where it and everything that it starts write."""
        return self.folder / "superlink.log"

    def register(self, roster: Mapping[str, str]) -> None:
        """Let exactly the sites of this roster (name -> OpenSSH line) in; one that left it is
        turned away at once."""
        if roster != self._seen:
            self.control.register(roster)
            self._seen = dict(roster)

    def submit(self, app_folder: Path, run_config: Mapping[str, str | int | float | bool]) -> int:
        """Start a run; returns Flower's number of it. Runs that an earlier server left behind are
        stopped first."""
        self.control.stop_all()
        if not self.app_lives():  # the file tells from now on that this run's app has begun
            self._app_lock.unlink(missing_ok=True)
        return self.control.submit(app_folder, run_config)

    @property
    def _app_lock(self) -> Path:
        return self.folder / "app.lock"

    def app_began(self) -> bool:
        """Whether the server app of the submitted run has come so far as to take its lock."""
        return self._app_lock.exists()

    def app_lives(self) -> bool:
        """Whether a server app holds its lock."""
        return lock_is_held(self._app_lock)

    def check(self) -> None:
        """Raise when the SuperLink has ended.

        Raises:
            AulaitError: with its last words.
        """
        code = self.process.poll()
        text = (
            f"Flower's SuperLink ended with code {code}: {processes.last_words(self.log)}; see "
            f"{self.log}"
        )
        require(code != supported.UNFIT, ConfigError, text)
        require(code is None, AulaitError, text)

    def stop(self) -> None:
        """End it and everything that it started."""
        self.control.close()
        processes.end(self.process)


@contextlib.contextmanager
def start_link(keys: Path | None, folder: Path, host: str, port: int) -> Iterator[SuperLinkProcess]:
    """A SuperLink as long as the block runs; it answers when the block begins.

    Args:
        keys: the server's keys folder; None: without TLS, on loopback only. Sites show who they are
            either way.
        folder: of this SuperLink; made with mode 0700.
        host: address to listen on for sites; everything else listens on loopback.
        port: for sites.

    Raises:
        ConfigError: no Flower that is known, a port that is taken, no TLS beyond loopback, another
            server in this folder.
        AulaitError: it did not start; its last words.
    """
    supported.supported()
    # Flower is imported once it is known to be there; the error above says how to install it.
    from aulait.engines.flower.hardening.control import Control

    text = (
        f"no keys folder and host {host} found, expected loopback where there is no TLS; give "
        "--keys, or --host 127.0.0.1"
    )
    require(keys is not None or processes.loopback(host), ConfigError, text)
    folder = folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with only_process_of(folder):
        _wait_for_the_last(folder)
        processes.claim(host, port, _PORT_WAIT_S)
        secret, inner = secrets.token_hex(32), processes.free_port()
        supported.launchers(folder / "bin", {"flower-superexec": "", "flwr-serverapp": ""})
        around = supported.environment(folder / "bin", folder / "flower", secret, alone=False,
            AULAIT_INNER=str(inner),
                                    AULAIT_APP_LOCK=str(folder / "app.lock"))
        process = processes.start(_words(keys, folder, host, port), folder / "superlink.log",
                                  around)
        link = SuperLinkProcess(process, folder, f"{host}:{port}",
                                Control(f"127.0.0.1:{inner}", secret))
        try:
            _wait(link, lambda: processes.answers(host, port) and processes.answers("127.0.0.1",
                inner), _START_S)
            yield link
        finally:
            link.stop()


@dataclass(frozen=True)
class ServerOptions:
    """How a run is served.

    Attributes:
        keys: the server's keys folder.
        host, port: where sites join.
        resume: go on with what is in the run folder.
        insecure: without TLS, on loopback only.
    """

    keys: Path
    host: str
    port: int
    resume: bool
    insecure: bool


def serve(settings: Settings, run: Path, options: ServerOptions, watch: Watch) -> JsonObject:
    """One run over Flower, from the first process to the last.

    Args:
        settings: the experiment.
        run: its folder.
        options: how it is served.
        watch: told of progress: stage, rounds done, rounds in all, remark.

    Returns:
        What result.json holds.

    Raises:
        AulaitError: what the server app ended with, in its own words, or the death of a process.
    """
    keys, resume = options.keys, options.resume
    if (done := finished(settings, run, resume)) is not None:
        return done
    folder = run.absolute() / FOLDER
    roster = key_files.roster(keys)
    text = (
        f"found no site in {keys}/roster, expected at least one; enrol it: aulait keys enrol "
        f"{keys} NAME FILE.pub"
    )
    require(bool(roster), ConfigError, text)
    with start_link(None if options.insecure else keys, folder, options.host,
                    options.port) as link:
        event_log = EventLog(run)
        (folder / "outcome.json").unlink(missing_ok=True)
        (folder / "progress.json").unlink(missing_ok=True)
        RunFolder(run).write_text(EXPERIMENT, experiment_file.dump_settings(settings))
        link.register(roster)
        places = {"experiment": str(run.absolute() / EXPERIMENT), "out": str(run.absolute()),
                  "keys": str(keys.absolute())}
        number = link.submit(supported.app_folder(folder / "app"), {**places, "resume": resume})
        event_log.event("serving", address=link.address, sites=sorted(roster),
                        flower_run=str(number), resume=resume, insecure=options.insecure)
        outcome = follow(link, watch, _renewing(link, keys, event_log))
        event_log.event("served", ok=outcome.get("ok") is True)
    if outcome.get("ok") is not True:
        raise _error(outcome)
    return _result(run)


def finished(settings: Settings, run: Path, resume: bool) -> JsonObject | None:
    """Look at the run folder before anything starts: what result.json holds where nothing is left
    to do, else None.

    Args:
        settings: the experiment.
        run: its folder; it may not exist.
        resume: go on with what is in the folder.

    Raises:
        ConfigError: the folder holds a run and ``resume`` is false, or a run that was served with
            other settings.
    """
    if not (run / "config.toml").exists():
        return None
    require(resume, ConfigError,
        f"run folder {run} already holds a run; add --resume to go on with it, or choose another "
        "--out")
    held = run / EXPERIMENT
    require(not held.is_file() or not differing_settings(held.read_text(encoding="utf-8"),
        experiment_file.dump_settings(as_begun(settings, held))), ConfigError,
            f"run folder {run} was started with other settings ({EXPERIMENT}); resume with the "
            "same file, or choose another --out")
    # a server that is about to end
    if not (run / "result.json").exists() or lock_is_held(run / FOLDER / "lock"):
        return None
    if not (run / "report.html").exists():  # killed between result and page
        write_report(run, ledger_curves(run))
    result = _result(run)
    if read_table(run / FOLDER / "outcome.json").get("ok") is not True:  # killed before it was told
        EventLog(run).outcome(True, rounds=result["rounds"])
    return result


def _result(run: Path) -> JsonObject:
    """What result.json holds; the messages of sites in Flower's database go."""
    for path in (run / FOLDER).glob("superlink.db*"):
        path.unlink()
    return read_result(run / "result.json")


def follow(link: SuperLinkProcess, watch: Watch,
           look: Callable[[], None] = lambda: None) -> JsonObject:
    """Watch a submitted run until it has written its outcome, and give its process time to end.

    Args:
        link: with the run.
        watch: told of every progress.
        look: called now and then.

    Raises:
        AulaitError: the SuperLink or the server app ended without an outcome.
    """
    begun, gone, told, looked_s = time.monotonic(), 0, JsonObject(), 0.0
    while not (outcome := read_table(link.folder / "outcome.json")):
        link.check()
        began = link.app_began()
        # Twice in a row, for the file is there a moment before its lock is taken.
        gone = gone + 1 if began and not link.app_lives() else 0
        ended = gone > 1 and not read_table(link.folder / "outcome.json")
        late = not began and time.monotonic() - begun > _APP_START_S
        if ended or late:
            raise AulaitError(_last_words(link, "ended without a word" if ended
                else "did not start"))
        now = read_table(link.folder / "progress.json")
        if now and now != told:
            told = now
            watch(str(now.get("stage", "")), int(now.get("done", 0)), int(now.get("total", 0)),
                  str(now.get("note", "")))
        if time.monotonic() - looked_s > 2.0:
            look()
            processes.set_aside(link.log)
            looked_s = time.monotonic()
        time.sleep(_LOOK_S)
    until = time.monotonic() + _APP_END_S
    while link.app_lives() and time.monotonic() < until and link.process.poll() is None:
        time.sleep(0.1)
    return outcome


def _last_words(link: SuperLinkProcess, what: str) -> str:
    """Of a server app without an outcome; on a full disk it had nowhere to say so."""
    full = shutil.disk_usage(link.folder).free < _FULL_BYTES
    words = (
        f"no space left in {link.folder.parent}; free some" if full
        else f"{processes.last_words(link.log)}; see {link.log}"
    )
    return f"the server app {what}: {words}, then go on with --resume"


def _words(keys: Path | None, folder: Path, host: str, port: int) -> list[str]:
    """The command of the SuperLink."""
    words = supported.command("flower-superlink", "--host", host, "--port", str(port), "--database",
                              str(folder / "superlink.db"),
                           "--isolation", "subprocess", "--disable-runtime-dependency-installation")
    if keys is None:
        return [*words, "--insecure"]
    files = {"--ssl-ca-certfile": "ca.pem", "--ssl-certfile": "server.pem",
             "--ssl-keyfile": "server-key.pem"}
    for name in files.values():
        text = (
            f"found no {keys / name}, expected it; make it: aulait keys server {keys} --host NAME"
        )
        require((keys / name).is_file(), ConfigError, text)
    return [*words, "--enable-supernode-auth", *(word for flag, name in files.items()
        for word in (flag, str(keys.absolute() / name)))]


def _wait(link: SuperLinkProcess, ready: Callable[[], bool], limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while not ready():
        link.check()
        text = (
            f"Flower's SuperLink did not answer within {limit_s:.0f} s: "
            f"{processes.last_words(link.log)}; see {link.log}"
        )
        require(time.monotonic() < until, AulaitError, text)
        time.sleep(0.1)


def _wait_for_the_last(folder: Path) -> None:
    """A server app whose server was killed ends within seconds; two must never write one run."""
    until = time.monotonic() + _PORT_WAIT_S
    while lock_is_held(folder / "app.lock"):
        text = (
            f"found a server app of an earlier server at work in {folder}; end it, then try again"
        )
        require(time.monotonic() < until, ConfigError, text)
        time.sleep(0.1)


def _renewing(link: SuperLinkProcess, keys: Path, event_log: EventLog) -> Callable[[], None]:
    """Sites enrolled or removed while the run goes on; a roster that cannot be read just now
    changes nothing."""
    said = {""}

    def renew() -> None:
        try:
            link.register(key_files.roster(keys))
        except AulaitError as error:
            if str(error) not in said:
                said.add(str(error))
                event_log.warning("roster_unchanged", error=str(error))

    return renew


def _error(outcome: JsonMapping) -> AulaitError:
    """What the server app said, as the error that it was."""
    kind = getattr(errors, str(outcome.get("kind")), AulaitError)
    known = isinstance(kind, type) and issubclass(kind, AulaitError)
    return (kind if known
        else AulaitError)(str(outcome.get("error")
                              or "the run failed and did not say why; see superlink.log"))
