"""Machines by name: presets to plan and simulate with, profiles saved by ``aulait probe``, and
their usual links.

How the presets were made. Peaks are those of the data sheet, dense, in the arithmetic that PyTorch
uses by default (float32 without TF32). What a run sustains is a stated share of the peak; memory
bandwidth is 80 % of the data sheet's. Shares, the memory that is left for a run, ``operation_s``
and idle power are typical figures, not measured by us. Power is that of the whole machine, for a
server with eight GPUs an eighth of it. docs/machines.md has the table.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from aulait.core.errors import ConfigError, did_you_mean
from aulait.core.files import JsonMapping, JsonObject
from aulait.core.parsing import parsed_json
from aulait.core.types import Profile
from aulait.resources.links import LINKS, Link

__all__ = ["LINKS", "PRESETS", "SHARES", "USUAL_LINK", "Link", "dump_profile", "find_profile",
           "joules_per_byte",
           "like", "linked", "load_profile", "profile"]

PRECISIONS: Final = ("float32", "bfloat16", "float16")
DEVICES: Final = ("cpu", "cuda", "mps")
_BANDWIDTH: Final = 0.8

SHARES: Final[Mapping[str, float]] = {
    "phone": 0.25, "raspberry-pi-5": 0.4, "jetson-orin": 0.6, "laptop": 0.5, "workstation": 0.8,
    "a100": 0.8, "h100": 0.7,
}
"""Preset -> share of the peak that a large matrix product sustains, for minutes and not for a
burst; typical, not measured by us."""

USUAL_LINK: Final[Mapping[str, str]] = {
    "phone": "4g", "raspberry-pi-5": "home", "jetson-orin": "office", "laptop": "home",
    "workstation": "office",
    "a100": "datacenter", "h100": "datacenter",
}
"""Preset -> its usual link."""


class DataSheet(NamedTuple):
    """Figures of a data sheet.

    Attributes:
        device: "cpu" or "cuda".
        peak: precision -> FLOP/s.
        memory_bytes: that a run may fill.
        bandwidth: of that memory, bytes/s.
        operation_s: seconds to start one operation.
        power_w: drawn under load.
        idle_w: drawn while waiting.
    """

    device: str
    peak: Mapping[str, float]
    memory_bytes: float
    bandwidth: float
    operation_s: float
    power_w: float
    idle_w: float


def _preset(name: str, sheet: DataSheet, source: str) -> Profile:
    """A profile from the figures of a data sheet, on its usual link."""
    sustained = {kind: SHARES[name] * flop for kind, flop in sheet.peak.items()}
    made = Profile(name=name, device=sheet.device, flop_per_s=sustained,
                   peak_flop_per_s=dict(sheet.peak), memory_bytes=int(sheet.memory_bytes),
                   memory_bytes_per_s=_BANDWIDTH * sheet.bandwidth, operation_s=sheet.operation_s,
                   power_w=sheet.power_w, idle_w=sheet.idle_w,
                   source=f"preset, not measured: {source}")
    return linked(made, USUAL_LINK[name])


def linked(machine: Profile, link: str) -> Profile:
    """The machine on another link.

    Args:
        machine: any profile.
        link: a name in ``LINKS``.

    Raises:
        ConfigError: no link has that name.
    """
    if link not in LINKS:
        raise ConfigError(f"link '{link}' is unknown; {did_you_mean(link, LINKS)}")
    found = LINKS[link]
    return replace(machine, up_bytes_per_s=found.up_bytes_per_s,
                   down_bytes_per_s=found.down_bytes_per_s, latency_s=found.latency_s)


def _half(float32: float, both: float) -> dict[str, float]:
    """Peaks of a GPU whose two half precisions are equally fast."""
    return {"float32": float32, "bfloat16": both, "float16": both}


PRESETS: Final[Mapping[str, Profile]] = {made.name: made for made in (
    _preset("phone", DataSheet("cpu", {"float32": 392e9}, 4e9, 76.8e9, 1.2e-5, 5, 0.5),
            "Qualcomm Snapdragon 8 Gen 3 (2023), processor cores only: 1 x 3.3 GHz with 32 FLOP a "
            "cycle, 3 x 3.2 and 2 x 3.0 with 16, 2 x 2.3 with 8; LPDDR5X at 4800 MHz, 64 bit; 12 "
            "GB, of which an application gets about 4; 5 W is what a phone sheds"),
    _preset("raspberry-pi-5", DataSheet("cpu", {"float32": 153.6e9}, 6e9, 17.1e9, 2.5e-5, 9.8, 3.3),
            "Raspberry Pi 5, 8 GB (2023): 4 Cortex-A76 at 2.4 GHz, 16 FLOP a cycle; LPDDR4X-4267, "
            "32 bit; power of the 4 GB board under a stress test and idle as reported by J. "
            "Geerling (2024)"),
    _preset("jetson-orin", DataSheet("cuda", _half(5.3e12, 42.5e12), 56e9, 204.8e9, 3e-5, 60, 15),
            "NVIDIA Jetson AGX Orin 64 GB, technical brief: 5.3 TFLOP/s float32, 170 sparse INT8 "
            "TOPS of the GPU, a quarter of them dense float16; 60 W module limit; memory is shared "
            "with the system"),
    _preset("laptop", DataSheet("cpu", {"float32": 844.8e9}, 10e9, 89.6e9, 7e-6, 45, 8),
            "AMD Ryzen 7 7840U (2023): 8 cores at the base clock of 3.3 GHz, 32 FLOP a cycle; "
            "DDR5-5600, two channels; 16 GB; 28 W for the processor and the rest of the laptop"),
    _preset("workstation", DataSheet("cuda", _half(82.6e12, 165.2e12), 23e9, 1008e9, 7e-6, 550, 90),
            "NVIDIA GeForce RTX 4090 (2022): 82.6 TFLOP/s float32, 165.2 dense with float32 "
            "accumulation, 24 GB, 1008 GB/s, 450 W, and 100 W for the computer around it"),
    _preset("a100", DataSheet("cuda", _half(19.5e12, 312e12), 78e9, 2039e9, 1e-5, 812, 180),
            "NVIDIA A100 SXM 80 GB data sheet: 19.5 and 312 TFLOP/s, 2039 GB/s, 400 W; an eighth "
            "of DGX A100's 6.5 kW maximum"),
    _preset("h100", DataSheet("cuda", _half(66.9e12, 989.4e12), 78e9, 3350e9, 1e-5, 1275, 250),
            "NVIDIA H100 SXM 80 GB data sheet: 66.9 and 989.4 TFLOP/s dense, 3350 GB/s, 700 W; an "
            "eighth of DGX H100's 10.2 kW maximum"),
)}
"""Name -> machine on its usual link."""


def profile(name: str, link: str | None = None, **overrides: Any) -> Profile:
    """A preset, on a link, with fields replaced.

    Args:
        name: in ``PRESETS``.
        link: in ``LINKS``; None keeps the preset's usual one.
        overrides: fields of ``Profile``; they win over the link.

    Raises:
        ConfigError: a name or a field is unknown, or a value cannot be one of its field.
    """
    if name not in PRESETS:
        raise ConfigError(f"machine '{name}' is unknown; {did_you_mean(name, PRESETS)}")
    made = PRESETS[name] if link is None else linked(PRESETS[name], link)
    return _checked({**_plain(made), **overrides}, f"machine '{name}'") if overrides else made


def find_profile(name_or_path: str) -> Profile:
    """The machine behind ``machine = ...`` of an experiment file: a preset, or a profile saved by
    ``aulait probe --out``.

    What ends in ``.json`` or contains a slash is a path.

    Raises:
        ConfigError: there is no such preset or file, or the file holds no profile.
    """
    if name_or_path.endswith(".json") or "/" in name_or_path or "\\" in name_or_path:
        return load_profile(name_or_path)
    if name_or_path not in PRESETS:
        raise ConfigError(
            f"machine '{name_or_path}' is unknown; {did_you_mean(name_or_path, PRESETS)} (or the "
            "path of a .json file that aulait probe --out saved)")
    return PRESETS[name_or_path]


def joules_per_byte(machine: str, link: str | None = None) -> float | None:
    """Energy of the network a byte: of the named link, else of the preset's usual one; None for a
    saved profile, whose link has no name."""
    name = link or USUAL_LINK.get(machine, "")
    return LINKS[name].joules_per_byte if name in LINKS else None


def like(machine: Profile) -> Profile | None:
    """The preset nearest in float32 FLOP/s by their ratio; machines without a GPU are compared with
    such, others with others.

    None where the machine has no float32 speed.
    """
    speed = machine.flop_per_s.get("float32")
    if not speed:
        return None
    same = [made for made in PRESETS.values()
            if (made.device == "cpu") == (machine.device == "cpu")]
    return min(same, key=lambda made: abs(math.log(made.flop_per_s["float32"] / speed)))


def dump_profile(machine: Profile) -> str:
    """The profile as JSON, one key a line; ``load`` reads it back equal."""
    return json.dumps(_plain(machine), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load_profile(path: str | Path) -> Profile:
    """A profile that ``dump`` wrote.

    Raises:
        ConfigError: there is no such file, it is not JSON, has unknown keys, or values that no
            machine has.
    """
    try:
        found = parsed_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"found no machine profile at {path} ({error.strerror or error}), expected a file of "
            "aulait probe --out; check the path") from error
    except ValueError as error:
        raise ConfigError(
            f"machine profile {path} is no JSON ({error}), expected a file of aulait probe --out; "
            "write it again") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"machine profile {path} holds a {type(found).__name__}, expected a table of fields; "
            "write it again with aulait probe --out")
    return _checked(found, f"machine profile {path}")


def _plain(machine: Profile) -> JsonObject:
    """Fields as plain values."""
    values = {field.name: getattr(machine, field.name) for field in dataclasses.fields(machine)}
    return {key: dict(value) if isinstance(value, Mapping) else value
            for key, value in values.items()}


def _checked(values: JsonMapping, whose: str) -> Profile:
    """A profile whose fields exist and can be those of a machine."""
    known = [field.name for field in dataclasses.fields(Profile)]
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{whose}: field '{key}' is unknown; {did_you_mean(key, known)}")
        wrong = _wrong(key, value)
        if wrong:
            raise ConfigError(
                f"{whose}: {key} is {value!r}, expected {wrong}; correct it or measure again with "
                "aulait probe")
    return Profile(**values)


def _wrong(key: str, value: Any) -> str:
    """What the value of a field should have been; empty if it is so."""
    if key in ("name", "source"):
        return "" if isinstance(value, str) else "text"
    if key == "device":
        return "" if value in DEVICES else f"one of {', '.join(DEVICES)}"
    if key in ("flop_per_s", "peak_flop_per_s"):
        good = (
            isinstance(value, Mapping) and all(kind in PRECISIONS and _number(speed) and speed > 0
                for kind, speed in value.items())
        )
        return "" if good else f"a table of {', '.join(PRECISIONS)} with FLOP/s above 0"
    if key in ("operation_s", "latency_s", "idle_w", "power_w"):
        may_be_none = key.endswith("_w")
        good = (_number(value) and value >= 0) or (value is None and may_be_none)
        return "" if good else "a number of at least 0" + (" or null" if may_be_none else "")
    if key == "memory_bytes" and value is not None and not isinstance(value, int):
        return "a whole number of bytes or null"
    return "" if value is None or (_number(value) and value > 0) else "a number above 0 or null"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
