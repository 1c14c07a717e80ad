"""The straight line, written once: assemble, synthesise, train, finish. A method never calls back up.

    sample -> plan -> order -> answer -> release -> merge -> record
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from aulait import finish
from aulait.algorithms import evolution
from aulait.algorithms.contract import Ask, State
from aulait.algorithms.evolution import Text
from aulait.assemble import House, Workshop, assemble
from aulait.cohort import Cohort, everyone, poisson
from aulait.config import Settings, dump
from aulait.evaluate import evaluate
from aulait.privacy import clip
from aulait.privacy.account import Accountant, PrivacyConfig
from aulait.privacy.door import BudgetSpent, Door
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.record import RunFolder
from aulait.types import Info, Order, Plan, Record, Reply, Site, Tensors

Watch = Callable[[str, int, int, str], None]
Connect = Callable[..., Ask]
REFERENCES = 8


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Watch nothing."""


@dataclass
class Progress:
    """Where a run stands; everything a resumed run needs beside the ledger.

    Attributes:
        stage: "synthesis", "train" or "done".
        synthesis: state of stage 1.
        state: state of the method.
        texts: the synthetic set, dealt to proxies.
        totals: seconds and bytes by stage.
        base_eval: scores of the bare base.
        last_eval: scores after the last measured round.
        stopped: why the run ended early, if it did.
    """

    stage: str = "synthesis"
    synthesis: evolution.State | None = None
    state: State | None = None
    texts: list[list[Text]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    base_eval: dict[str, Any] = field(default_factory=dict)
    last_eval: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None

    def add(self, **amounts: float | None) -> None:
        """Add to the totals."""
        for key, amount in amounts.items():
            self.totals[key] = self.totals.get(key, 0.0) + (amount or 0.0)

    def save(self, folder: RunFolder) -> None:
        """Checkpoint."""
        held = {"stage": self.stage, "synthesis": self.synthesis.dump() if self.synthesis else None,
                "round": self.state.round if self.state else 0, "texts": [[asdict(t) for t in shard] for shard in self.texts],
                "totals": self.totals, "base_eval": self.base_eval, "last_eval": self.last_eval, "stopped": self.stopped}
        folder.checkpoint(self.state.tensors if self.state else {"none": torch.zeros(1)}, held)

    @staticmethod
    def load(folder: RunFolder) -> Progress:
        """From the checkpoint, or from the beginning."""
        found = folder.restore()
        if found is None:
            return Progress()
        tensors, held = found
        texts = [[Text(**t) for t in shard] for shard in held["texts"]]
        synthesis = evolution.State.restore(held["synthesis"]) if held["synthesis"] else None
        state = State(held["round"], tensors) if "none" not in tensors else None
        return Progress(held["stage"], synthesis, state, texts, held["totals"], held["base_eval"], held["last_eval"], held["stopped"])


def run(
    settings: Settings, path: Path, connect: Connect, *, resume: bool = False, workshop: Workshop | None = None, watch: Watch = silent
) -> dict[str, Any]:
    """Run an experiment into a folder and return its result.

    Args:
        settings: the experiment.
        path: the run folder.
        connect: engine: (sites, method, setting, learner, embedder) -> ask.
        resume: go on with a run that was interrupted.
        workshop: loaded things to share with other runs of this process.
        watch: told (stage, done, total, note) for a progress bar.

    Returns:
        What result.json holds.

    Raises:
        AulaitError: bad settings, data or model, before any work; a broken privacy condition or a full disk at any time.
    """
    started = time.perf_counter()
    watch("prepare", 0, 1, "reading data, loading the base")
    house = assemble(settings, workshop or Workshop())
    folder = RunFolder(path)
    entered = folder.begin(dump(settings), finish.machine(), resume)
    done = folder.result() if entered else None
    if done is not None:
        return done
    progress = Progress.load(folder)
    books = _open(house, Ledger(path / "ledger.jsonl"))
    watch("prepare", 1, 1, f"{len(house.sites)} clients")
    if not progress.base_eval:
        progress.base_eval = _score(house, None)
    if progress.stage == "synthesis":
        synthesise(house, folder, books, progress, connect, watch)
    if progress.stage == "train":
        train(house, folder, books, progress, connect, watch)
    progress.add(wall_s=time.perf_counter() - started)
    return finish.finish(house, folder, books.accountant, progress, watch)


@dataclass(frozen=True)
class Books:
    """One ledger and one accountant, and the door of each stage that writes to them."""

    ledger: Ledger
    accountant: Accountant | None
    synthesis: Door
    train: Door


def _open(house: House, ledger: Ledger) -> Books:
    """The books of a run, with every line that is already in the ledger charged."""
    privacy, synthesis = house.settings.privacy, house.settings.synthesis
    noise = SystemNoise() if privacy.noise_seed is None else SeededNoise(privacy.noise_seed)
    accountant = None
    if not privacy.off:
        assert privacy.delta is not None
        accountant = Accountant(privacy.delta, house.noise.budget)
        ledger.replay(accountant)
    proxies = frozenset((*_names("proxy"), *_names("reference")))
    train = Door(privacy, ledger, accountant, noise, proxies)
    exact = synthesis.votes == "exact" and not privacy.off
    votes = Door(PrivacyConfig(off=True), ledger, None, noise, proxies) if exact else train
    return Books(ledger, accountant, votes, train)


def _names(kind: str) -> list[str]:
    return [f"{kind}-{k:03d}" for k in range(1000)]


def synthesise(house: House, folder: RunFolder, books: Books, progress: Progress, connect: Connect, watch: Watch) -> None:
    """Stage 1: vote and breed, then write the final set and deal it to the proxies.

    A first stage that another run of this process made with the very same settings is taken over with its ledger.
    """
    config, seeds, kept = house.settings.synthesis, house.seeds, house.workshop.kept
    if house.voting:
        started, key = time.perf_counter(), _stage_one_key(house)
        if key in kept and progress.synthesis is None and not books.ledger.lines:
            _take_over(kept[key], folder, books, progress)
        else:
            _evolve(house, folder, books, progress, connect, watch)
            if progress.synthesis is not None and progress.synthesis.winners:
                texts = evolution.expand(config, progress.synthesis, house.variation(), seeds)
                progress.texts = evolution.shards(texts, min(config.proxy_count, len(house.roles["proxy"])), seeds)
            progress.add(synthesis_s=time.perf_counter() - started)
            kept[key] = {"texts": progress.texts, "lines": folder.lines(), "ledger": list(books.ledger.lines),
                         "totals": dict(progress.totals), "synthesis": progress.synthesis}
        folder.write_lines("synthetic.jsonl", [
            {**asdict(text), "client": f"proxy-{k:03d}"} for k, shard in enumerate(progress.texts) for text in shard])
    elif house.roles["proxy"] and config.proxies == "public":
        count = min(config.proxy_count, len(house.roles["proxy"]))
        progress.texts = _public_shards(house, count, config.texts)
    progress.stage = "train"
    progress.state = house.settings.method.init(house.settings.method_config, house.setting)
    progress.save(folder)


def _stage_one_key(house: House) -> str:
    """All that determines stage 1: equal keys, equal first stage (up to the privacy noise)."""
    s = house.settings
    privacy = s.privacy.model_dump(include={"off", "epsilon", "noise_multiplier", "delta", "relation", "noise_seed", "vote_fraction"})
    synthesis = s.synthesis.model_dump(exclude={"proxies"})
    parts = [s.run.seed, s.model.model_dump(), s.data.model_dump(), list(house.roles["proxy"]), house.noise.votes, privacy, synthesis]
    return "stage-one|" + json.dumps(parts, default=str)


def _take_over(kept: Mapping[str, Any], folder: RunFolder, books: Books, progress: Progress) -> None:
    """Copy a first stage: its texts, its lines, and every ledger line, which this run's releases are added to."""
    for line in kept["ledger"]:
        books.ledger.append(line)
        if books.accountant is not None:
            books.accountant.add(line.role, line.event)
    for line in kept["lines"]:
        folder.append({**line, "reused": True})
    progress.texts, progress.totals, progress.synthesis = kept["texts"], dict(kept["totals"]), kept["synthesis"]


def _evolve(house: House, folder: RunFolder, books: Books, progress: Progress, connect: Connect, watch: Watch) -> None:
    """The rounds of stage 1."""
    config, seeds = house.settings.synthesis, house.seeds
    embedder, variation = house.embedder(), house.variation()
    ask = connect(house.sites, house.settings.method, house.setting, house.learner, embedder)
    state = progress.synthesis or evolution.init(config, house.corpus.public, seeds)
    role = "proxy+local" if config.voters == "all" and house.roles["local"] else "proxy"
    bound = evolution.vote_bound(house.settings.data.records_per_client)
    for round in range(state.round + 1, config.rounds + 1):
        watch("synthesis", round - 1, config.rounds, "voting" if house.voters else "breeding")
        started = time.perf_counter()
        cohort = Cohort(round, house.voters, {}, len(house.voters), 1.0, house.noise.votes, role)
        try:
            state, info = evolution.step(config, state, cohort, ask, books.synthesis, embedder, variation, seeds, bound)
        except BudgetSpent as spent:
            progress.stopped = str(spent)
            break
        line = {"stage": "synthesis", "round": round, "wall_s": time.perf_counter() - started, **info, "epsilon": epsilons(house, books.accountant)}
        folder.append(line)
        progress.synthesis = state
        progress.add(synthesis_up_bytes=info.get("up_bytes"), synthesis_down_bytes=info.get("down_bytes"), client_s=info.get("client_s"))
        progress.save(folder)
    watch("synthesis", config.rounds, config.rounds, "writing the synthetic set")
    progress.synthesis = state


def _public_shards(house: House, count: int, texts: int) -> list[list[Text]]:
    """Public texts dealt like synthetic ones."""
    public = house.corpus.public
    order = torch.randperm(len(public), generator=house.seeds.generator("public-shards"))[:texts].tolist()
    return evolution.shards([Text(public[i], 0) for i in order], count, house.seeds)


def proxies(house: House, texts: Sequence[Sequence[Text]]) -> tuple[dict[str, Site], dict[str, float]]:
    """Sites on the server, and the number of clients each stands for (0 for those that only calibrate the clip)."""
    tier = next((t for t in house.settings.federation.tier if t.placement == "proxy"), None)
    train, shards = house.settings.train, list(texts)
    plan = Plan("proxy", "proxy", house.setting.rank, (tier and tier.steps) or train.steps, (tier and tier.batch) or train.batch)
    stands = len(house.roles["proxy"]) / max(1, len(shards))
    names = [f"proxy-{k:03d}" for k in range(len(shards))]
    weights = {name: stands for name in names}
    private = not house.settings.privacy.off
    if private and not shards and house.settings.privacy.clip == "proxies" and house.corpus.public:
        shards = _public_shards(house, REFERENCES, REFERENCES * house.settings.data.records_per_client)
        names = [f"reference-{k:03d}" for k in range(len(shards))]
        weights = {name: 0.0 for name in names}
    sites = {n: Site(n, plan, tuple(Record(t.text) for t in shard)) for n, shard in zip(names, shards, strict=True) if shard}
    return sites, {n: weights[n] for n in sites}


def train(house: House, folder: RunFolder, books: Books, progress: Progress, connect: Connect, watch: Watch) -> None:
    """Stage 2: rounds of federated LoRA by local clients and proxies together."""
    settings, method = house.settings, house.settings.method
    extra, stands = proxies(house, progress.texts)
    ask = connect({**house.sites, **extra}, method, house.setting, house.learner, None)
    if settings.synthesis.proxies == "noise":
        ask = _noisy(ask, house)
    state = progress.state or method.init(settings.method_config, house.setting)
    rounds = settings.train.rounds
    for round in range(state.round + 1, rounds + 1):
        watch("train", round - 1, rounds, f"loss {progress.last_eval['loss']:.3f}" if progress.last_eval else "")
        started = time.perf_counter()
        try:
            state, info = method.step(settings.method_config, house.setting, state, _cohort(house, round, stands), ask, books.train)
        except BudgetSpent as spent:
            progress.stopped = str(spent)
            break
        spent_s = time.perf_counter() - started
        line: Info = {"stage": "train", "round": round, "wall_s": spent_s, **info, "epsilon": epsilons(house, books.accountant)}
        if round % settings.evaluate.every == 0 or round == rounds:
            progress.last_eval = line["eval"] = _score(house, method.result(house.setting, state))
        folder.append(line)
        progress.state = state
        progress.add(train_s=spent_s, train_up_bytes=info.get("up_bytes"), train_down_bytes=info.get("down_bytes"),
                     evaluate_s=time.perf_counter() - started - spent_s)
        progress.save(folder)
    watch("train", rounds, rounds, "")
    progress.state, progress.stage = state, "done"
    if progress.stopped or not progress.last_eval:
        progress.last_eval = _score(house, method.result(house.setting, state))
    progress.save(folder)


def _cohort(house: House, round: int, stands: Mapping[str, float]) -> Cohort:
    federation, local = house.settings.federation, house.roles["local"]
    if federation.sampling == "all":
        return Cohort(round, everyone(local), stands, len(local), 1.0, house.noise.updates)
    drawn = poisson(local, federation.rate, house.seeds, round, secret=not house.settings.privacy.off)
    planned = max(1, round_half(federation.rate * len(local))) if local else 0
    return Cohort(round, drawn, stands, planned, federation.rate, house.noise.updates)


def round_half(value: float) -> int:
    """Nearest integer, halves up."""
    return int(value + 0.5)


def _noisy(ask: Ask, house: House) -> Ask:
    """The arm that replaces the proxies' updates by noise of the same norm."""

    def answer(orders: Sequence[Order]) -> list[Reply]:
        replies = ask(orders)
        return [replace(r, share=_scrambled(r, o, house)) if o.client.startswith("proxy-") else r for r, o in zip(replies, orders, strict=True)]

    return answer


def _scrambled(reply: Reply, order: Order, house: House) -> Tensors:
    generator = house.seeds.generator("noise-arm", order.round, order.client)
    noise = {name: torch.randn(t.shape, generator=generator) for name, t in sorted(reply.share.items())}
    scale = clip.norm(reply.share) / clip.norm(noise)
    return {name: t * scale for name, t in noise.items()}


def epsilons(house: House, accountant: Accountant | None) -> dict[str, float | None]:
    """Epsilon spent so far by the roles that exist; None means infinite."""
    spent: dict[str, float | None] = {}
    for role, names in house.roles.items():
        if names:
            spent[role] = accountant.spent(role) if accountant is not None else None
    if house.settings.synthesis.votes == "exact" and house.voters:
        spent["proxy"] = None
    return spent


def _score(house: House, adapter: Any) -> dict[str, Any]:
    """Held-out scores; those of the bare base are measured once for all runs of a process."""
    config = house.settings.evaluate

    def measure() -> dict[str, Any]:
        return evaluate(house.learner, adapter, house.holdout, config).as_dict()

    if adapter is not None:
        return measure()
    key = (house.settings.model, house.settings.data.model_copy(update={"pooled": False}), house.seeds, config)
    scores: dict[str, Any] = house.workshop.once("base-eval", key, measure)
    return scores
