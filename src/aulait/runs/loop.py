"""The straight line, written once: assemble, synthesise, train, finish. A method never calls back
up.

    sample -> plan -> order -> answer -> release -> merge -> record
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aulait.core.cohort import Cohort, everyone, poisson, some
from aulait.core.types import Info
from aulait.methods.contract import Server
from aulait.privacy.aggregator import BudgetSpent
from aulait.privacy.ledger import Ledger
from aulait.runfolder.run_folder import RunFolder
from aulait.runfolder.schema import TrainRound
from aulait.runs import finish
from aulait.runs.experiment_file import Settings, dump
from aulait.runs.progress import Books, Connect, Progress, Watch, epsilons, open_books, silent
from aulait.runs.proxies import noisy, proxies, server
from aulait.runs.scoring import base_scores, scores
from aulait.runs.setup import House, Judge, Workshop, assemble
from aulait.runs.synthesis_stage import synthesise
from aulait.runs.virtual_time import round_time
from aulait.runs.virtual_time.clock import Clock, Outcome
from aulait.tracking.boards import Tracker, on_terminal
from aulait.training.trainer import learning_rate


def run(
    settings: Settings, path: Path, connect: Connect, *, resume: bool = False,
    workshop: Workshop | None = None, watch: Watch = silent,
    elsewhere: Mapping[str, int] | None = None, judge: Judge | None = None,
    warn: Callable[[str], None] = on_terminal,
) -> dict[str, Any]:
    """Run an experiment into a folder and return its result.

    Args:
        settings: the experiment.
        path: the run folder.
        connect: engine: (sites, method, setting, learner, embedder) -> ask.
        resume: go on with a run that was interrupted.
        workshop: loaded things to share with other runs of this process.
        watch: told (stage, done, total, note) for a progress bar.
        elsewhere: in a deployment, its clients (``assemble``).
        judge: scores their held-out records.
        warn: told what the operator should see and what stops nothing, a line each.

    Returns:
        What result.json holds.

    Raises:
        AulaitError: bad settings, data or model, before any work; a broken privacy condition or a
            full disk at any time.
    """
    started = time.perf_counter()
    watch("prepare", 0, 1, "reading data, loading the base")
    house = replace(assemble(settings, workshop or Workshop(), elsewhere), judge=judge)
    folder = RunFolder(path)
    entered = folder.begin(dump(settings), finish.machine(), resume)
    done = folder.result() if entered else None
    if done is not None:
        if not (path / "report.html").exists():  # killed between result and page
            finish.page(folder)
        return done
    progress = Progress.load(folder)
    progress.clock_s = started
    books = open_books(house, Ledger(path / "ledger.jsonl"))
    books.train.noise_state = progress.noise_state
    watch("prepare", 1, 1, f"{len(house.sites)} clients")
    if not progress.base_eval:
        progress.base_eval = base_scores(house)
    with Tracker(settings.track, path, settings.run.name, warn) as tracker:
        folder.kept = tracker.kept
        tracker.kept(folder.lines())
        if progress.stage == "synthesis":
            synthesise(house, folder, books, progress, connect, watch)
        if progress.stage == "train":
            train(house, folder, books, progress, connect, watch)
    progress.add(wall_s=time.perf_counter() - progress.clock_s)
    return finish.finish(house, folder, books.accountant, progress, watch)


def train(house: House, folder: RunFolder, books: Books, progress: Progress, connect: Connect,
          watch: Watch) -> None:
    """Stage 2: rounds of federated LoRA by local clients and proxies together."""
    settings, method = house.settings, house.settings.method
    extra, stands = proxies(house, progress.texts)
    extra |= server(house)
    progress.bind({**house.sites, **extra})
    ask = connect({**house.sites, **extra}, method, house.context, house.learner, None,
                  cut=settings.compute.cut,
                  wire=settings.compute.wire, private=not settings.privacy.off)
    if settings.synthesis.proxies == "noise":
        ask = noisy(ask, house)
    state = progress.state or method.init(settings.method_config, house.context)
    rounds = settings.train.rounds
    clock, beside_s = round_time.clock(house, "train"), round_time.proxies_s(house)
    for round in range(state.round + 1, rounds + 1):
        watch("train", round - 1, rounds, f"loss {progress.last_eval['loss']:.3f}"
              if progress.last_eval else "")
        started, released = time.perf_counter(), len(books.ledger.lines)
        cohort, asked = _cohort(house, round, stands, clock)
        outcome = _outcome(house, clock, cohort, asked, beside_s)
        heard = round_time.punctual(ask, outcome.silent) if outcome else ask
        try:
            state, info = method.step(settings.method_config, house.context, state, cohort,
                                      Server(heard, books.train))
        except BudgetSpent as spent:
            progress.stopped = str(spent)
            break
        house.privacy_plan.check("train", round, books.ledger.lines[released:])
        spent_s = time.perf_counter() - started
        line: Info = {"stage": "train", "round": round, "wall_s": None if house.secret_time
                      else spent_s, **info,
                      "epsilon": epsilons(house, books.accountant)}
        if clock and outcome:
            line["clock"] = progress.tick(clock.told(_shown(house, clock, cohort, outcome,
                beside_s)))
        if round % settings.evaluate.every == 0 or round == rounds:
            progress.last_eval = line["eval"] = scores(house, state, progress,
                final=round == rounds)
        folder.append(TrainRound.model_validate(line).on_disk())
        progress.state = state
        progress.add(train_s=spent_s, train_up_bytes=info.get("up_bytes"),
                     train_down_bytes=info.get("down_bytes"),
                     evaluate_s=time.perf_counter() - started - spent_s)
        progress.save(folder)
    watch("train", rounds, rounds, "")
    progress.state, progress.stage = state, "done"
    if progress.stopped or not progress.last_eval:
        progress.last_eval = scores(house, state, progress, final=True)
    progress.save(folder)


def _cohort(house: House, round: int, stands: Mapping[str, float],
            clock: Clock | None) -> tuple[Cohort, tuple[str, ...]]:
    """Who works and the public numbers of the release; and who would have been asked, those who are
    away among them.

    Who is away is in the planned number all the same. A fixed number is drawn from those who are
    there.
    """
    federation, names = house.settings.federation, house.trainers
    drawn, planned, rate = everyone(names), len(names), 1.0
    if federation.sampling == "poisson":
        drawn, rate = poisson(names, federation.rate, house.seeds, round,
                              secret=not house.settings.privacy.off), federation.rate
        planned = max(1, round_half(rate * len(names))) if names else 0
    there = clock.present(drawn, "train", round) if clock else drawn
    if federation.sampling == "fixed":
        planned = max(1, round_half(federation.rate * len(names))) if names else 0
        more = round_half(planned * (1 + house.settings.compute.over_selection))
        drawn = there = some(there, min(more, len(there)), house.seeds, round)
    # a proxied client would have been drawn as often
    drawn_share = federation.rate if federation.sampling != "all" else 1.0
    there_for = {name: drawn_share * clients for name, clients in stands.items()}
    cohort = Cohort(round=round, local=there, proxies=there_for, planned=planned,
                    sampling_rate=rate,
                  noise_multiplier=house.privacy_plan.noise_multiplier("train"),
                    lr=learning_rate(house.settings.train, round), population=everyone(names))
    return cohort, drawn


def _outcome(house: House, clock: Clock | None, cohort: Cohort, asked: Sequence[str],
             beside_s: float) -> Outcome | None:
    """A round of virtual time; with over-selection it ends when the planned number has answered,
    else when all have."""
    if clock is None:
        return None
    closing = cohort.planned if house.settings.compute.over_selection else None
    return clock.round(asked, "train", cohort.round, planned=closing,
                       server_s=beside_s + round_time.backs_s(house, asked))


def _shown(house: House, clock: Clock, cohort: Cohort, outcome: Outcome,
           beside_s: float) -> Outcome:
    """The round of virtual time that is told: under privacy with secret sampling, that of another
    cohort of the same law.

    Slow-downs follow from the public seed, so the times of the real cohort would tell who was
    drawn.
    """
    federation = house.settings.federation
    if house.settings.privacy.off or federation.sampling != "poisson":
        return outcome
    stand_in = poisson(house.trainers, federation.rate, house.seeds, cohort.round, secret=False)
    return _outcome(house, clock, cohort, stand_in, beside_s) or outcome


def round_half(value: float) -> int:
    """Nearest integer, halves up."""
    return int(value + 0.5)
