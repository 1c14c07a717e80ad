"""A small federation whose sites add up secretly: each knows the others by what their keys tell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tests import tiny_run
from tests.flower.local_transport import LocalTransport, server_keys, site, site_keys

from aulait.core.types import VoteRequest
from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.coordinator.outbox import Outbox, RunIdentity
from aulait.engines.deployment.protocol import receipts, signing
from aulait.engines.deployment.protocol.messages import Message, TermsMessage
from aulait.engines.deployment.site import site_file
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.deployment.site.load_session import ModelCache
from aulait.privacy.mechanisms import DISTRIBUTED_GAUSSIAN
from aulait.privacy.noise import SystemNoise
from aulait.privacy.secure.quorum import Quorum
from aulait.privacy.secure.summation import SecureSumRequest
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.synthesis.private_evolution import vote_bound

CACHE, MODELS = SharedCache(), ModelCache()
NAMES = ("c0", "c1", "c2", "c3", "c4")
SECURE = {
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "relation": "zero-out",
    "trust": "secure",
    "clip": 0.5,
}
TIERS = [{"name": "gpu", "placement": "local"}]


def tables(method: str = "ffa", **more: Any) -> dict[str, Any]:
    """An experiment of five sites that train alone; one may drop out."""
    return {
        "federation": {"tier": TIERS},
        "algorithm": {"name": method, "server": "momentum"},
        "privacy": SECURE,
        "engine": {"name": "flower", "threads": 1, "wait_s": 5.0},
        "train": {"rounds": 2, "steps": 2, "batch": 2, "rows_at_once": 2},
        "adapter": {"rank": 2, "targets": "attention", "layers": 2},
        "evaluate": {"records_per_client": 1, "every": 10},
    } | more


def settings(folder: Path, method: str = "ffa", **more: Any) -> Any:
    return tiny_run.settings(folder, **tables(method, **more))


def identity(home: Path, name: str) -> str:
    """What ``aulait keys sums`` tells there."""
    found = receipts.identity(name, home / "site-key")
    assert found is not None
    return found.sums.public.hex()


def introduce(folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, str]:
    """Write everybody's identity into every site file."""
    told = {name: identity(folder / name, name) for name in names}
    for name in names:
        path = folder / name / "site.toml"
        text = re.sub(r"\[peers\]\n(?:[^\[]*)", "", path.read_text())
        path.write_text(
            text
            + "\n[peers]\n"
            + "".join(f'"{other}" = "{key}"\n' for other, key in told.items() if other != name)
        )
    return told


def handlers(
    folder: Path, rows: dict[str, list[dict[str, Any]]], log: Any = None, **limits: Any
) -> dict[str, SiteHandler]:
    """Sites with keys that know each other."""
    for name in rows:
        site_keys(folder / name, name)
        site(
            folder,
            name,
            rows[name],
            **{
                "privacy": True,
                "epsilon": 1000.0,
                "lifetime_epsilon": 5000.0,
                "roles": ["local", "proxy"],
            }
            | limits,
        )
    introduce(folder, tuple(rows))
    say = log or (lambda event, **fields: None)
    return {
        name: SiteHandler(site_file.read(folder / name / "site.toml"), say, MODELS) for name in rows
    }


VOTERS = {
    "federation": {"tier": [{"name": "laptop", "placement": "proxy"}]},
    "synthesis": {"rounds": 3, "candidates": 4, "voters": "proxy"},
}
CANDIDATES = 4


