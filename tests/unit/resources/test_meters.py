"""What a block took: seconds against a known load, memory against known allocations, joules against counters that we turn ourselves."""

from __future__ import annotations

import mmap
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aulait.core.types import Profile
from aulait.resources import energy, meters, profiles
from aulait.resources.meters import Meter

MB = 2**20
FAST = Profile(name="m", power_w=40.0)


def burn(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def hold(size_bytes: int, seconds: float = 0.0) -> None:
    """Fill so much memory and give it back: straight from the system, since Python and torch may keep what they free."""
    with mmap.mmap(-1, size_bytes) as pages:
        for begin in range(0, size_bytes, MB):
            pages[begin : begin + MB] = b"x" * MB
        time.sleep(seconds)


@pytest.fixture
def no_counters(monkeypatch):
    monkeypatch.setattr(energy, "_monitor", lambda: "none here")


def test_seconds_of_the_wall_and_of_the_processor_differ(no_counters):
    with Meter() as asleep:
        time.sleep(0.2)
    assert 0.2 <= asleep.reading.wall_s < 1.0
    assert asleep.reading.cpu_s < 0.1
    with Meter() as busy:
        threads = [threading.Thread(target=burn, args=(0.1,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 0.2 <= busy.reading.cpu_s < 0.4  # of both threads


def sources(monkeypatch, source: str) -> None:
    """Take away what better sources of memory need."""
    nowhere = Path("/nowhere/to/be/found")
    if source != "kernel":
        monkeypatch.setattr(meters, "_RESET", nowhere)
    if source == "whole process":
        monkeypatch.setattr(meters, "_STATM", nowhere)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's and the sampled peak are read from /proc")
@pytest.mark.parametrize("source", ["kernel", "sampled"])
def test_the_peak_is_that_of_the_block_and_of_no_other(monkeypatch, no_counters, source):
    sources(monkeypatch, source)
    if source == "kernel" and not meters._reset_peak():
        pytest.skip("the peak may not be reset here")
    hold(200 * MB)  # before the block: must not count
    with Meter() as outer:
        hold(60 * MB)
        with Meter() as inner:
            hold(20 * MB, 0.1)
        with Meter() as nothing:
            time.sleep(0.02)
    grown = [(m.reading.peak_bytes - m.reading.begin_bytes) / MB for m in (outer, inner, nothing)]
    if source == "kernel":  # the sampler may miss the 60 MB, which are there for a moment only
        assert 58 < grown[0] < 90
    assert 18 < grown[1] < 50
    assert 0 <= grown[2] < 10
    assert {m.reading.memory_source for m in (outer, inner, nothing)} == {source}
    assert outer.reading.peak_bytes >= inner.reading.peak_bytes - MB
    assert outer.reading.gpu_peak_bytes is None or torch.cuda.is_available()


def test_where_nothing_better_is_told_the_peak_is_that_of_the_process(monkeypatch, no_counters):
    sources(monkeypatch, "whole process")
    hold(30 * MB)
    with Meter() as measured:
        pass
    assert measured.reading.memory_source == "whole process"
    assert measured.reading.begin_bytes is None
    assert measured.reading.peak_bytes > 60 * MB  # Python with torch is larger than this


def test_no_meter_is_left_open_when_the_block_raises(no_counters):
    measured = Meter(FAST)
    with pytest.raises(KeyError), measured:
        raise KeyError("x")
    assert measured.reading.energy_j > 0
    assert meters._Memory._open == []


def test_without_a_counter_energy_is_modelled_or_not_known(no_counters):
    with Meter(FAST) as modelled:
        time.sleep(0.05)
    assert modelled.reading.energy_j == 40.0 * modelled.reading.wall_s
    assert modelled.reading.energy_source == "modelled from 40 W"
    for profile in (None, Profile()):
        with Meter(profile) as unknown:
            pass
        assert (unknown.reading.energy_j, unknown.reading.energy_source) == (None, None)


def test_the_core_works_without_zeus(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    energy._monitor.cache_clear()
    try:
        assert energy.counters().found == ()
        assert ".[energy]" in energy.counters().note
        with Meter(profiles.find_profile("raspberry-pi-5")) as measured:
            pass
        assert measured.reading.energy_source == "modelled from 9.8 W"
    finally:
        energy._monitor.cache_clear()


def zone(folder: Path, name: str, energy_uj: int) -> Path:
    folder.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", 2**40)):
        (folder / file).write_text(f"{text}\n")
    return folder / "energy_uj"


@pytest.fixture
def rapl(monkeypatch, tmp_path):
    """zeus on counters in files: a processor with its memory, and a platform's counter that holds both once more."""
    pytest.importorskip("zeus")
    from zeus.device import cpu
    from zeus.device.cpu import rapl as zeus_rapl

    top = tmp_path / "intel-rapl"
    files = {"package": zone(top / "intel-rapl:0", "package-0", 7_000_000), "memory": zone(top / "intel-rapl:0" / "intel-rapl:0:0", "dram", 1_000_000),
             "platform": zone(top / "intel-rapl:1", "psys", 50_000_000)}
    monkeypatch.setattr(zeus_rapl, "RAPL_DIR", str(top))
    monkeypatch.setattr(zeus_rapl, "CONTAINER_RAPL_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(zeus_rapl.RAPLFile, "wraparound_tracker", SimpleNamespace(get_num_wraparounds=lambda: 0))  # else a process is started
    monkeypatch.setattr(cpu, "_cpus", None)
    monkeypatch.setattr(energy, "RAPL", (tmp_path,))
    zeus_rapl.rapl_is_available.cache_clear()
    energy._monitor.cache_clear()
    yield files
    zeus_rapl.rapl_is_available.cache_clear()
    energy._monitor.cache_clear()


def test_joules_are_those_that_the_counters_moved_by(rapl):
    assert energy.counters() == energy.Counters(("processor 0",))
    with Meter(FAST) as outer, Meter(FAST) as inner:
        rapl["package"].write_text("12000000")
        rapl["memory"].write_text("1500000")
        rapl["platform"].write_text("90000000")
    for measured in (outer, inner):
        assert measured.reading.energy_j == pytest.approx(5.0 + 0.5)
        assert measured.reading.energy_source.startswith("measured by zeus ")
        assert measured.reading.energy_source.endswith("(processor, its memory)")
    with Meter(FAST, counters=False) as modelled:
        rapl["package"].write_text("13000000")
    assert modelled.reading.energy_source == "modelled from 40 W"


def test_a_counter_that_did_not_move_or_cannot_be_read_is_no_measurement(rapl):
    with Meter(FAST) as still:
        pass
    assert still.reading.energy_source == "modelled from 40 W"
    with Meter(FAST) as gone:
        rapl["package"].unlink()
    assert gone.reading.energy_source == "modelled from 40 W"


def test_counters_that_only_root_may_read_are_named(rapl, monkeypatch):
    from zeus.device import cpu

    def refuse() -> None:
        raise cpu.common.ZeusCPUNoPermissionError("root only")

    monkeypatch.setattr("zeus.monitor.energy.get_cpus", refuse)
    monkeypatch.setattr(energy, "RAPL", (next(iter(rapl.values())).parents[1],))
    assert energy.counters().found == ()
    assert "only root may read it" in energy.counters().note


def window(**parts):
    return SimpleNamespace(**{"gpu_energy": {}, "cpu_energy": None, "dram_energy": None, "soc_energy": None} | parts)


@pytest.mark.parametrize(("told", "expected_j", "what"), [
    (window(gpu_energy={0: 30.0, 1: 20.0}), 50.0, "(GPU)"),
    (window(gpu_energy={0: 30.0}, cpu_energy={0: 8.0, 1: 2.0}, dram_energy={0: 0.5}), 40.5, "(GPU, processor, its memory)"),
    (window(soc_energy=SimpleNamespace(cpu_energy_mj=900.0, gpu_energy_mj=1100.0, total_energy_mj=2500.0)), 2.5, "(whole board)"),
    (window(soc_energy=SimpleNamespace(cpu_total_mj=900, gpu_mj=100, dram_mj=50, ane_mj=0, efficiency_cores_mj=[400])), 1.05, "(chip)"),
    (window(gpu_energy={0: 30.0, 1: 0.0}), None, None),
    (window(cpu_energy={0: -3.0}), None, None),
    (window(), None, None),
])
def test_parts_are_added_and_totals_are_not_counted_twice(told, expected_j, what):
    joules, source = energy.joules(told)
    assert joules == (None if expected_j is None else pytest.approx(expected_j))
    assert source is None if what is None else source.endswith(what)
