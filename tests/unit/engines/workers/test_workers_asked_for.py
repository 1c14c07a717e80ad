"""What can be asked of workers, and what is said of it before anything starts."""

from __future__ import annotations

import pytest
import torch
from tests import tiny_run

from aulait.core.errors import ConfigError
from aulait.engines.workers.process_worker import ending
from aulait.engines.workers.processes import devices
from aulait.runfolder.run_folder import differing_settings
from aulait.runs import setup
from aulait.runs.experiment_file import EngineConfig, dump_settings
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.worker_checks import check_workers


@pytest.fixture
def place(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        (
            {"engine": {"address": "auto"}},
            "engine.address = 'auto' found with engine.name = 'inline'",
        ),
        (
            {"engine": {"workers": 2}, "model": {"device": "cuda:1"}},
            "model.device = 'cuda:1', which is one device",
        ),
        (
            {"engine": {"workers": 2}, "model": {"device_map": "auto"}},
            "model.device_map, which spreads one base",
        ),
        ({"engine": {"workers": 0}}, "engine.workers = 0"),
    ],
)
def test_a_contradiction_is_one_line(tables, told, place):
    with pytest.raises(ConfigError) as caught:
        tiny_run.settings(place, **tables)
    (line,) = [line for line in str(caught.value).splitlines() if told in line]
    assert line


def test_a_worker_has_a_gpu_of_its_own(monkeypatch):
    assert devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices("cpu", 2) == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_workers(EngineConfig(workers=2), "cuda")
    check_workers(EngineConfig(workers=3), "cpu")
    with pytest.raises(
        ConfigError, match=r"engine\.workers = 3 found with 2 GPUs, expected one for each"
    ):
        check_workers(EngineConfig(workers=3), "cuda")


def test_ray_is_asked_for_before_any_work(monkeypatch):
    monkeypatch.setattr("aulait.runs.worker_checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package 'ray' and it is missing; .*\[ray\]"):
        check_workers(EngineConfig(name="ray"), "cpu")
    check_workers(EngineConfig(), "cpu")


def test_the_plan_says_how_many_and_the_memory_of_their_bases(place):
    run = setup.prepare(tiny_run.settings(place, engine={"workers": 3}), SharedCache())
    told = summarise_plan(run)["workers"]
    assert (told["count"], told["threads"], told["ray"]) == (3, 1, False)
    assert told["base_bytes"] == 4 * run.models.base.parameters
    assert told["bases_bytes"] == 3 * told["base_bytes"]


def test_a_run_may_go_on_with_other_workers_and_not_with_other_sites(place):
    begun = dump_settings(tiny_run.settings(place, engine={"workers": 4}))
    for table in ({"workers": 1}, {"name": "ray", "address": "auto"}):
        assert not differing_settings(begun, dump_settings(tiny_run.settings(place, engine=table)))
    assert "threads" in differing_settings(
        begun, dump_settings(tiny_run.settings(place, engine={"threads": 2}))
    )
    assert differing_settings(begun.replace('"inline"', '"flower"'), begun)


def test_how_a_process_ended_in_words():
    assert ending(-9) == "was ended by signal SIGKILL, as happens where memory runs out,"
    assert ending(-11) == "was ended by signal SIGSEGV,"
    assert ending(1) == "ended with status 1"
    assert ending(None) == "no longer answers"
