"""``aulait probe``: a real, short measurement; the saved profile; the link; what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from aulait import cli
from aulait.cli import probe
from aulait.core.types import Profile
from aulait.resources import capacity, energy, profiles
from aulait.resources.links import measure_link, serve_echo

SHORT = ("--device", "cpu", "--seconds", "0.2")


@pytest.fixture(autouse=True)
def no_counters(monkeypatch):
    monkeypatch.setattr(energy, "_monitor", lambda: "no counter in this test")


def call(*words: object):
    return CliRunner().invoke(cli.app, ["probe", *map(str, words)])


def test_a_machine_is_measured_saved_and_found_again(tmp_path):
    path = tmp_path / "state" / "profile.json"  # as a site saves it before its first join
    with serve_echo() as url:
        result = call(*SHORT, "--link", url, "--power", 30, "--out", path, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    saved = profiles.find_profile(str(path))
    assert told["profile"] == json.loads(profiles.dump_profile(saved))
    assert 1e8 < saved.flop_per_s["float32"] < 1e14
    assert 1e7 < saved.memory_bytes < 1e14
    assert saved.up_bytes_per_s > 1e5
    assert 0 < saved.latency_s < 1
    assert (saved.power_w, told["energy"]["power_source"]) == (30.0, "given by --power")
    assert told["energy"]["counters"] == []
    assert told["nearest"] == profiles.like(saved).name
    assert [one["base"] for one in told["carries"]] == list(capacity.SHAPES)
    for one in told["carries"]:
        for placement in ("local", "split", "proxy"):
            assert one[placement]["fits"] == (one[placement]["memory_bytes"] <= saved.memory_bytes)
    assert told["saved"] == str(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_page_has_units_and_says_what_is_not_known(monkeypatch):
    asked = []

    def measure(dtypes, device, budget_s):
        asked.append((dtypes, device, budget_s))
        return Profile(name="Card", device="cuda", flop_per_s={"float32": 2e12, "bfloat16": 3e13}, peak_flop_per_s={"bfloat16": 6e13},
                       memory_bytes=10**10, memory_bytes_per_s=1.5e11, operation_s=7e-6, source="measured")

    monkeypatch.setattr("aulait.resources.devices.measure_device", measure)
    result = call(*SHORT, "--dtype", " bfloat16,float32,bfloat16")
    assert result.exit_code == 0, result.stderr
    assert asked == [(("bfloat16", "float32"), "cpu", 0.2)]
    page = result.stdout.replace("\u00a0", " ")
    for words in ("Card (cuda), measured", "2.00 TFLOP/s", "30.0 TFLOP/s, 50% of the data sheet's", "10.0 GB", "150 GB/s", "7 µs", "not measured; --link URL does", "power", "not known",
                  "no counter in this test", "nearest preset: jetson-orin with 3.18 TFLOP/s", "0.63 of that", "rank 8, bfloat16", "first that fits", "brew", "8.03 B", "proxy, any base: ", "--out FILE.json"):
        assert words in page, words
    assert "measuring for about" in result.stderr


def test_what_fits_is_what_the_memory_holds():
    small, large = (profiles.profile("laptop", memory_bytes=size) for size in (1_000_000_000, 10**12))
    first = [one["best"] for one in probe._carried(small)]
    assert first == ["local", "split", "proxy", "proxy", "proxy"]
    assert [one["best"] for one in probe._carried(large)] == ["local"] * 5
    assert [one["best"] for one in probe._carried(profiles.profile("laptop", memory_bytes=10**6))] == [None] * 5
    assert {one["local"]["fits"] for one in probe._carried(profiles.profile("laptop", memory_bytes=None))} == {None}


def test_common_sizes_are_those_of_the_models_they_are_named_after():
    counted = {name: capacity.model_shape(shape, "bfloat16") for name, shape in capacity.SHAPES.items()}
    known = {"brew": 6_622_464, "1B": 1_235_814_400, "3B": 3_212_749_824, "8B": 8_030_261_248}  # as the models' pages tell
    assert {name: counted[name].parameters for name in known} == known
    assert counted["8B"].weight_bytes == 2 * 8_030_261_248
    need = [one["local"]["memory_bytes"] for one in probe._carried(profiles.find_profile("h100"))]
    assert need == sorted(need)


def test_the_shape_of_brew_is_that_of_the_built_in_base():
    pytest.importorskip("transformers")
    from importlib.resources import files

    from transformers import AutoConfig

    from aulait.models.shape import from_config

    config = AutoConfig.from_pretrained(str(files("aulait") / "models" / "brew"))
    assert capacity.model_shape(capacity.SHAPES["brew"], "float32") == from_config(config)


@pytest.mark.parametrize(("speeds", "chosen"), [
    ({"float32": 10.0}, "float32"), ({"float32": 10.0, "bfloat16": 4.0}, "float32"), ({"float32": 10.0, "bfloat16": 5.0}, "bfloat16"),
    ({"bfloat16": 1.0}, "bfloat16"),
])
def test_a_base_is_held_in_the_precision_that_is_not_slow(speeds, chosen):
    assert capacity.precision(Profile(flop_per_s=speeds)) == chosen


@pytest.mark.parametrize(("words", "said"), [
    (("--dtype", "float23"), "precision 'float23' of --dtype is unknown; did you mean 'float32'"),
    (("--dtype", ","), "--dtype is empty"),
    (("--device", "tpu"), "found --device tpu, expected one of cpu, cuda, mps"),
    (("--device", "cpu", "--link", "ftp://x"), "expected http://HOST:PORT"),
    (("--device", "cpu", "--link", "http://127.0.0.1:9"), "found nobody to measure the link with"),
    (("--out", "/no/such/folder/site.json"), "found no folder /no/such for --out"),
    (("--out", "/dev/null/site.json"), "/dev/null is no folder"),
    (("--echo", "host"), "expected PORT or HOST:PORT"),
    (("--echo", "192.0.2.1:8123"), "cannot listen on 192.0.2.1:8123"),
])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_measured(words, said):
    begin = time.perf_counter()
    result = call(*words)
    assert result.exit_code == 2, result.stdout
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert time.perf_counter() - begin < 20


def test_a_machine_with_counters_gets_its_power_measured(monkeypatch):
    joules = iter([(12.0, "measured by x"), (8e5, "measured by x")])
    monkeypatch.setattr(energy, "begin", lambda: "window")
    monkeypatch.setattr(energy, "end", lambda window: next(joules))
    monkeypatch.setattr(probe, "LOAD_S", 0.05)
    machine, told = probe._powered(Profile(device="cpu"))
    assert told == "measured by x"
    assert 0 < machine.idle_w < 12.0 / 0.05 + 1e-6
    assert 100 * machine.idle_w < machine.power_w < 8e5 / 0.05 + 1e-6


@pytest.mark.skipif(sys.platform == "win32", reason="ends the server by a signal")
def test_the_echo_server_of_the_command_line_is_the_other_end():
    # a shell starts its background jobs with interrupts ignored, and children inherit that
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    server = subprocess.Popen(
        [sys.executable, "-c", heard + "from aulait.cli import main; main()", "probe", "--echo",
         "0"], stderr=subprocess.PIPE, text=True)
    try:
        url = server.stderr.readline().split()[3].rstrip(";")
        assert url.startswith("http://127.0.0.1:")
        assert min(measure_link(url, 0.1)) > 0
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0


