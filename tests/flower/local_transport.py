"""A network in one process: packets go to residents as bytes and come back as bytes; faults can be put in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aulait.engines.deployment.coordinator.deployed_run import run as deployed_run
from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.coordinator.outbox import Delivery
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol import envelope, signing
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.site import site_file
from aulait.engines.deployment.site.handler import SiteHandler

LIMIT = 2**31
Fault = Callable[[str, Packet, bytes], bytes | None]


def honest(name: str, asked: Packet, answer: bytes) -> bytes | None:
    """What came back, as it is."""
    return answer


class LocalTransport:
    """Residents by name; ``fault(name, asked, answer)`` gives what arrives, None for nothing."""

    def __init__(self, residents: dict[str, SiteHandler], fault: Fault = honest) -> None:
        self.residents, self.fault = residents, fault
        self.boxes: dict[str, bytes | None] = {}
        self.asked: list[tuple[str, Packet]] = []
        self.gone: set[str] = set()

    def there(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(sorted(self.residents)) if name not in self.gone}

    def send(self, address: int, sent: Packet, body: Any, ttl_s: float) -> str | None:
        name = sorted(self.residents)[address]
        arrived = envelope.loads(envelope.dumps(sent), LIMIT)
        self.asked.append((name, arrived))
        letter = f"letter-{len(self.asked)}"
        self.boxes[letter] = self.fault(name, arrived, envelope.dumps(self.residents[name].answer(arrived)))
        return letter

    def body(self, raw: bytes) -> bytes:
        return raw

    def collect(self, letters: Sequence[str], limit: int):
        for letter in letters:
            raw = self.boxes.pop(letter, None)
            if raw is not None:
                try:
                    yield Delivery(letter, envelope.loads(raw, limit))
                except Exception as error:
                    yield Delivery(letter, None, str(error))


def server_keys(folder: Path) -> Path:
    if not (folder / "server").is_dir():
        keys.server(folder / "server", ["localhost"])
    return folder / "server"


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


def engine(post: LocalTransport, settings: Any, folder: Path, out: Path, epoch: int = 1, run: str = "a" * 32) -> CoordinatorEngine:
    key = signing.load_private(server_keys(folder) / "order-key.pem")
    return CoordinatorEngine(post, settings, key, run, epoch, EventLog(out))


def deploy(post: LocalTransport, settings: Any, folder: Path, out: Path, *, epoch: int = 1, resume: bool = False, enrolled: Sequence[str] = ()) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    made = engine(post, settings, folder, out, epoch)
    try:
        return deployed_run(made, settings, out, sorted(enrolled or post.residents), made.journal, resume=resume)
    finally:
        made.journal.flush()
