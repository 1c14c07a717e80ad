"""The measurement of this machine: every number is real, and the limits of memory are read where they stand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from aulait.core.errors import DeviceError
from aulait.core.types import Profile
from aulait.resources import devices
from aulait_benchmarks import cost


@pytest.fixture(scope="module")
def measured() -> Profile:
    return devices.measure_device(device="cpu", budget_s=0.5)


def test_a_measured_profile(measured):
    assert measured.device == "cpu"
    assert measured.name == devices.device_name() != ""
    assert 1e8 < measured.flop_per_s["float32"] < 1e14
    assert 1e7 < measured.memory_bytes_per_s < 1e13
    assert 1e-7 < measured.operation_s < 1e-2
    assert 2**27 < measured.memory_bytes < 2**50
    assert measured.up_bytes_per_s is measured.power_w is None
    assert f"{torch.get_num_threads()} threads" in measured.source


def test_products_are_as_fast_as_they_are_here(measured):
    """A product of another shape, timed the plain way, runs within a factor of four of what was measured."""
    import time

    a, b = torch.ones(1000, 500), torch.ones(500, 300)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    rate = 2 * 1000 * 500 * 300 / sorted(times)[10]
    assert 0.25 < rate / measured.flop_per_s["float32"] < 4


def test_precisions_and_devices():
    assert set(devices.measure_device(("float32", "bfloat16"), "cpu", 0.1).flop_per_s) == {"float32", "bfloat16"}
    with pytest.raises(DeviceError, match="precision 'float99' is unknown"):
        devices.measure_device(("float99",))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="device 'cuda' is not there"):
            devices.measure_device(device="cuda")


def test_memory_is_the_smaller_of_machine_and_control_group(tmp_path):
    assert devices.memory_bytes(root=str(tmp_path)) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert devices.memory_bytes(root=str(tmp_path)) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500\n")
    assert devices.memory_bytes(root=str(tmp_path)) == 8000 * 1024
    (group / "memory.max").write_text("2500\n")
    assert devices.memory_bytes(root=str(tmp_path)) == 2000


@pytest.mark.parametrize(
    ("name", "float32"),
    [("NVIDIA A100-SXM4-80GB", 19.5e12), ("NVIDIA H100 PCIe", 51.2e12), ("NVIDIA H100 80GB HBM3", 66.9e12), ("Tesla T4", 8.1e12),
     ("NVIDIA GeForce RTX 4090", 82.6e12), ("NVIDIA L4", 30.3e12)],
)
def test_peaks_by_the_names_that_gpus_give_themselves(name, float32):
    assert devices.peak(name)["float32"] == float32


@pytest.mark.parametrize("name", ["AMD EPYC", "NVIDIA A10G", "Tesla P4", "NVIDIA L40", ""])
def test_no_peak_is_made_up(name):
    assert devices.peak(name) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept():
    """In a new process: results that are made and freed again and again, as in training steps, bring fewer new pages."""
    code = """
import resource, sys, torch
from aulait.resources import devices as device
kept = device.keep_freed_memory() if sys.argv[1] == "keep" else None
source = torch.ones(2**22)
work = lambda: [source.clone() for _ in range(8)]
work(), work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept)
"""
    faults = {}
    for way in ("keep", "give"):
        told = subprocess.run([sys.executable, "-c", code, way], capture_output=True, text=True, check=True).stdout.split()
        faults[way] = int(told[0])
        if way == "keep" and told[1] == "False":
            pytest.skip("this C library has no such setting")
    assert faults["keep"] * 2 < faults["give"]


TINY = dataclasses.replace(cost.QUICK, lengths=(16,), texts=2, records=4, candidates=5, written=2, constants_s=0.05)


def test_the_bench_tells_what_it_measured(monkeypatch):
    from aulait import cli

    monkeypatch.setattr(cost, "QUICK", TINY)
    told = CliRunner().invoke(cli.app, ["bench", "cost", "--quick", "--repetitions", "3", "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert [case["name"].split(",")[0].split()[0] for case in found["cases"]] == ["LoRA", "evaluation", "embedding", "voting", "generation"]
    for case in found["cases"]:
        assert case["measured_s"] > 0
        assert case["predicted_s"] > 0
        assert case["repetitions"] == 3
    ratios = [case["ratio"] for case in found["cases"]]
    assert found["smallest_ratio"] == min(ratios)
    assert found["within"] == sum(0.75 <= ratio <= 1.25 for ratio in ratios) / len(ratios)
    shown = CliRunner().invoke(cli.app, ["bench", "cost", "--quick", "--repetitions", "3"])
    assert shown.exit_code == 0, shown.output
    assert "of the ratios within" in shown.stdout
