"""A run that was killed and resumed is the run that was not: bit for bit without noise, and with every release kept."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests import tiny_run
from tests.tiny_bases import write

from aulait.core.errors import AulaitError, ConfigError, NobodyTrained
from aulait.engines.inline import InlineEngine
from aulait.models import peft_export
from aulait.privacy.accounting import Accountant
from aulait.privacy.ledger import Ledger
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Progress
from aulait.synthesis import private_evolution

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 0.1}
TIMES = ("wall_s", "client_s")


class Killed(BaseException):
    """As sudden as a process that ends: nothing in the code may catch it."""


class Killer:
    """Raises at one of the moments at which a run touches the disk.

    Args:
        monkeypatch: puts the hooks in.
        at: number of the moment, from 0; None counts the moments and never kills.
    """

    def __init__(self, monkeypatch, at: int | None) -> None:
        self.at, self.seen = at, []
        for owner, name in ((os, "replace"), (RunFolder, "append"), (Ledger, "append"), (peft_export, "export"), (private_evolution, "result")):
            label = f"{getattr(owner, '__name__', owner)}.{name}"
            monkeypatch.setattr(owner, name, self._around(getattr(owner, name), label))

    def _around(self, real, label):
        def call(*arguments, **named):
            what = f"{label} {Path(arguments[1]).name}" if label.endswith("replace") else label
            self._moment(f"before {what}")
            value = real(*arguments, **named)
            self._moment(f"after {what}")
            if label == "RunFolder.append":
                self._torn(arguments[0].path / "rounds.jsonl")
            return value

        return call

    def _moment(self, label: str) -> None:
        self.seen.append(label)
        if len(self.seen) - 1 == self.at:
            raise Killed(label)

    def _torn(self, path: Path) -> None:
        """The moment at which half of the last line is on disk."""
        self.seen.append("torn line")
        if len(self.seen) - 1 == self.at:
            path.write_bytes(path.read_bytes()[:-20])
            raise Killed("torn line")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tiny_run.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def shared():
    return SharedCache()


def experiment(place: Path, **tables):
    named = {"name": str(write(place, "llama")), "context": 24, "device": "cpu"}
    return tiny_run.settings(place, **({"model": named} | tables))


def go(settings, path: Path, shared: SharedCache, resume: bool = False):
    return loop.run(settings, path, InlineEngine(), resume=resume, cache=tiny_run.fresh(shared))


def killed_and_resumed(settings, path: Path, shared: SharedCache, *moments: int):
    """Kill at each of the moments in turn, each time of the resumed run, then let it finish."""
    labels = []
    for number, moment in enumerate(moments):
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, moment)
            try:
                go(settings, path, shared, resume=number > 0)
            except Killed:
                labels.append(killer.seen[-1])
    return go(settings, path, shared, resume=True), labels


def same(path: Path, result, other: Path, wanted) -> None:
    assert (path / "adapter" / "adapter_model.safetensors").read_bytes() == (other / "adapter" / "adapter_model.safetensors").read_bytes()
    for key in ("eval", "base_eval", "traffic", "rounds", "privacy"):
        assert result[key] == wanted[key], key
    assert (path / "synthetic.jsonl").read_bytes() == (other / "synthetic.jsonl").read_bytes()
    assert untimed(path) == untimed(other)
    for name in ("machine.json", "config.toml", "report.html", "result.json", "adapter/adapter_config.json"):
        assert (path / name).exists(), name
    assert json.loads((path / "result.json").read_text()) == result
    assert not list(path.rglob("*.tmp"))


def test_a_run_that_an_earlier_version_began_is_resumed_and_one_of_other_settings_is_not(place, shared, tmp_path):
    """A key that has come since stands at its default in the folder's settings, too."""
    settings = experiment(place)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        Killer(patch, 40)
        go(settings, tmp_path / "run", shared)
    config = tmp_path / "run" / "config.toml"
    lines = config.read_text().splitlines(keepends=True)
    without = [line for line in lines if not line.startswith("mechanism = ")]
    assert len(without) < len(lines)
    config.write_text("".join(without).replace("\nlr = ", "\nlr = 1"))
    with pytest.raises(ConfigError, match="lr = "):
        go(settings, tmp_path / "run", shared, resume=True)
    config.write_text("".join(without))
    assert go(settings, tmp_path / "run", shared, resume=True)["rounds"] == settings.train.rounds


def untimed(path: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in RunFolder(path).lines()]


@pytest.fixture(scope="module")
def whole(place, shared):
    """The run that nobody kills, and the moments at which it could have been."""
    with pytest.MonkeyPatch.context() as patch:
        counter = Killer(patch, None)
        result = loop.run(experiment(place), place / "whole", InlineEngine(), cache=shared)
    return place / "whole", result, counter.seen


