"""A sweep that releases its best run only: a secret, random number of runs, each of an arm drawn
anew, and of all of them the one with the lowest loss on public text is kept.

What it costs follows from ``aulait.privacy.private_selection``: little more than the dearest arm
alone, however many arms there are. Nothing of the other runs is kept or told, and their number is
drawn by the system's secret source. Whoever watches the machine still sees how long it works.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import SystemRandom

from aulait.core.errors import ConfigError, require
from aulait.core.files import JsonObject
from aulait.privacy.accounting import Event, of_worst_turn
from aulait.privacy.private_selection import RunCount, selection_epsilon
from aulait.runfolder.naming import KEPT_RUN, SELECTION
from aulait.runfolder.run_folder import RunFolder
from aulait.runs.experiment_file import Settings
from aulait.runs.loop import run
from aulait.runs.prepared import Engine, SharedCache
from aulait.runs.setup import prepare
from aulait.runs.sweep import Job


@dataclass(frozen=True)
class PrivateChoice:
    """What a private selection releases.

    Attributes:
        arm: label of the arm of the kept run.
        path: its folder.
        loss: on public text, nats a token.
        epsilon: of the whole selection; the kept run's own ledger holds less.
        delta: of it.
        arms: how many there were.
        runs_on_average: of the number of runs, which stays secret.
        assumed: what this epsilon rests on.
    """

    arm: str
    path: str
    loss: float | None
    epsilon: float
    delta: float
    arms: int
    runs_on_average: float
    assumed: str = (
        "the score is measured on public text alone, the number of runs and all other runs stay "
        "secret, and every run draws its own secret noise")

    def document(self) -> JsonObject:
        """As JSON."""
        return asdict(self)


def select_privately(jobs: Sequence[Job], engine: Engine, runs_on_average: float,
                     out: Path) -> PrivateChoice:
    """Run arms drawn at random and keep the best.

    Args:
        jobs: one of every arm, of one seed.
        engine: reaches the clients.
        runs_on_average: mean of the geometric number of runs, > 1.
        out: gets ``selected/``, the kept run, and ``selection.json``, which the kept run has too.

    Raises:
        ConfigError: an arm has wrong settings, no privacy, a seeded noise, a score on private
            text, or another promise than the others; or ``out`` holds a selection.
    """
    count = RunCount.geometric(runs_on_average)
    settings = [_checked(job) for job in jobs]
    promises = {(s.privacy.unit, s.privacy.unit_field, s.privacy.relation, s.privacy.delta)
                for s in settings}
    require(len(promises) == 1 and len({str(s.data) for s in settings}) == 1, ConfigError,
            "the arms differ in data, privacy.unit, unit_field, relation or delta, expected the "
            "same in all for a private selection; sweep other settings")
    require(not (out / KEPT_RUN).exists(), ConfigError,
            f"{out / KEPT_RUN} holds a selection already, and another would cost as much again; "
            "choose another --out")
    delta = settings[0].privacy.delta or 0.0
    costs = [cost for each in settings for cost in _costs(each)]
    epsilon = selection_epsilon(costs, delta, count)
    kept = _best(list(zip(jobs, settings, strict=True)), engine, count, out)
    choice = PrivateChoice(kept[0], str(out / KEPT_RUN), kept[1], epsilon, delta, len(jobs),
                           runs_on_average)
    for folder in (out, out / KEPT_RUN):  # also where whoever gets the run alone will find it
        RunFolder(folder).write_json(SELECTION, choice.document())
    return choice


def _checked(job: Job) -> Settings:
    if job.settings is None:
        raise ConfigError(job.problem)
    privacy = job.settings.privacy
    require(not privacy.off and privacy.noise_seed is None, ConfigError,
            f"arm '{job.arm.label}' has no privacy or a seeded noise, expected secret noise for a "
            "private selection; remove privacy.off and privacy.noise_seed")
    require(job.settings.evaluate.on == "public", ConfigError,
            f"arm '{job.arm.label}' is scored on private held-out text, which no epsilon covers, "
            "expected public text for a private selection; set evaluate.on = 'public'")
    return job.settings


def _costs(settings: Settings) -> list[Counter[Event]]:
    """What a run costs a unit of every role."""
    plan = prepare(settings, SharedCache()).privacy
    require(not plan.exact_roles, ConfigError,
            "votes without noise found, expected noise for a private selection; remove "
            "synthesis.votes = 'exact'")
    roles = {role for release in plan.releases for role in release.roles}
    return [of_worst_turn(sum((release.events for release in plan.releases
                               if role in release.roles), Counter[Event]()))
            for role in sorted(roles)] or [Counter()]


def _best(arms: Sequence[tuple[Job, Settings]], engine: Engine, count: RunCount,
          out: Path) -> tuple[str, float | None]:
    """Label and loss of the best run, which is moved to its place; the others are deleted."""
    source = SystemRandom()
    best: tuple[str, float | None] = ("", None)
    trial = out / "trial"
    for _ in range(count.draw(source)):
        job, settings = source.choice(arms)
        shutil.rmtree(trial, ignore_errors=True)  # what an interrupted selection left
        # A cache of its own: runs that share a first stage would not be independent.
        loss = run(settings, trial, engine, cache=SharedCache())["eval"].get("loss")
        better = math.inf if loss is None else float(loss)
        if not best[0] or better < (math.inf if best[1] is None else best[1]):
            shutil.rmtree(out / KEPT_RUN, ignore_errors=True)
            trial.rename(out / KEPT_RUN)
            best = (job.arm.label, loss)
    shutil.rmtree(trial, ignore_errors=True)
    return best