class Coordinator:
    """Whoever speaks to the sites, from its first hello to accepted terms; tests let it lie.

    Args:
        folder: of everything.
        post: carries its messages.
        settings: of the run.
        run: 32 hexadecimal digits; one for each test.
        identities: what it says who the sites are; None: what they told.
    """

    def __init__(
        self,
        folder: Path,
        post: LocalTransport,
        settings: Any,
        run: str,
        *,
        epoch: int = 1,
        identities: dict[str, str] | None = None,
    ) -> None:
        key = signing.load_private(server_keys(folder) / "order-key.pem")
        log = EventLog(folder / "served" / run)
        self.engine: CoordinatorEngine[bytes] = CoordinatorEngine(
            Outbox(post, RunIdentity(key, run, epoch), log), settings
        )
        people = self.engine.participants
        told = people.hello(1, 1.0, sorted(post.handlers))
        people.identities = identities or {name: facts.identity for name, facts in told.items()}
        self.prepared = prepare(settings, CACHE, dict.fromkeys(sorted(told), 1))
        self.people, self.outbox, self.sums, self.run = (
            people,
            self.engine._outbox,
            self.engine._sums,
            run,
        )

    def begin(self) -> Coordinator:
        """Tell the terms; a refusal is an error."""
        self.engine.begin(self.prepared, {}, again=False)
        return self

    def asked(self, round: int = 1, **changes: Any) -> SecureSumRequest:
        """What a vote's sum is to be."""
        privacy, bound = self.prepared.settings.privacy, vote_bound(3)
        event = DISTRIBUTED_GAUSSIAN.event(1.0, 1.0, 1)
        sensitivity = DISTRIBUTED_GAUSSIAN.sensitivity(bound, privacy.relation)
        planned = len(self.prepared.federation.voters)
        return SecureSumRequest(
            **dict(
                stage="synthesis",
                round=round,
                clients=self.prepared.federation.voters,
                planned=planned,
                quorum=Quorum.of(planned, privacy.dropouts, privacy.colluders),
                numbers=CANDIDATES,
                bound=bound,
                sensitivity=sensitivity,
                sigma=sensitivity,
                accounted=event.noise_multiplier,
                words=SystemNoise().client_words,
            )
            | changes
        )

    def vote(self, round: int = 1, names: tuple[str, ...] = NAMES) -> list[str]:
        """Ask for the masked votes of a round; whose were taken."""
        table = torch.nn.functional.normalize(
            torch.randn(CANDIDATES, 8, generator=torch.Generator().manual_seed(7))
        )
        requests = [
            VoteRequest(name, round, {"embeddings": table}, {"neighbours": 1}) for name in names
        ]
        ask = self.engine.connect(self.prepared, self.prepared.federation.sites)
        return [update.client for update in ask(requests)]

    def refusals(self) -> dict[str, str]:
        """Site -> the last reason it gave, or why it is silent."""
        self.engine.event_log.flush()
        path = self.engine.event_log.folder / "log.jsonl"
        lines = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        return {
            line["site"]: line.get("reason", "")
            for line in lines
            if line["event"] in ("refused", "silent")
        }

    def tell(self, name: str, run: str, **changes: Any) -> Any:
        """What a site says to terms of another run that differ from those of this one; they are
        its terms from now on."""
        self.people.terms[name] = self.people.terms[name].model_copy(update={"run": run} | changes)
        self.outbox._identity = RunIdentity(self.outbox._identity.key, run, 1)
        head = TermsMessage(
            **self.outbox.stamp(name).fields, client=name, told=self.people.terms[name]
        )
        return dict(self.outbox.exchange({name: Message(head)}, 5.0))[name].head

    def exchange(self, name: str, kind: Any, **fields: Any) -> Any:
        """The head of a site's answer to one message of the run."""
        head = kind(
            **self.outbox.stamp(name).fields,
            client=name,
            terms=self.people.terms[name].digest,
            round=1,
            **fields,
        )
        answers = dict(self.outbox.exchange({name: Message(head)}, 5.0))
        return answers[name].head if name in answers else None


def federation(folder: Path, log: Any = None, **limits: Any) -> LocalTransport:
    """Five sites that know each other, and vote."""
    tiny_run.write_data(folder)
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["client"] in NAMES]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LocalTransport(
        handlers(
            folder,
            {name: [row for row in rows if row["client"] == name] for name in NAMES},
            log,
            **limits,
        )
    )
