"""Stage 1 over time: vote and breed, write the final set, deal it to the proxies."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from aulait.core.cohort import Cohort
from aulait.privacy.aggregator import BudgetSpent
from aulait.runfolder.run_folder import RunFolder
from aulait.runfolder.schema import SynthesisRound, SyntheticLine
from aulait.runs.privacy_schedule import vote_role
from aulait.runs.progress import Books, Connect, Progress, Watch, epsilons
from aulait.runs.proxies import public_shards
from aulait.runs.setup import House
from aulait.runs.virtual_time import round_time
from aulait.synthesis import private_evolution


def synthesise(house: House, folder: RunFolder, books: Books, progress: Progress, connect: Connect,
               watch: Watch) -> None:
    """Stage 1: vote and breed, then write the final set and deal it to the proxies.

    A first stage that another run of this process made with the very same settings is taken over
    with its ledger.
    """
    config, seeds, kept = house.settings.synthesis, house.seeds, house.workshop.kept
    if house.voting:
        started, key = time.perf_counter(), _stage_one_key(house)
        if key in kept and progress.synthesis is None and not books.ledger.lines:
            _take_over(kept[key], folder, books, progress)
        else:
            _evolve(house, folder, books, progress, connect, watch)
            if progress.synthesis is not None and progress.synthesis.winners:
                texts = private_evolution.expand(config, progress.synthesis, house.variation(),
                    seeds, house.corpus.public, house.embedder())
                progress.texts = private_evolution.shards(texts,
                    min(config.proxy_count, len(house.roles["proxy"])), seeds)
            progress.add(synthesis_s=time.perf_counter() - started)
            if not progress.stopped:
                kept[key] = {"texts": progress.texts, "lines": folder.lines(),
                             "ledger": list(books.ledger.lines),
                         "totals": dict(progress.totals), "synthesis": progress.synthesis}
        folder.write_lines("synthetic.jsonl", [
            SyntheticLine(**text.as_dict(), client=f"proxy-{k:03d}").on_disk()
            for k, shard in enumerate(progress.texts) for text in shard])
    elif house.roles["proxy"] and config.proxies == "public":
        count = min(config.proxy_count, len(house.roles["proxy"]))
        progress.texts = public_shards(house, count, config.texts)
    progress.stage = "train"
    progress.state = house.settings.method.init(house.settings.method_config, house.context)
    progress.save(folder)


def _stage_one_key(house: House) -> str:
    """All that determines stage 1: equal keys, equal first stage (up to the privacy noise)."""
    s = house.settings
    privacy = s.privacy.model_dump(include={"off", "epsilon", "noise_multiplier", "delta",
        "relation", "noise_seed", "vote_fraction", "mechanism"})
    synthesis = s.synthesis.model_dump(exclude={"proxies"})
    machines = [[t.name, t.machine, t.link, t.availability, t.dropout, t.spread]
                for t in s.federation.tier if t.machine]
    parts = [s.run.seed, s.model.model_dump(), s.data.model_dump(), list(house.roles["proxy"]),
             house.privacy_plan.noise_multiplier("synthesis"), privacy, synthesis,
             [machines, s.compute.model_dump(),
              {n: site.plan.tier for n, site in house.sites.items()}] if machines else None,
             s.federation.max_norm, s.engine.threads]
    return "stage-one|" + json.dumps(parts, default=str)


def _take_over(kept: Mapping[str, Any], folder: RunFolder, books: Books,
               progress: Progress) -> None:
    """Copy a first stage: its texts, its lines, and every ledger line, which this run's releases
    are added to."""
    for line in kept["ledger"]:
        books.ledger.append(line)
        if books.accountant is not None:
            books.accountant.add(line.role, line.event)
    for line in kept["lines"]:
        folder.append(SynthesisRound.model_validate({**line, "reused": True}).on_disk())
    progress.texts, progress.totals, progress.synthesis = kept["texts"], dict(kept["totals"]), kept[
        "synthesis"]


def _evolve(house: House, folder: RunFolder, books: Books, progress: Progress, connect: Connect,
            watch: Watch) -> None:
    """The rounds of stage 1."""
    config, seeds = house.settings.synthesis, house.seeds
    embedder, variation = house.embedder(), house.variation()
    ask = connect(house.sites, house.settings.method, house.context, house.learner, embedder)
    state = progress.synthesis or private_evolution.init(config, house.corpus.public, seeds)
    role = vote_role(house.settings, house.trainers)
    bound = private_evolution.vote_bound(house.settings.data.records_per_client)
    for round in range(state.round + 1, config.rounds + 1):
        watch("synthesis", round - 1, config.rounds, "voting" if house.voters else "breeding")
        started, released = time.perf_counter(), len(books.ledger.lines)
        clock = round_time.clock(house, "synthesis", round)
        there = clock.present(house.voters, "synthesis", round) if clock else house.voters
        cohort = Cohort(round=round, local=there, proxies={}, planned=len(house.voters),
                        noise_multiplier=house.privacy_plan.noise_multiplier("synthesis"),
                        role=role)
        outcome = (
            clock.round(house.voters, "synthesis", round, after_s=round_time.breeding_s(house,
                round)) if clock else None
        )
        heard = round_time.punctual(ask, outcome.silent) if outcome else ask
        try:
            state, info = private_evolution.step(config, state, cohort, heard, books.synthesis,
                embedder, variation, seeds, bound)
        except BudgetSpent as spent:
            progress.stopped = str(spent)
            break
        house.privacy_plan.check("synthesis", round, books.ledger.lines[released:])
        spent_s = time.perf_counter() - started
        line = {"stage": "synthesis", "round": round, "wall_s": spent_s, **info,
                "epsilon": epsilons(house, books.accountant)}
        line |= dict.fromkeys(("wall_s", "client_s")) if house.secret_time else {}
        if clock and outcome:
            line["clock"] = progress.tick(clock.told(outcome))
        folder.append(SynthesisRound.model_validate(line).on_disk())
        progress.synthesis = state
        progress.add(synthesis_up_bytes=info.get("up_bytes"),
                     synthesis_down_bytes=info.get("down_bytes"), client_s=info.get("client_s"))
        progress.save(folder)
    watch("synthesis", config.rounds, config.rounds, "writing the synthetic set")
    progress.synthesis = state
