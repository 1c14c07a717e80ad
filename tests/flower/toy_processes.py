"""A toy federation of real Flower processes: keys, a server whose app asks every site, sites that answer."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.site import site_file
from aulait.engines.flower import joining, processes
from aulait.engines.flower.hardening import supported

HERE = Path(__file__).parent

SERVER = '''
import json, os, time
from pathlib import Path
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    folder = Path(config["folder"])
    (folder / "pids").open("a").write(f"{os.getpid()}\\n")
    while len(list(grid.get_node_ids())) < config["sites"]:
        time.sleep(0.2)
    if config["hang"]:
        (folder / "hanging").touch()
        time.sleep(1000)
    found = {}
    for asked in config["asked"].split(","):
        text = "x" * int(asked[1:]) if asked.startswith("*") else asked
        content = RecordDict({"ask": ConfigRecord({"text": text})})
        messages = [Message(content, node, "query.aulait") for node in grid.get_node_ids()]
        sent, replies, until = set(grid.push_messages(messages)), [], time.time() + config["wait_s"]
        while len(replies) < len(sent) and time.time() < until:
            replies += grid.pull_messages(sent)
            time.sleep(0.2)
        found[asked] = [r.error.reason if r.has_error() else dict(r.content["answer"]) for r in replies]
    part = folder / "outcome.part"
    part.write_text(json.dumps({"ok": True, "found": found}))
    part.replace(folder / "outcome.json")
'''
CLIENT = '''
from pathlib import Path
Path("{marker}").write_text("code of the server ran at the site")
from flwr.clientapp import ClientApp
app = ClientApp()
'''


def toy_app(folder: Path, marker: Path) -> Path:
    supported.app_folder(folder)
    (folder / "server_app.py").write_text(SERVER)
    (folder / "client_app.py").write_text(CLIENT.format(marker=marker))
    project = (folder / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(project.partition("[tool.flwr.app.config]")[0] + (
        '[tool.flwr.app.config]\nevil = "shipped"\nfolder = ""\nsites = 1\nhang = false\nasked = "one"\nwait_s = 30\n'))
    return folder


def server_keys(folder: Path) -> Path:
    keys.server(folder, ["localhost", "127.0.0.1"])
    return folder


def site(folder: Path, server: Path, name: str, port: int, enrolled: bool = True, **limits: object) -> site_file.SiteFile:
    keys.site(folder, name, f"127.0.0.1:{port}")
    if enrolled:
        keys.enrol(server, name, folder / "site-key.pub")
    for copied in ("ca.pem", "order-key.pub"):
        (folder / copied).write_bytes((server / copied).read_bytes())
    (folder / "notes.jsonl").write_text('{"text": "a"}\n')
    read = site_file.read(folder / "site.toml")
    return read.model_copy(update={"limits": read.limits.model_copy(update=limits)})


@contextmanager
def joined(site: site_file.SiteFile):
    """A site in a thread of this process; yields the lines that it says."""
    said: list[str] = []
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            joining.join(site, False, said.append, stop, work=lambda _site, stopped, _log: stopped.wait(), app="toy_site:app")
        except BaseException as error:
            errors.append(error)
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def until(true, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


free_port = processes.free_port
