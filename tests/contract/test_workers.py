"""Sites that several processes train give the adapter of one process to rounding; a process that dies loses nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_run
from tests.closeness import assert_same_adapters
from tests.tiny_bases import write

from aulait.core.errors import ConfigError, DeviceError
from aulait.engines.inline import InlineEngine
from aulait.engines.workers.process_worker import ProcessWorker
from aulait.engines.workers.spread_learner import SpreadLearner
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer

PRIVATE = {
    "noise_multiplier": 0.5,
    "delta": 1e-3,
    "relation": "zero-out",
    "clip": 0.1,
    "noise_seed": 3,
}
PRIVACY = {"off": {"off": True}, "noise": PRIVATE}
RECORDS = PRIVATE | {"unit": "record"}


class LastingEngine(InlineEngine):
    """Keeps its workers from run to run, so that the tests start few processes."""

    def close(self) -> None:
        """Not yet."""

    def end(self) -> None:
        super().close()

    @property
    def others(self) -> list[ProcessWorker]:
        return [own for own in self._pool._workers if isinstance(own, ProcessWorker)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    tiny_run.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def shared():
    return SharedCache()


@pytest.fixture(scope="module")
def engine():
    engine = LastingEngine()
    yield engine
    engine.end()


def experiment(place: Path, workers: int, **tables):
    """Proxies among the sites; passes that must be divided to give everybody work."""
    usual = {
        "model": {"name": str(write(place, "llama")), "context": 24, "device": "cpu"},
        "engine": {"workers": workers},
        "train": {"rounds": 2, "rows_at_once": 6},
    }
    return tiny_run.settings(place, **(usual | tables))


def adapter(path: Path):
    return load_file(path / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("privacy", PRIVACY)
@pytest.mark.parametrize("method", ["fedit", "cores", "ffa"])
def test_two_workers_give_the_adapter_of_one(method, privacy, place, shared, engine, tmp_path):
    tables = {"algorithm": {"name": method}, "privacy": PRIVACY[privacy]}
    one = loop.run(experiment(place, 1, **tables), tmp_path / "one", InlineEngine(), cache=shared)
    two = loop.run(experiment(place, 2, **tables), tmp_path / "two", engine, cache=shared)
    assert len(engine.others) == 1
    assert_same_adapters(adapter(tmp_path / "two"), adapter(tmp_path / "one"))
    assert two["eval"]["loss"] == pytest.approx(one["eval"]["loss"], rel=1e-5)
    assert two["eval"]["loss"] != two["base_eval"]["loss"]
    assert two["privacy"]["epsilon"] == one["privacy"]["epsilon"]
    ledgers = (
        [tiny_run.lines(tmp_path, "ledger.jsonl", name) for name in ("one", "two")]
        if privacy == "noise"
        else [[], []]
    )
    assert [line["sigma"] for line in ledgers[1]] == [line["sigma"] for line in ledgers[0]]


@pytest.mark.parametrize(
    ("method", "privacy"),
    [
        ("fedit", RECORDS),
        ("cores", RECORDS),
        ("dplora", RECORDS),
        ("ffa", RECORDS | {"trust": "secure"}),
        ("dplora", {"off": True}),
    ],
)
def test_steps_that_protect_records_are_those_of_one_process_to_the_bit(
    method, privacy, place, shared, engine, tmp_path, monkeypatch
):
    """Workers clip and sum; draws, noise and ledger stay with the run, which alone writes it."""
    asked = []
    make = SpreadLearner.unit_sums
    monkeypatch.setattr(
        SpreadLearner, "unit_sums", lambda self, works: (asked.extend(works), make(self, works))[1]
    )
    steps = 1 if "trust" in privacy else 2
    tables = {
        "algorithm": {"name": method},
        "privacy": privacy,
        "train": {"rounds": 2, "rows_at_once": 2, "steps": steps},  # passes that cannot be divided
    }
    one = loop.run(experiment(place, 1, **tables), tmp_path / "one", InlineEngine(), cache=shared)
    assert not asked
    two = loop.run(experiment(place, 2, **tables), tmp_path / "two", engine, cache=shared)
    assert any(len(work.units) > 1 for work in asked)
    wanted = adapter(tmp_path / "one")
    if "off" in privacy:  # no grid, so that sums of parts are equal to rounding alone
        assert_same_adapters(adapter(tmp_path / "two"), wanted)
    else:
        found = adapter(tmp_path / "two")
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        ledgers = [tiny_run.lines(tmp_path, "ledger.jsonl", name) for name in ("one", "two")]
        assert [line["sigma"] for line in ledgers[1]] == [line["sigma"] for line in ledgers[0]]
        assert ledgers[0]
    assert two["privacy"].get("epsilon") == one["privacy"].get("epsilon")
    assert two["eval"]["loss"] != two["base_eval"]["loss"]


def test_a_worker_that_dies_is_one_line_and_the_run_goes_on_with_fewer(
    place, shared, engine, tmp_path
):
    whole = loop.run(
        experiment(place, 1), tmp_path / "whole", InlineEngine(), cache=tiny_run.fresh(shared)
    )

    def kill(stage, done, total, note):
        if stage == "train" and done == 1:
            os.kill(engine.others[0].process.pid, signal.SIGKILL)

    with pytest.raises(
        DeviceError, match=r"worker 2 of 2 \(process \d+\) was ended by signal SIGKILL.*--resume"
    ) as caught:
        loop.run(
            experiment(place, 2),
            tmp_path / "run",
            engine,
            cache=tiny_run.fresh(shared),
            observer=Observer(kill),
        )
    assert "\n" not in str(caught.value)
    assert len(tiny_run.lines(tmp_path)) == len(tiny_run.lines(tmp_path, name="whole")) - 1
    engine.end()
    settings = experiment(place, 1)
    result = loop.run(
        settings, tmp_path / "run", InlineEngine(), resume=True, cache=tiny_run.fresh(shared)
    )
    assert_same_adapters(adapter(tmp_path / "run"), adapter(tmp_path / "whole"))
    assert result["rounds"] == whole["rounds"]


def test_workers_end_with_the_run_and_an_error_of_theirs_is_its_own(
    place, shared, tmp_path, monkeypatch
):
    started = []
    begin = ProcessWorker.ready
    monkeypatch.setattr(
        ProcessWorker, "ready", lambda self: (started.append(self.process), begin(self))
    )
    monkeypatch.setattr("aulait.engines.workers.pool.fingerprint", lambda base: "another")
    with pytest.raises(
        Exception, match=r"a worker loaded another base .* expected that of the run \(another\)"
    ):
        loop.run(experiment(place, 2), tmp_path / "run", InlineEngine(), cache=shared)
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_training_function_of_ones_own_stays_in_its_process(place, shared, tmp_path):
    with pytest.raises(ConfigError, match=r"a training function found with engine\.workers"):
        loop.run(
            experiment(place, 2), tmp_path / "run", InlineEngine(lambda site: None), cache=shared
        )
