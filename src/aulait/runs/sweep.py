"""Many runs of one experiment: arms times seeds, in one process that loads and breeds once, or in
several.

An arm is a label and overrides. Each run has its own folder DIR/<arm>-s<seed>/; finished ones are
skipped, interrupted ones resumed, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import queue
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from aulait.core.errors import AulaitError, ConfigError, require
from aulait.core.files import JsonObject
from aulait.runfolder.run_folder import read_result
from aulait.runs.experiment_file import Settings, dump_settings, read_settings, renewed_settings
from aulait.runs.loop import run
from aulait.runs.prepared import Engine, SharedCache
from aulait.runs.settled import as_begun

Status = Literal["finished", "resumed", "skipped", "failed"]


@dataclass(frozen=True)
class Arm:
    """One choice of settings.

    Attributes:
        label: groups the seeds in comparisons.
        overrides: "a.b=value", as ``--set`` takes them.
    """

    label: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run: an arm with a seed, its folder, and its settings or what is wrong with them."""

    arm: Arm
    seed: int
    path: Path
    settings: Settings | None
    problem: str = ""


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job.

    Attributes:
        path: its folder.
        label: of its arm.
        seed: its seed.
        status: "finished" now, "resumed" and finished now, "skipped" because it was finished
            before, or "failed".
        message: why it failed.
        loss: held-out loss, nats a token; None when there is none.
        wall_s: seconds it took altogether.
    """

    path: Path
    label: str
    seed: int
    status: Status
    message: str = ""
    loss: float | None = None
    wall_s: float | None = None


Tell = Callable[[JobOutcome], None]


def separated(text: str, separators: str) -> list[str]:
    """The parts between separators that stand outside brackets and quotes, without outer white
    space or empty parts."""
    parts, depth, quote, current = [], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        if letter in separators and not quote and depth <= 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [part.strip() for part in (*parts, current) if part.strip()]


def arms_over(over: Sequence[str]) -> list[Arm]:
    """Arms of all combinations of ``key=v1,v2``; the first key varies slowest. Labels use the key's
    last word.

    Raises:
        ConfigError: a choice is not ``key=v1,v2``.
    """
    choices: list[tuple[str, list[str]]] = []
    for text in over:
        key, _, values = text.partition("=")
        found = separated(values, ",")
        require(
            bool(key.strip() and found),
            ConfigError,
            f"--over {text}: expected key=value,value; for example --over train.lr=1e-3,3e-3",
        )
        choices.append((key.strip(), found))
    short = [key.rpartition(".")[2] for key, _ in choices]
    names = [word if short.count(word) == 1 else key for (key, _),
             word in zip(choices, short, strict=True)]
    keys = [key for key, _ in choices]
    arms = []
    for chosen in itertools.product(*(values for _, values in choices)) if choices else []:
        label = " ".join(f"{name}={value.strip(chr(34))}"
                         for name, value in zip(names, chosen, strict=True))
        arms.append(Arm(label,
                        tuple(f"{key}={value}" for key, value in zip(keys, chosen, strict=True))))
    return arms


def named_arm(text: str) -> Arm:
    """The arm of ``label: key=value key=value``.

    Raises:
        ConfigError: there is no label, or a word is not ``key=value``.
    """
    label, found, rest = text.partition(":")
    overrides = tuple(separated(rest, " \t\n"))
    sound = bool(found and label.strip()) and all("=" in override for override in overrides)
    require(
        sound,
        ConfigError,
        f"--arm {text}: expected 'label: key=value key=value', for example 'all local: "
        "federation.tier.0.share=1.0'",
    )
    return Arm(label.strip(), overrides)


def sweep_jobs(file: Path, arms: Sequence[Arm], seeds: Sequence[int], overrides: Sequence[str],
         out: Path) -> list[Job]:
    """All runs, seed by seed; settings of every one checked before any work.

    Raises:
        ConfigError: two runs would share a folder, or every run has wrong settings.
    """
    made = []
    for seed, arm in itertools.product(seeds, arms):
        path = out / f"{re.sub(r'[^A-Za-z0-9_.=+-]+', '_', arm.label).strip('_.') or 'arm'}-s{seed}"
        labels = (f"run.seed={seed}", f"run.arm={json.dumps(arm.label)}")
        try:
            made.append(Job(arm, seed, path,
                            read_settings(file, (*overrides, *arm.overrides, *labels))))
        except ConfigError as error:
            made.append(Job(arm, seed, path, None, str(error)))
    paths = [job.path for job in made]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    require(
        twice is None,
        ConfigError,
        f"two runs of the sweep would be in {twice}; give every arm and seed once, with labels of "
        "their own",
    )
    problems = list(dict.fromkeys(line for job in made for line in job.problem.splitlines()))
    require(
        any(job.settings for job in made),
        ConfigError,
        "\n".join(problems) or "the sweep has no run; add --over or --arm",
    )
    return made


def run_all(work: Sequence[Job], engine: Engine, workers: int, tell: Tell) -> list[JobOutcome]:
    """Do all jobs; one that fails does not stop the others.

    Args:
        work: the jobs.
        engine: reaches the clients of all of them; it is sent to the workers.
        workers: processes; 1 is this one, with one cache for all.
        tell: told about every job that is done.
    """
    if workers <= 1:
        return list(_telling(_in_turn(work, engine), tell))
    return list(_telling(_side_by_side(work, engine, min(workers, len(work))), tell))


def _telling(outcomes: Iterator[JobOutcome], tell: Tell) -> Iterator[JobOutcome]:
    for outcome in outcomes:
        tell(outcome)
        yield outcome


def _in_turn(work: Sequence[Job], engine: Engine) -> Iterator[JobOutcome]:
    cache = SharedCache()
    for job in work:
        yield run_one(job, engine, cache)


def run_one(job: Job, engine: Engine, cache: SharedCache) -> JobOutcome:
    """Do one job, or see that it is done; a failure becomes an outcome."""
    if job.settings is None:
        return JobOutcome(job.path, job.arm.label, job.seed, "failed", job.problem)
    try:
        done = _finished(job.path, job.settings)
        begun = (job.path / "config.toml").exists()
        result = done or run(job.settings, job.path, engine, resume=begun, cache=cache)
    except (AulaitError, OSError) as error:
        return JobOutcome(job.path, job.arm.label, job.seed, "failed", str(error))
    except Exception as error:  # a bug in one arm must not cost the night's other runs
        return JobOutcome(job.path, job.arm.label, job.seed, "failed",
                          f"{type(error).__name__}: {error}")
    status: Status = "skipped" if done else "resumed" if begun else "finished"
    return JobOutcome(job.path, job.arm.label, job.seed, status, "", result["eval"].get("loss"),
                      result["time"].get("wall_s"))


def _finished(path: Path, settings: Settings) -> JsonObject | None:
    """result.json of a finished run with these very settings.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    if not (path / "result.json").is_file():
        return None
    held = path / "config.toml"
    same = held.is_file() and dump_settings(as_begun(settings, held)) in (
        before := held.read_text(encoding="utf-8"), renewed_settings(before))
    require(
        same,
        ConfigError,
        f"run folder {path} holds a finished run with other settings; choose another --out, or "
        "remove it",
    )
    return read_result(path / "result.json")


