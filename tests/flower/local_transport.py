"""A network in one process: packets go to handlers as bytes and come back as bytes; faults can be put in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.flower.wire import Seen, seen

from aulait.engines.deployment.coordinator.deployed_run import run_deployed
from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.coordinator.outbox import Delivery, Outbox, RunIdentity
from aulait.engines.deployment.coordinator.receipt_book import ReceiptBook
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol import signing
from aulait.engines.deployment.protocol.envelope import Packet, packet_bytes, packet_from
from aulait.engines.deployment.site import site_file
from aulait.engines.deployment.site.handler import SiteHandler

LIMIT = 2**31
Fault = Callable[[str, Seen, bytes], bytes | None]


def honest(name: str, asked: Seen, answer: bytes) -> bytes | None:
    """What came back, as it is."""
    return answer


class LocalTransport:
    """Handlers by name; ``fault(name, asked, answer)`` gives what arrives, None for nothing."""

    def __init__(self, handlers: dict[str, SiteHandler], fault: Fault = honest) -> None:
        self.handlers, self.fault = handlers, fault
        self.boxes: dict[str, bytes | None] = {}
        self.asked: list[tuple[str, Seen]] = []
        self.gone: set[str] = set()

    def connected(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(sorted(self.handlers)) if name not in self.gone}

    def send(self, address: int, packet: Packet, body: Any, wait_s: float) -> str | None:
        name = sorted(self.handlers)[address]
        arrived = seen(packet_bytes(packet))
        self.asked.append((name, arrived))
        message_id = f"message-{len(self.asked)}"
        self.boxes[message_id] = self.fault(name, arrived, packet_bytes(self.handlers[name].answer(arrived.packet)))
        return message_id

    def shared_body(self, raw: bytes) -> bytes:
        return raw

    def collect(self, message_ids: Sequence[str], limit: int):
        for message_id in message_ids:
            raw = self.boxes.pop(message_id, None)
            if raw is not None:
                try:
                    yield Delivery(message_id, packet_from(raw, limit))
                except Exception as error:
                    yield Delivery(message_id, None, str(error))


def server_keys(folder: Path) -> Path:
    if not (folder / "server").is_dir():
        keys.server(folder / "server", ["localhost"])
    return folder / "server"


def site_keys(home: Path, name: str) -> None:
    """The site's own key, by which it signs receipts of its account; without it there are none."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "site-key").exists():
        keys.site(home, name)


def receipt_book(folder: Path, out: Path, names: Sequence[str]) -> ReceiptBook:
    """The coordinator's, for sites with keys."""
    return ReceiptBook(server_keys(folder), out / "serve", {name: keys.public_line(folder / name / "site-key.pub") for name in names})


def site(folder: Path, name: str, rows: list[dict[str, Any]], **limits: Any) -> site_file.SiteFile:
    """A site's folder with its file, its own rows and the coordinator's public key."""
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = server_keys(folder)
    for file in ("ca.pem", "order-key.pub"):
        (home / file).write_bytes((server / file).read_bytes())
    told = {"privacy": False, "roles": ["local", "proxy", "split"], "threads": 1} | limits
    lines = [f"[site]\nname = \"{name}\"\nserver = \"localhost:9443\"\n", "[data]\nsource = \"own.jsonl\"\n",
             "[models]\nbrew = \"brew\"\n", "[embedders]\nwords = \"words\"\nminilm = \"minilm\"\n", "[limits]\n"]
    lines += [f"{key} = {json.dumps(value)}\n" for key, value in told.items()]
    (home / "site.toml").write_text("".join(lines))
    return site_file.read(home / "site.toml")


def engine(transport: LocalTransport, settings: Any, folder: Path, out: Path, epoch: int = 1) -> CoordinatorEngine:
    key, event_log = signing.load_private(server_keys(folder) / "order-key.pem"), EventLog(out)
    kept = all((folder / name / "site-key.pub").is_file() for name in transport.handlers)
    book = receipt_book(folder, out, sorted(transport.handlers)) if kept else None
    return CoordinatorEngine(Outbox(transport, RunIdentity(key, "a" * 32, epoch), event_log, book), settings)


def deploy(transport: LocalTransport, settings: Any, folder: Path, out: Path, *, epoch: int = 1, resume: bool = False) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    made = engine(transport, settings, folder, out, epoch)
    try:
        return run_deployed(made, settings, out, sorted(transport.handlers), resume=resume)
    finally:
        made.event_log.flush()
