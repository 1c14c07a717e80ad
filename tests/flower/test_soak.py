"""Twenty runs through random kills and restarts: nothing is lost. Many minutes; it runs when it is asked for:

    AULAIT_DEPLOY=1 AULAIT_SOAK=1 python -m pytest tests/flower/test_soak.py -s

AULAIT_SOAK_SEED chooses other schedules, AULAIT_SOAK_RUNS another number of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("flwr")
from tests.flower import trial as trials
from tests.flower.trial import PRIVATE, Federation, Trial

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.environ.get("AULAIT_SOAK") != "1", reason="many minutes; set AULAIT_SOAK=1")]
SITES = trials.NAMES[:2]
ROUNDS, MOST_STARTS = 3, 12
VICTIMS = ("server", "server and all it started", *SITES, *(f"{name}'s answer" for name in SITES))
STOPS = ("sites answered within", "sites came within", "sites took their terms within")  # lines after which a run may stop, for --resume to go on


@dataclass
class Told:
    """What was done in one schedule."""

    kills: list[str] = field(default_factory=list)
    starts: int = 1
    stops: list[str] = field(default_factory=list)


def test_nothing_is_lost_in_random_schedules_of_kills_and_restarts(tmp_path_factory, capfd):
    seed, runs = os.environ.get("AULAIT_SOAK_SEED", "1"), int(os.environ.get("AULAIT_SOAK_RUNS", "20"))
    failed = []
    with trials.federation(tmp_path_factory.mktemp("s"), SITES, privacy=False, epsilon=1000.0) as sites:
        for name in SITES:
            sites.join(name)
        calm_s, plain = undisturbed(sites)
        say(capfd, f"seed {seed}, {runs} schedules; a run without a kill takes {calm_s:.0f} s")
        for number in range(runs):
            began_s, told = time.monotonic(), Told()
            try:
                found = schedule(sites, number, random.Random(f"{seed}/{number}"), calm_s, plain, told)
            except AssertionError as error:
                failed.append(number)
                found = f"LOST: {error}"
            say(capfd, f"{number:2d} {'with' if private(number) else 'without'} privacy, {time.monotonic() - began_s:.0f} s, "
                f"{told.starts} starts; killed: {'; '.join(told.kills) or 'nothing in time'}"
                f"{'; stopped: ' + '; '.join(told.stops) if told.stops else ''}; {found}")
    assert not failed


def say(capfd, line: str) -> None:
    with capfd.disabled():
        print(line, flush=True)


def private(number: int) -> bool:
    """Every other schedule."""
    return number % 2 == 1


def tables(sites: Federation, number: int) -> dict:
    engine = {"threads": 1, "wait_s": 120.0, "deadline_s": sites.deadline_s, "least_sites": len(SITES)}
    return {"engine": engine, "train": {"rounds": ROUNDS},
            **({"privacy": PRIVATE, "algorithm": {"name": "ffa"}} if private(number) else {})}


def undisturbed(sites: Federation) -> tuple[float, Path]:
    """Seconds of a run that nobody hurts, and the same run in one process."""
    run = sites.begin("calm", **tables(sites, 0))
    began_s = time.monotonic()
    run.serve()
    assert run.finished() == 0, run.story()
    seconds = time.monotonic() - began_s
    here = trials.alone(run)
    trials.same(here / "adapter", run.out / "adapter")
    return seconds, here


def schedule(sites: Federation, number: int, dice: random.Random, calm_s: float, plain: Path, told: Told) -> str:
    """One run with two to four kills at random moments, every other one of them in training; what came of it.

    Raises:
        AssertionError: something was lost.
    """
    run = sites.begin(f"run-{number}", **tables(sites, number))
    run.serve()
    begun_s, before = time.monotonic(), list[str]()
    for at_s in sorted(dice.uniform(0.0, 1.5 * calm_s) for _ in range(dice.randint(2, 4))):
        server = sites.loopback.running["server"]
        late, round, more_s = dice.random() < 0.5, dice.randint(0, ROUNDS - 1), dice.uniform(0.0, calm_s / ROUNDS / 2)
        while server.poll() is None and (short_of(run, round) if late else time.monotonic() < begun_s + at_s):
            time.sleep(0.02)
        if late and server.poll() is None:
            time.sleep(more_s)
        if server.poll() is None:
            strike(run, dice, told)
            kept = run.ledger()
            assert kept[: len(before)] == before, "the ledger lost a line"
            before = kept
    while (code := run.finished()) != 0:
        last = run.said().strip().splitlines()[-1]
        assert code == 2, f"{code}: {last}"
        assert any(words in last for words in STOPS), last
        told.stops.append(last[:120])
        again(run, told)
    return judged(run, before, plain, told)


def short_of(run: Trial, round: int) -> bool:
    """Whether training has not yet come so far."""
    now = run.seen()
    return now.get("stage") != "train" or now.get("done", 0) < round


def strike(run: Trial, dice: random.Random, told: Told) -> None:
    """Kill something, and start it again after a while."""
    victim, sites, now = dice.choice(VICTIMS), run.federation, run.seen()
    told.kills.append(f"{victim} at {now.get('stage', 'start')} {now.get('done', 0)}")
    if victim.startswith("server"):
        run.kill_server(children=victim != "server")
        time.sleep(dice.uniform(0.0, 3.0))
        again(run, told)
    elif victim in SITES:
        sites.kill(victim)
        time.sleep(dice.uniform(0.0, 3.0))
        sites.join(victim)
    else:
        name, end = victim.removesuffix("'s answer"), time.monotonic() + 10.0
        while not (apps := sites.apps(name)) and time.monotonic() < end and sites.loopback.running["server"].poll() is None:
            time.sleep(0.02)
        for pid in apps:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def again(run: Trial, told: Told) -> None:
    """Start the server again; with --resume once there is something to go on with."""
    told.starts += 1
    assert told.starts <= MOST_STARTS, run.story()
    run.serve(*(["--resume"] if (run.out / "serve" / "experiment.toml").exists() else []))


def judged(run: Trial, before: list[str], plain: Path, told: Told) -> str:
    """What must be true at the end, in words.

    Raises:
        AssertionError: it is not.
    """
    trials.sound(run, ROUNDS)
    lost = len(run.events("silent"))
    if (run.out / "ledger.jsonl").exists():
        found = trials.kept(run, before, rounds=ROUNDS, restarts=told.starts - 1)
        return f"{lost} answers lost, {len(found)} lines in the ledger for {ROUNDS} rounds"
    if lost:
        return f"{lost} answers lost, {ROUNDS} rounds"
    trials.same(plain / "adapter", run.out / "adapter")
    trials.personal(run, plain)
    return "nothing lost, the adapters are those of one process"
