"""The rank-16 adapter of a Llama-like model of 1B parameters, with random factors; and a server that gets it from many sites.

    python -m tests.flower.large SITES WIRE    one round of real engine, post, method and aggregator; prints its peak memory
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.seeds import Seeds
from aulait.core.types import Plan, Site, Tensors
from aulait.engines.deployment.coordinator.engine import CoordinatorEngine
from aulait.engines.deployment.coordinator.event_log import EventLog
from aulait.engines.deployment.coordinator.outbox import Delivery, Outbox, RunIdentity
from aulait.engines.deployment.protocol import envelope as packets
from aulait.engines.deployment.protocol import tensor_codec
from aulait.engines.deployment.protocol.messages import Message, UpdateAnswer
from aulait.engines.flower import flwr_records
from aulait.engines.flower.transport import FlowerTransport
from aulait.methods import fedit
from aulait.methods.contract import RunContext, Server
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.resources.meters import peak_of_process
from aulait.runs import experiment_file

RANK = 16
LIMIT = 2**31


@cache
def shapes() -> dict[str, tuple[int, int]]:
    """Layer -> (M, N) of all linear layers, from the model's own class without any weight."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = LlamaConfig(hidden_size=2048, num_hidden_layers=16, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8,
                        vocab_size=128)
    with torch.device("meta"):
        model = LlamaForCausalLM(sizes)
    return {name: tuple(part.weight.shape) for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"}


def adapter(seed: int = 0) -> Tensors:
    """Factors of every layer, rank 16."""
    torch.manual_seed(seed)
    found = {}
    for name, (m, n) in shapes().items():
        found[f"{name}.A"], found[f"{name}.B"] = torch.randn(RANK, n) / n**0.5, 0.01 * torch.randn(m, RANK)
    return found


class LateGrid:
    """A Grid on which everybody answers but the first, who comes when all others were heard: then most answers must wait.

    Answers exist only from the moment they are pulled, so that the sites' own memory is not counted.
    """

    def __init__(self, share: Path) -> None:
        self.share = share
        self.heads: dict[str, dict[str, Any]] = {}
        self.pushed, self.pulled = 0, 0

    def push_messages(self, messages):
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

        for message in messages:
            front = message.content[flwr_records.NAME][flwr_records.FRONT].data
            frame = packets.frame_of(front[: packets.START], LIMIT)
            message_id = f"message-{len(self.heads)}"
            self.heads[message_id] = json.loads(front[packets.START + frame.signature_bytes :])
            self.pushed += sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
            yield message_id

    def pull_messages(self, message_ids):
        first, last = "message-0", self.pulled >= len(self.heads) - 1
        there = [message_id for message_id in message_ids if (message_id == first) == last]
        self.pulled += len(there)
        yield from map(self.answer, there)

    def answer(self, message_id):
        head = self.heads[message_id]
        told = UpdateAnswer(run=head["run"], epoch=head["epoch"], number=head["number"], client=head["client"], weight=1.0, info={})
        content = flwr_records.records(Message(told, self.share.read_bytes()).packet())
        return SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=message_id), has_error=lambda: False, content=content)


class ToAll(FlowerTransport):
    """To everybody that there is."""

    def __init__(self, grid: LateGrid, names: list[str]) -> None:
        super().__init__(grid, {})
        self.names = names

    def connected(self):
        return {name: k + 1 for k, name in enumerate(self.names)}

    def collect(self, message_ids, limit):
        for message in self._grid.pull_messages(message_ids):
            yield Delivery(message.metadata.reply_to_message_id, flwr_records.packet(message.content, limit))


def one_round(sites: int, form: str, folder: Path, ranks: dict[str, int]) -> dict[str, Any]:
    """A round of federated averaging with so many sites; peak memory of this process and what was seen."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    names = [f"site-{k:02d}" for k in range(sites)]
    share = adapter(1)
    (folder / "share").write_bytes(tensor_codec.pack_tensors(share, form).raw)
    del share
    settings = experiment_file.build_settings({"engine": {"name": "flower", "wire": form, "deadline_s": 1000.0}, "privacy": {"off": True},
                             "algorithm": {"name": "fedit"}, "federation": {"tier": [{"name": "ward", "placement": "local"}]}})
    grid = LateGrid(folder / "share")
    identity = RunIdentity(Ed25519PrivateKey.generate(), "a" * 32, 1)
    engine = CoordinatorEngine(Outbox(ToAll(grid, names), identity, EventLog(folder)), settings)
    engine.participants.terms = {name: SimpleNamespace(digest="0" * 64) for name in names}
    context = RunContext(shapes=shapes(), rank=RANK, alpha=16.0, seeds=Seeds(0), rounds=1,
                      ranks={name: dict.fromkeys(shapes(), rank) for name, rank in ranks.items()})
    state = fedit.init(fedit.Config(), context)
    before = peak_of_process()
    everybody = {name: Site(name, Plan("ward", "local", rank=RANK, steps=1, batch=1), ()) for name in names}
    ask = engine.connect(SimpleNamespace(settings=settings, context=context, models=SimpleNamespace(learner=None, embedder=None)), everybody)
    aggregator = PrivateAggregator(PrivacyConfig(off=True), Ledger(None), None, SystemNoise(), KnownSites(frozenset()))
    cohort = Cohort(round=1, local=tuple(names), proxies={}, planned=sites, lr=1e-3)
    after, info = fedit.step(fedit.Config(), context, state, cohort, Server(ask, aggregator))
    moved = max(float((after.tensors[name] - state.tensors[name]).abs().max()) for name in state.tensors)
    return {"sites": sites, "wire": form, "peak_bytes": peak_of_process(), "before_bytes": before, "moved": moved, "refused": info["refused"],
            "up_bytes": engine.traffic["received_bytes"], "down_bytes": engine.traffic["sent_bytes"], "pushed_bytes": grid.pushed,
            "adapter_bytes": sum(t.numel() * 4 for t in lora.leading(state.tensors, lambda _: RANK).values())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(one_round(int(sys.argv[1]), sys.argv[2], Path(place), {})))