def test_the_run_itself_is_a_sound_one(whole):
    path, result, moments = whole
    stages = [(line["stage"], line["round"]) for line in RunFolder(path).lines()]
    assert stages == [("synthesis", 1), ("synthesis", 2), ("train", 1), ("train", 2), ("train", 3)]
    assert result["rounds"] == 3
    assert result["eval"]["loss"] != result["base_eval"]["loss"]
    assert (path / "synthetic.jsonl").read_text()
    assert len(moments) >= 40


@pytest.mark.parametrize("part", range(4))
def test_a_kill_at_any_moment_changes_nothing(part, whole, place, shared, tmp_path):
    path, wanted, moments = whole
    for moment in range(part, len(moments), 4):
        killed = tmp_path / str(moment)
        result, labels = killed_and_resumed(experiment(place), killed, shared, moment)
        assert labels == [moments[moment]]
        try:
            same(killed, result, path, wanted)
        except AssertionError as error:
            raise AssertionError(f"killed {moments[moment]} (moment {moment})") from error


def test_many_kills_one_after_another(whole, place, shared, tmp_path):
    path, wanted, _ = whole
    result, labels = killed_and_resumed(experiment(place), tmp_path / "run", shared, 6, 9, 4, 7, 11)
    assert len(labels) == 5
    same(tmp_path / "run", result, path, wanted)


def test_a_finished_run_is_returned_as_it_is(whole, place, shared):
    path, wanted, _ = whole
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    assert go(experiment(place), path, shared, resume=True) == wanted
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


def test_a_finished_run_is_not_overwritten(whole, place, shared):
    with pytest.raises(ConfigError, match="already holds a run"):
        go(experiment(place), whole[0], shared)


def test_resume_with_other_settings_names_what_changed(whole, place, shared):
    with pytest.raises(ConfigError, match=r"rounds = 3 -> rounds = 4"):
        go(experiment(place, train={"rounds": 4}), whole[0], shared, resume=True)


def test_a_full_disk_is_one_line_and_the_run_can_go_on(whole, place, shared, tmp_path):
    path, wanted, _ = whole
    calls = itertools.count()
    real = os.fsync

    def fsync(descriptor):
        if next(calls) >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(AulaitError, match="no space left in the run folder") as caught:
            go(experiment(place), tmp_path / "run", shared)
    assert "\n" not in str(caught.value)
    same(tmp_path / "run", go(experiment(place), tmp_path / "run", shared, resume=True), path, wanted)


def test_a_first_stage_taken_over_gives_the_same_run(whole, place, shared, tmp_path):
    """``shared`` holds the first stage of the whole run; also when the run is killed while it takes it over."""
    path, wanted, _ = whole
    taken = loop.run(experiment(place), tmp_path / "taken", InlineEngine(), cache=shared)
    assert {line.get("reused") for line in RunFolder(tmp_path / "taken").lines()} == {True, None}
    assert (tmp_path / "taken/adapter/adapter_model.safetensors").read_bytes() == (path / "adapter/adapter_model.safetensors").read_bytes()
    assert {k: taken[k] for k in ("eval", "traffic")} == {k: wanted[k] for k in ("eval", "traffic")}
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, 7)
        with pytest.raises(Killed):
            loop.run(experiment(place), tmp_path / "killed", InlineEngine(), cache=shared)
    loop.run(experiment(place), tmp_path / "killed", InlineEngine(), cache=shared, resume=True)
    assert (tmp_path / "killed/adapter/adapter_model.safetensors").read_bytes() == (path / "adapter/adapter_model.safetensors").read_bytes()


# -- under privacy ---------------------------------------------------------------------------------------------


def books(path: Path, budget: float = 8.0):
    """The ledger, checked: numbers without gaps, epsilon of every line recomputed from the lines before."""
    ledger, accountant = Ledger(path / "ledger.jsonl"), Accountant(1e-3, {"proxy": math.inf, "local": math.inf, "split": math.inf})
    for number, line in enumerate(ledger.lines, start=1):
        accountant.add(line.role, line.event)
        assert line.release == number
        assert line.epsilon == {role: pytest.approx(accountant.spent(role), rel=1e-9) for role in line.epsilon}
        assert all(spent <= budget * (1 + 1e-9) for spent in line.epsilon.values())
    return ledger.lines


