"""A coordinator without scruples: it holds the key of requests, or another one, and says to a site whatever it likes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import tiny_run
from tests.flower.local_transport import server_keys, site, site_keys
from tests.flower.wire import Seen, made

from aulait.core import lora
from aulait.core.seeds import Seeds
from aulait.engines.deployment.protocol import run_terms, signing, tensor_codec
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.messages import Stamp
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.deployment.site.load_session import ModelCache
from aulait.evaluation.losses import EvaluateConfig
from aulait.models.fingerprint import fingerprint
from aulait.models.loading import AdapterConfig, ModelConfig, targets
from aulait.privacy.config import PrivacyConfig
from aulait.training.trainer import TrainConfig

assert tiny_run  # registers the embedder "words"
CACHE = ModelCache()
RUN = "b" * 32
MODEL = ModelConfig(name="brew", context=24, dtype="float32")
ADAPTER = AdapterConfig(rank=1, targets="attention", layers=2)
PRIVATE = {"off": False, "noise_multiplier": 4.0, "delta": 1e-4, "relation": "add-remove", "clip": 1.0}
SECRETS = ["zyxxandra", "qvelmoor", "brintopax", "ulvharrow", "ospidreth", "kwimbleth"]
ROWS = [{"text": f"{a} told {b} of {c}."} for a, b, c in zip(SECRETS, SECRETS[1:], SECRETS[2:], strict=False)]


def base():
    """The base, loaded once for all tests."""
    return CACHE.base(MODEL)


def told(**changes: Any) -> dict[str, Any]:
    """Terms as they travel; nothing in them is checked."""
    plain: dict[str, Any] = {
        "version": run_terms.VERSION, "package": "x", "run": RUN, "name": "attack", "client": "ward", "tier": "gpu", "placement": "local",
        "rank": 1, "steps": 1, "batch": 2, "ranks": None, "votes": False, "exact_votes": False, "rounds": 3, "synthesis_rounds": 0,
        "stages": [["synthesis", 1], ["train", 3]],
        "seed": 1, "model": MODEL.model_dump(mode="json"), "adapter": ADAPTER.model_dump(mode="json"),
        "train": TrainConfig().model_dump(mode="json"), "evaluate": EvaluateConfig().model_dump(mode="json"),
        "privacy": PrivacyConfig(off=True).model_dump(mode="json"), "algorithm": {"name": "fedit"}, "records_per_client": 3, "holdout": 0.25,
        "too_long": "cut", "pairs": False, "embedder": "words", "max_tokens": 24, "candidates": 8, "neighbours": 2, "cut": 2, "wire": "float32", "adapters": "float32",
        "fingerprint": fingerprint(base())}
    for name, value in changes.items():
        place, _, key = name.partition("__")
        plain[place] = {**plain[place], key: value} if key else value
    return plain


class Attacker:
    """One site and whoever speaks to it.

    Args:
        folder: of the site and the keys.
        rows: the site's records.
        keyed: it has a key, by which it signs receipts of its account.
        limits: of the site file.
    """

    def __init__(self, folder: Path, rows: list[dict[str, Any]] | None = None, keyed: bool = False, **limits: Any) -> None:
        if keyed:
            site_keys(folder / "ward", "ward")
        self.file = site(folder, "ward", ROWS if rows is None else rows, **limits)
        self.key = signing.load_private(server_keys(folder) / "order-key.pem")
        self.lines: list[dict[str, Any]] = []
        self.terms = ""
        self._number = 0
        self.restart()

    def restart(self) -> None:
        """The site's worker begins anew, with what is on its disk."""
        self.handler = SiteHandler(self.file, lambda event, **fields: self.lines.append({"event": event, **fields}), CACHE)

    def stamp(self, epoch: int = 1, number: int | None = None) -> Stamp:
        self._number = self._number + 1 if number is None else number
        return Stamp(RUN, epoch, self._number)

    def address(self, **changes: Any) -> dict[str, Any]:
        """What every message of the run bears."""
        return {**self.stamp().fields, "client": "ward", "terms": self.terms} | changes

    def hello(self) -> Packet:
        return made({"kind": "hello", **self.stamp().fields, "client": "ward", "version": run_terms.VERSION})

    def signed(self, packet: Packet, key: Any = None) -> Packet:
        return Packet(packet.head, packet.body, signing.sign(key or self.key, packet.content()))

    def tell(self, **changes: Any) -> Seen:
        """Terms; their digest is that of later requests."""
        plain = told(**changes)
        answer = self.ask(made({"kind": "terms", **self.stamp().fields, "client": "ward", "told": plain}))
        if answer.kind == "accepted":
            self.terms = RunTerms.model_validate(plain).digest
        return answer

    def request(self, stage: str = "train", round: int = 1, tensors: Any = None, stamp: Stamp | None = None, **settings: Any) -> Packet:
        """A request, not yet signed."""
        sent = start() if tensors is None else tensors
        head = {"kind": {"train": "train", "synthesis": "vote"}.get(stage, stage), **(stamp or self.stamp()).fields, "client": "ward",
                "terms": self.terms, "round": round, "settings": {"lr": 1e-3} | settings}
        return made(head, tensor_codec.pack_tensors(sent).raw)

    def evaluation(self, **changes: Any) -> Packet:
        """Ask for scores, not yet signed."""
        return made({"kind": "evaluate", **self.address(), "what": "base", "round": 0} | changes)

    def ask(self, packet: Packet) -> Seen:
        """What the site says to a packet that is signed now."""
        return self.answer(self.signed(packet))

    def answer(self, packet: Packet) -> Seen:
        """What the site says to a packet as it is."""
        return Seen(self.handler.answer(packet))

    def refused(self, answer: Seen, *words: str) -> None:
        """It said no, logged it, and told nothing of its records."""
        assert answer.kind == "refusal", answer.head
        assert set(answer.head) == {"kind", "run", "epoch", "number", "reason", "why"}
        assert answer.body == b""
        silent(answer)
        assert self.lines[-1]["event"] == "refused"
        for word in words:
            assert word in answer.head["reason"], answer.head["reason"]


def start() -> Any:
    """Factors that a request may carry."""
    return lora.to_tensors(lora.initial(targets(base(), ADAPTER), 1, ADAPTER.alpha, Seeds(1)))


def silent(packet: Seen) -> None:
    """No word of the records is in it."""
    text = json.dumps(packet.head) + packet.body.decode("latin-1")
    assert not any(secret in text for secret in SECRETS)
