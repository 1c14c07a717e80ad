"""Energy counters of this machine, read through zeus (extra ``energy``): joules of GPUs, processors
and boards.

NVIDIA and AMD GPUs, processors with RAPL, Jetson, Apple silicon. Counters are those of the machine:
what other processes draw at the same time is counted too. docs/decisions/0008-energy.md says why
zeus, and what it cannot read.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from aulait.core.errors import install

RAPL: Final = (Path("/sys/class/powercap"), Path("/zeus_sys/class/powercap"))
"""Where the kernel shows counters of processors; the second is zeus's place in a container."""
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Counters:
    """Energy counters of this machine.

    Attributes:
        found: what can be read, as "GPU 0", "processor 0", "whole board"; empty for nothing.
        note: why there is nothing, or what is missing, and what to do; empty where all is well.
    """

    found: tuple[str, ...]
    note: str = ""


def counters() -> Counters:
    """Which energy counters can be read here, and what to do where none can."""
    monitor = _monitor()
    if isinstance(monitor, str):
        return Counters((), monitor)
    found = (
        [f"GPU {index}" for index in monitor.gpu_indices] + [f"processor {index}"
            for index in monitor.cpu_indices]
    )
    found += ["whole board"] if monitor.soc_is_present else []
    if any(name.startswith(("processor", "whole")) for name in found):
        return Counters(tuple(found))
    if any(any(root.glob("intel-rapl:*")) for root in RAPL):
        return Counters(tuple(found),
            "the processor's counter (RAPL) is there, but only root may read it; give read access, "
            "or run zeusd")
    return Counters(tuple(found),
        "this system shows no energy counter of the processor (virtual machines seldom do)")


@lru_cache(maxsize=1)
def _monitor() -> Any:
    """zeus's monitor of all counters, or a clause that says why there is none."""
    try:
        # optional
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return f"zeus, which reads energy counters, is not installed; {install('energy')}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            monitor = ZeusMonitor()
            monitor.cpu_indices = [index for index in monitor.cpu_indices
                                   if index not in _platforms()]
            return monitor
    except Exception as error:  # whatever a driver throws: energy is never worth a run
        return f"zeus cannot start ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def _platforms() -> set[int]:
    """Places of RAPL zones that are not a processor: the zone of the whole platform holds the
    processor's once more."""
    zones = [zone for root in RAPL for zone in root.glob("**/intel-rapl:*")
             if zone.name.count(":") == 1]
    top = sorted({zone.name: zone for zone in zones}.values(),
                 key=lambda zone: int(zone.name.split(":")[1]))
    return {place for place, zone in enumerate(top)
            if not (zone / "name").read_text().startswith("package")}


def begin() -> str | None:
    """Begin to count; None where nothing can be read."""
    monitor = _monitor()
    if isinstance(monitor, str) or not (monitor.gpu_indices or monitor.cpu_indices
            or monitor.soc_is_present):
        return None
    name = f"aulait {next(_NUMBERS)}"
    try:
        monitor.begin_window(name, sync_execution=False)  # the meter waits for the GPU itself
    except Exception:  # as above
        return None
    return name


def end(name: str | None) -> tuple[float | None, str | None]:
    """(joules, source) of a window; (None, None) where there is none or a counter did not move."""
    if name is None:
        return None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return joules(_monitor().end_window(name, sync_execution=False))
    except Exception:  # as above
        return None, None


def joules(window: Any) -> tuple[float | None, str | None]:
    """(joules, source) of zeus's measurement of a window, each part counted once.

    A board's own total holds its parts, so it stands alone. A GPU or processor whose counter did
    not move in the window was not measured (counters move every 20 to 100 ms), so the whole window
    counts as not measured.

    Args:
        window: ``zeus.monitor.Measurement``; its board figures are millijoules, the others joules.
    """
    board = window.soc_energy
    total_mj = getattr(board, "total_energy_mj", None)
    if total_mj:
        return total_mj / 1e3, _by("whole board")
    parts = {"GPU": list(window.gpu_energy.values()),
             "processor": list((window.cpu_energy or {}).values()),
             "its memory": list((window.dram_energy or {}).values())}
    of_board = [getattr(board, key, None) for key in ("cpu_total_mj", "gpu_mj", "dram_mj", "ane_mj",
        "cpu_energy_mj", "gpu_energy_mj")]
    parts["chip"] = [value_mj / 1e3 for value_mj in of_board if value_mj]
    parts = {name: values for name, values in parts.items() if values}
    if not parts or any(not math.isfinite(value) or value <= 0 for values in parts.values()
                        for value in values):
        return None, None
    return math.fsum(value for values in parts.values() for value in values), _by(", ".join(parts))


def _by(what: str) -> str:
    try:
        return f"measured by zeus {version('zeus')} ({what})"
    except PackageNotFoundError:
        return f"measured by zeus ({what})"