@pytest.fixture(scope="module")
def private_moments(place, shared):
    with pytest.MonkeyPatch.context() as patch:
        counter = Killer(patch, None)
        result = go(experiment(place, privacy=PRIVATE), place / "private", shared)
    assert result["privacy"]["stopped_early"] is None
    assert result["privacy"]["private"]
    assert result["privacy"]["epsilon"]["max"] == pytest.approx(8.0, rel=1e-6)
    assert result["privacy"]["epsilon"]["max"] <= 8.0
    assert [(line.stage, line.round) for line in books(place / "private")] == [
        ("synthesis", 1), ("synthesis", 2), ("train", 1), ("train", 2), ("train", 3)]
    return counter.seen


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("seeded", [False, True])
def test_the_ledger_never_forgets_and_the_budget_holds(part, seeded, private_moments, place, shared, tmp_path):
    """Kills around every release, and at a few other moments."""
    near = [i for i, label in enumerate(private_moments) if "Ledger" in label or "checkpoint" in label or "state." in label]
    privacy = PRIVATE | ({"noise_seed": 7} if seeded else {})
    for moment in near[part + 2 * seeded :: 4]:
        path = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, moment)
            with pytest.raises(Killed):
                go(experiment(place, privacy=privacy), path, shared)
        ledger = path / "ledger.jsonl"
        before = ledger.read_bytes() if ledger.exists() else b""
        result = go(experiment(place, privacy=privacy), path, shared, resume=True)
        assert ledger.read_bytes().startswith(before), private_moments[moment]
        lines = books(path)
        assert len(lines) <= 5
        assert result["privacy"]["private"] is not seeded
        assert result["privacy"]["epsilon"]["max"] <= 8.0 * (1 + 1e-9)
        done = len(RunFolder(path).lines())
        # Every release that was paid for and lost is a round less, and the run says so.
        assert (result["privacy"]["stopped_early"] is not None) == (done < 5), private_moments[moment]
        assert math.isfinite(result["eval"]["loss"])


def test_a_release_that_was_paid_and_lost_is_not_repeated_for_free(private_moments, place, shared, tmp_path):
    moment = [i for i, label in enumerate(private_moments) if label == "after Ledger.append"][3]
    result, labels = killed_and_resumed(experiment(place, privacy=PRIVATE), tmp_path / "run", shared, moment)
    assert labels == ["after Ledger.append"]
    assert [(line.stage, line.round) for line in books(tmp_path / "run")] == [
        ("synthesis", 1), ("synthesis", 2), ("train", 1), ("train", 2), ("train", 2)]
    assert result["rounds"] == 2
    assert "budget" in result["privacy"]["stopped_early"]


def test_a_first_stage_whose_budget_went_in_kills_ends_in_one_line(place, shared, tmp_path):
    """One vote, lost by a kill: no winners, no texts, and nobody trains locally."""
    settings = experiment(
        place, privacy=PRIVATE, synthesis={"rounds": 1}, federation={"tier": [{"name": "laptop", "placement": "proxy"}]})
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, None)
        real = Ledger.append

        def append(self, line):
            real(self, line)
            raise Killed

        patch.setattr(Ledger, "append", append)
        with pytest.raises(Killed):
            go(settings, tmp_path / "run", shared)
    with pytest.raises(NobodyTrained, match=r"nobody trains: .*stage 1 stopped early.*budget"):
        go(settings, tmp_path / "run", shared, resume=True)
    assert len(books(tmp_path / "run")) == 1
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_torn_ledger_line_is_set_aside(private_moments, place, shared, tmp_path):
    """Half of a line on disk: its append never returned, so nothing was released under it and nothing is charged."""
    path = tmp_path / "run"
    moment = [i for i, label in enumerate(private_moments) if label == "before Ledger.append"][3]
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, moment)
        with pytest.raises(Killed):
            go(experiment(place, privacy=PRIVATE), path, shared)
    with (path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"release": 4, "stage": "tr')
    result = go(experiment(place, privacy=PRIVATE), path, shared, resume=True)
    assert result["privacy"]["stopped_early"] is None
    assert len(books(path)) == 5
    assert (path / "ledger.torn").exists()


# -- real processes --------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from aulait.engines.inline import InlineEngine
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from tests import tiny_run

folder, delays = Path(sys.argv[1]), [float(word) for word in sys.argv[2:]]
settings, shop = tiny_run.settings(folder), SharedCache()
prepare(settings, shop)  # loaded once; every child is a process of its own from here
for delay in [*delays, None]:
    child = os.fork()
    if child == 0:
        try:
            loop.run(settings, folder / "run", InlineEngine(), resume=True, cache=shop)
        except BaseException as error:
            print("child:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    lines = (folder / "run" / "rounds.jsonl")
    print(status, len(lines.read_bytes().splitlines()) if lines.exists() else 0, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_time_and_resume(tmp_path):
    """Processes that are really killed, on brew; the last one finishes what they left."""
    tiny_run.write_data(tmp_path)
    shop = SharedCache()
    wanted = loop.run(tiny_run.settings(tmp_path), tmp_path / "whole", InlineEngine(), cache=shop)
    started = time.perf_counter()
    loop.run(tiny_run.settings(tmp_path), tmp_path / "timed", InlineEngine(), cache=tiny_run.fresh(shop))
    once = time.perf_counter() - started
    draw = random.Random(4)
    delays = [f"{draw.uniform(0.1, 0.6) * once:.3f}" for _ in range(4)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *delays], capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    statuses = [tuple(map(int, line.split())) for line in done.stdout.splitlines() if line[0].isdigit()]
    assert len(statuses) == 5, done.stdout
    assert statuses[-1] == (0, 5), done.stdout
    assert [status for status, _ in statuses[:2]] == [9, 9], done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    same(tmp_path / "run", result, tmp_path / "whole", wanted)
    assert Progress.load(RunFolder(tmp_path / "run")).stage == "done"