def _side_by_side(work: Sequence[Job], engine: Engine, workers: int) -> Iterator[JobOutcome]:
    """Processes with a cache each. Runs of a seed stay together, because they share the first
    stage."""
    context = multiprocessing.get_context("spawn")
    done: Any = context.Queue()
    lanes = [list(work[i * len(work) // workers : (i + 1) * len(work) // workers])
             for i in range(workers)]
    threads = max(1, (os.cpu_count() or 1) // workers)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read once, when a process loads its arithmetic
    processes = [context.Process(target=_lane, args=(lane, engine, threads, done),
                                 daemon=True) for lane in lanes]
    try:
        for process in processes:
            process.start()
        yield from _collected(work, processes, done)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _lane(work: Sequence[Job], engine: Engine, threads: int, done: Any) -> None:
    """One process of a sweep."""
    # an interrupt is for the parent, which ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    for outcome in _in_turn(work, engine):
        done.put(outcome)


def _collected(work: Sequence[Job], processes: Sequence[Any], done: Any) -> Iterator[JobOutcome]:
    """Outcomes as they come; the jobs of a process that died have failed."""
    missing = {job.path: job for job in work}
    while missing:
        alive = any(process.is_alive() for process in processes)
        try:
            outcome = done.get(timeout=1.0)
        except queue.Empty:
            if alive:
                continue
            break
        missing.pop(outcome.path, None)
        yield outcome
    for job in missing.values():
        yield JobOutcome(
            job.path,
            job.arm.label,
            job.seed,
            "failed",
            "its process ended before it was done; run the same command again",
        )
