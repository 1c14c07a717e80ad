"""Presets and their table, saved profiles, links: arithmetic, and a measurement over a real socket."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from aulait.core.errors import ConfigError, WireError
from aulait.core.types import Profile
from aulait.resources import links, profiles
from aulait.resources.links import LINKS, measure_link, round_trip_s, serve_echo, transfer_s

TABLE = (Path(__file__).resolve().parents[3] / "docs" / "machines.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of the table under a heading of docs/machines.md."""
    part = TABLE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells}


def figures(cell: str) -> list[float]:
    return [float(text) for text in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", cell.replace(",", ""))]


@pytest.mark.parametrize("name", list(profiles.PRESETS))
def test_every_preset_is_whole_and_slower_than_its_data_sheet(name):
    made = profiles.PRESETS[name]
    assert made.name == name
    assert set(made.flop_per_s) == set(made.peak_flop_per_s)
    assert {"float32"} <= set(made.flop_per_s) <= {"float32", "bfloat16", "float16"}
    for kind, speed in made.flop_per_s.items():
        assert speed == profiles.SHARES[name] * made.peak_flop_per_s[kind] < made.peak_flop_per_s[kind]
    assert 0 < made.idle_w < made.power_w
    assert len(made.source) > 40
    usual = LINKS[profiles.USUAL_LINK[name]]
    assert (made.up_bytes_per_s, made.down_bytes_per_s, made.latency_s) == (usual.up_bytes_per_s, usual.down_bytes_per_s, usual.latency_s)


def test_the_presets_are_ordered_as_everybody_knows_they_are():
    speed = {name: made.flop_per_s["float32"] for name, made in profiles.PRESETS.items()}
    assert speed["raspberry-pi-5"] < speed["phone"] < speed["laptop"] < speed["jetson-orin"] < speed["workstation"]
    half = {name: made.flop_per_s["bfloat16"] for name, made in profiles.PRESETS.items() if made.device == "cuda"}
    assert half["jetson-orin"] < half["workstation"] < half["a100"] < half["h100"]
    down = [LINKS[name].down_bytes_per_s for name in ("3g", "4g", "office", "home", "5g", "fibre", "datacenter")]
    assert down == sorted(down)
    assert LINKS["3g"].joules_per_byte > LINKS["4g"].joules_per_byte > LINKS["5g"].joules_per_byte > LINKS["home"].joules_per_byte


def test_the_table_of_machines_says_what_the_code_says():
    told = rows("Machines")
    assert list(told) == list(profiles.PRESETS)
    for name, (device, peak, share, memory, bandwidth, operation, power, usual, source) in told.items():
        made = profiles.PRESETS[name]
        assert device == made.device
        peaks = [made.peak_flop_per_s["float32"]] + ([made.peak_flop_per_s["bfloat16"]] if "bfloat16" in made.peak_flop_per_s else [])
        assert figures(peak) == pytest.approx([value / 1e12 for value in peaks], rel=1e-9), name
        assert figures(share) == pytest.approx([100 * profiles.SHARES[name]])
        assert figures(memory) == [made.memory_bytes / 1e9]
        assert figures(bandwidth) == pytest.approx([made.memory_bytes_per_s / 1e9], rel=5e-3)
        assert figures(operation) == pytest.approx([made.operation_s * 1e6])
        assert figures(power) == [made.power_w, made.idle_w]
        assert usual.strip("`") == profiles.USUAL_LINK[name]
        assert f"preset, not measured: {source}" == made.source


def test_the_table_of_links_says_what_the_code_says():
    told = rows("Links")
    assert list(told) == list(LINKS)
    for name, (down, up, trip, energy, source) in told.items():
        found = LINKS[name]
        assert figures(down) == pytest.approx([found.down_bytes_per_s * 8 / 1e6])
        assert figures(up) == pytest.approx([found.up_bytes_per_s * 8 / 1e6])
        assert figures(trip) == pytest.approx([found.latency_s * 2e3])
        assert figures(energy) == pytest.approx([found.joules_per_byte * 1e6], rel=5e-3)
        assert source == f"{found.source}. {found.energy_source}"


def test_a_preset_can_be_changed_and_what_is_wrong_is_named():
    assert profiles.profile("laptop") is profiles.PRESETS["laptop"]
    mobile = profiles.profile("laptop", "3g", power_w=30.0)
    assert mobile == replace(profiles.linked(profiles.PRESETS["laptop"], "3g"), power_w=30.0)
    assert mobile.up_bytes_per_s == 1.6e6 / 8
    assert profiles.profile("laptop", "3g", up_bytes_per_s=5.0).up_bytes_per_s == 5.0
    with pytest.raises(ConfigError, match=r"machine 'labtop' is unknown; did you mean 'laptop'"):
        profiles.profile("labtop")
    with pytest.raises(ConfigError, match=r"link '6g' is unknown; did you mean '5g'|'3g'|'4g'"):
        profiles.profile("laptop", "6g")
    with pytest.raises(ConfigError, match=r"field 'memory_byte' is unknown; did you mean 'memory_bytes'"):
        profiles.profile("laptop", memory_byte=3)
    with pytest.raises(ConfigError, match=r"power_w is -3, expected a number of at least 0 or null"):
        profiles.profile("laptop", power_w=-3)


def test_a_profile_is_saved_and_found_again(tmp_path):
    path = tmp_path / "site.json"
    for made in (Profile(), profiles.PRESETS["h100"], Profile(name="ä", flop_per_s={"float32": 1 / 3}, memory_bytes=7, source="measured")):
        path.write_text(profiles.dump_profile(made), encoding="utf-8")
        assert profiles.load_profile(path) == made
        assert profiles.find_profile(str(path)) == made
    assert profiles.find_profile("phone") is profiles.PRESETS["phone"]
    with pytest.raises(ConfigError, match=r"machine 'fone' is unknown; did you mean 'phone'\?.*\.json"):
        profiles.find_profile("fone")
    with pytest.raises(ConfigError, match=r"found no machine profile at .*nowhere.json"):
        profiles.find_profile(str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(("text", "said"), [
    ("{", "is no JSON"), ("[1]", "holds a list"), ('{"flops": 3}', "field 'flops' is unknown"), ('{"device": "tpu"}', "device is 'tpu'"),
    ('{"flop_per_s": {"fp32": 1e9}}', "flop_per_s is"), ('{"flop_per_s": {"float32": 0}}', "flop_per_s is"), ('{"flop_per_s": 3}', "flop_per_s is"),
    ('{"memory_bytes": 1.5}', "memory_bytes is 1.5"), ('{"memory_bytes": true}', "memory_bytes is True"), ('{"latency_s": null}', "latency_s is None"),
    ('{"idle_w": NaN}', "idle_w is nan"), ('{"up_bytes_per_s": 0}', "up_bytes_per_s is 0"), ('{"name": 3}', "name is 3"), ('{"operation_s": "fast"}', "operation_s is"),
])
def test_a_damaged_profile_is_refused(tmp_path, text, said):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        profiles.load_profile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_nearest_preset_is_of_the_same_kind():
    near = lambda device, speed: profiles.like(Profile(device=device, flop_per_s={"float32": speed})).name  # noqa: E731
    assert near("cpu", 5e10) == "raspberry-pi-5"
    assert near("cpu", 3e12) == "laptop"
    assert near("cuda", 4e12) == "jetson-orin"
    assert near("cuda", 1.5e13) == "a100"
    assert profiles.like(Profile(flop_per_s={"bfloat16": 1e9})) is None


def test_the_energy_of_a_byte_is_that_of_its_link():
    assert profiles.joules_per_byte("phone") == LINKS["4g"].joules_per_byte == pytest.approx(0.14 * 3.6e6 / 1e9)
    assert profiles.joules_per_byte("phone", "home") == LINKS["home"].joules_per_byte
    assert profiles.joules_per_byte("mine.json") is None


def test_bytes_take_latency_and_their_share_of_the_rate():
    assert transfer_s(3e6, 1.5e6, 0.25) == 2.25
    assert transfer_s(0, 1.5e6, 0.25) == 0.0
    site = Profile(name="s", up_bytes_per_s=10.0, down_bytes_per_s=100.0, latency_s=0.5)
    assert round_trip_s(site, 1000, 20) == (0.5 + 10.0) + (0.5 + 2.0)
    assert round_trip_s(site, 0, 20) == 2.5
    assert round_trip_s(Profile(), 0, 0) == 0.0
    with pytest.raises(ConfigError, match=r"machine 's' has no link speed.*1,000 bytes"):
        round_trip_s(Profile(name="s", up_bytes_per_s=10.0), 1000, 20)


def test_the_rate_of_a_known_link_is_found():
    """Against a link that is only arithmetic and sleep: 2 MB/s behind a round trip of 10 ms."""
    sizes = []

    def move(size: int) -> float:
        begin = time.perf_counter()
        sizes.append(size)
        time.sleep(0.01 + size / 2e6)
        return time.perf_counter() - begin

    assert links._rate(move, 0.01, 0.5) == pytest.approx(2e6, rel=0.25)
    assert max(sizes) >= 2e6 * 0.5 / 8  # large enough to tell rate from latency


def test_a_link_is_measured_over_a_real_socket():
    with serve_echo() as url:
        up, down, latency_s = measure_link(url, 0.2)
    assert up > 1e6
    assert down > 1e6
    assert 0 < latency_s < 0.1
    with pytest.raises(WireError, match="found nobody to measure the link with"):
        measure_link(url, 0.2)


@pytest.mark.parametrize("url", ["https://host:1", "host:1", "http://", "http://host:port", ""])
def test_only_plain_http_is_measured(url):
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        measure_link(url, 0.1)


def status(url: str, verb: str, path: str, headers: dict[str, str] | None = None) -> int:
    wire = HTTPConnection(urlsplit(url).hostname, urlsplit(url).port, timeout=5)
    try:
        wire.putrequest(verb, path)
        for key, value in (headers or {}).items():
            wire.putheader(key, value)
        wire.endheaders()
        return wire.getresponse().status
    finally:
        wire.close()


def test_the_echo_server_has_limits_and_listens_on_loopback():
    with serve_echo() as url:
        assert urlsplit(url).hostname == "127.0.0.1"
        assert status(url, "GET", f"/down/{links.LIMIT_BYTES + 1}") == 400
        assert status(url, "GET", "/down/-1") == 400
        assert status(url, "GET", "/etc/passwd") == 400
        assert status(url, "POST", "/up", {"Content-Length": str(links.LIMIT_BYTES + 1)}) == 413
        assert status(url, "POST", "/up", {"Content-Length": "-5"}) == 413
        assert status(url, "POST", "/up") == 413
        assert status(url, "POST", "/other", {"Content-Length": "0"}) == 413
        assert status(url, "DELETE", "/up") == 501
        assert status(url, "GET", "/down/10") == 200
        with pytest.raises(ConfigError, match="cannot listen"), serve_echo(urlsplit(url).port):
            pass


def test_numbers_in_json_are_those_in_the_table():
    saved = json.loads(profiles.dump_profile(profiles.PRESETS["a100"]))
    assert saved["memory_bytes"] == 78_000_000_000
    assert math.isclose(saved["flop_per_s"]["bfloat16"], 0.8 * 312e12)
