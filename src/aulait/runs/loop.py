"""The straight line of a run, written once: prepare, then the rounds of its stages, then finish.

    sample -> plan -> request -> update -> release -> merge -> record

One thing runs the other way round than it reads: clients train lazily. The engine's ``ask`` gives
an iterator, and the aggregator, which ``step`` calls, reads one update after the other from it. So
the training of clients happens inside the aggregator's loop over updates, and one update at a time
is in memory; with the unit "record" the aggregator charges the round before it asks the first
client. Apart from that a method never calls back up: ``step`` is a function of values.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from aulait.core.errors import PrivacyError, require
from aulait.core.files import JsonObject
from aulait.core.process_lock import only_process_of
from aulait.core.types import Info
from aulait.methods.contract import Server
from aulait.privacy.aggregator import BudgetSpent
from aulait.reporting.model_card import write_cards
from aulait.reporting.report import write_report
from aulait.runfolder.finished_ledger import check_finished
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import finish, size_law
from aulait.runs.books import check_releases, epsilons, open_books, open_ledger
from aulait.runs.experiment_file import Settings, dump_settings, renewed_settings
from aulait.runs.ledger_curves import ledger_curves
from aulait.runs.prepared import Engine, PreparedRun, SharedCache
from aulait.runs.progress import Observer, Progress
from aulait.runs.run_log import logged
from aulait.runs.settled import as_begun
from aulait.runs.setup import prepare
from aulait.runs.stage import Execution, Stage, StateT
from aulait.runs.synthesis_stage import SynthesisStage
from aulait.runs.train_stage import TrainStage
from aulait.runs.worker_checks import check_workers
from aulait.tracking.boards import Tracker

NOBODY = Observer()


def run(settings: Settings, path: Path, engine: Engine, *, resume: bool = False,
        cache: SharedCache | None = None, observer: Observer = NOBODY) -> JsonObject:
    """Run an experiment into a folder and return its result.

    Args:
        settings: the experiment.
        path: the run folder.
        engine: reaches the clients.
        resume: go on with a run that was interrupted.
        cache: loaded things to share with other runs of this process.
        observer: hears of the run while it goes.

    Returns:
        What result.json holds.

    Raises:
        AulaitError: bad settings, data or model, before any work; a broken privacy condition or a
            full disk at any time.
    """
    started, watch = time.perf_counter(), observer.watch
    watch("prepare", 0, 1, "reading data, loading the base")
    prepared = prepare(as_begun(settings, path / "config.toml"), cache or SharedCache(),
                       engine.clients)
    check_workers(prepared.settings.engine, prepared.models.base.device.type)
    if loud := size_law.warning(prepared):
        observer.warn(f"noise: {loud}")
    folder = RunFolder(path)
    entered = folder.begin(dump_settings(prepared.settings), finish.machine(), resume,
                           renewed_settings)
    done = folder.result() if entered else None
    if done is not None:
        check_finished(path, done)
        if not (path / "report.html").exists():  # killed between result and page
            write_cards(path)
            write_report(path, ledger_curves(path))
        return done
    with closing(engine):
        if engine.real_time:  # the coordinator keeps a log and a lock of its own
            return _completed(prepared, engine, folder, observer, started)
        with (only_process_of(path),
              logged(path, observer, entered, not prepared.settings.privacy.off) as heard):
            return _completed(prepared, engine, folder, heard, started)


def _completed(prepared: PreparedRun, engine: Engine, folder: RunFolder, observer: Observer,
               started: float) -> JsonObject:
    """A prepared run from its last checkpoint, or from its beginning, to its result."""
    settings, path, watch = prepared.settings, folder.path, observer.watch
    progress = Progress.load(folder)
    progress.counted_s = started
    books = open_books(prepared, open_ledger(prepared, folder, progress), engine.secure_sum)
    books.train.noise_state = progress.noise_state
    execution = Execution(prepared, engine, folder, books, progress, watch)
    watch("prepare", 1, 1, f"{len(prepared.federation.sites)} clients")
    if not progress.base_eval:
        progress.base_eval = engine.evaluate(prepared, None, False).scores
    with Tracker(settings.track, path, settings.run.name, observer.warn,
                 private=not settings.privacy.off) as tracker:
        folder.kept = tracker.kept
        tracker.described(settings.model_dump(mode="json"))
        tracker.kept(folder.lines())
        for span in settings.stage_spans[progress.place :]:
            if span.name == "synthesis":
                carry_out(SynthesisStage(execution, span), execution)
            else:
                carry_out(TrainStage(execution, span), execution)
        if harmed := harm(settings, progress):
            observer.warn(harmed)
        progress.count_seconds()
        check_releases(prepared, folder, books.ledger)
        result = finish.finish(execution)
        watch("finish", 1, 2, "writing the report")
        write_cards(path)
        page = write_report(path, ledger_curves(path))
        if settings.track.mlflow and (given := _page_for_boards(settings, path, page)):
            tracker.attach(given)
    watch("finish", 2, 2, "")
    return result


def harm(settings: Settings, progress: Progress) -> str:
    """A line where a run has ended worse than its base; empty where it has not, or where that may
    not be told, as it was measured on private text."""
    if not settings.privacy.off and settings.evaluate.on == "held-out":
        return ""
    before, after = (scores.get("loss") for scores in (progress.base_eval, progress.last_eval))
    if before is None or after is None or after <= before:
        return ""
    return (f"loss: {after:.3f} nats a token at the end, {before:.3f} before the first round: the "
            "adapter harms; lower train.lr or algorithm.server_lr, or set train.keep = 'best', "
            "which writes the adapter of the best measured round")


def _page_for_boards(settings: Settings, path: Path, page: Path) -> Path | None:
    """The report; under privacy the one of released values alone, as the other tells what was
    measured on held-out records; None of a run whose values have no guarantee."""
    if settings.privacy.off:
        return page
    try:
        return write_report(path, ledger_curves(path), release=True)
    except PrivacyError:
        return None


def carry_out(stage: Stage[StateT], execution: Execution) -> None:
    """The rounds of a stage that are left, each on disk before the next begins; and what follows
    the last."""
    state = stage.begin()
    if state is not None:
        state = _rounds(stage, state, execution)
    stage.end(state)


def _rounds(stage: Stage[StateT], state: StateT, execution: Execution) -> StateT:
    """The state after the last round; after the last that could be paid for, where the budget is
    spent before."""
    progress, folder = execution.progress, execution.folder
    for round in range(state.round + 1, stage.last + 1):
        execution.watch(stage.name, round - 1, stage.rounds, stage.note())
        started = time.perf_counter()
        planned, released = stage.plan(round), len(execution.books.ledger.lines)
        ask = stage.aggregator.sealing(planned.on_time(stage.ask),
                                       execution.run.privacy.has_release(stage.name, round))
        server = Server(ask, stage.aggregator)
        try:
            # Clients train in here: the aggregator reads their updates one by one from ``ask``.
            state, info = stage.step(state, planned.cohort, server)
        except BudgetSpent as spent:
            more = len(execution.books.ledger.lines) - released
            # a round may be made again after an interruption, and then lack what its search costs
            require(more < max(1, execution.run.privacy.release_count(stage.name, round)),
                    PrivacyError,
                    f"{stage.name} round {round} has {more} lines in the ledger and then spends "
                    "more than its budget; the method must release once a round")
            progress.stopped = str(spent)
            break
        execution.run.privacy.check(stage.name, round, execution.books.ledger.lines[released:])
        step_s = time.perf_counter() - started
        line: Info = {"stage": stage.name, "round": round, "wall_s": step_s, **info,
                      "epsilon": epsilons(execution.run, execution.books.accountant)}
        if execution.secret_seconds:
            line |= dict.fromkeys(stage.seconds)
        if planned.virtual is not None:
            line["clock"] = progress.add_virtual(planned.virtual.metrics())
        line |= stage.measure(state, round)
        folder.append(stage.line_type.model_validate(line).on_disk())
        stage.keep(state, info, step_s, time.perf_counter() - started - step_s)
        progress.save(folder)
    return state
