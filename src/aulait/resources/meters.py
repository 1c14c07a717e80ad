"""What a block of code took: seconds, memory and joules, and how each was found.

Energy comes from counters where there are any that may be read, else it is modelled as the
profile's power times seconds; a ``Reading`` always says which. docs/decisions/0008-energy.md has
the reasons and the limits.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import torch

from aulait.core.types import Profile
from aulait.resources import energy

_STATUS: Final = Path("/proc/self/status")
_STATM: Final = Path("/proc/self/statm")
_RESET: Final = Path("/proc/self/clear_refs")
_SAMPLE_S: Final = 0.01


@dataclass(frozen=True)
class Reading:
    """What a block took.

    Attributes:
        wall_s: from begin to end.
        cpu_s: processor seconds of all threads of this process; its children not counted.
        peak_bytes: the most memory this process held in RAM during the block, all that was there
            before included; None where the system does not tell.
        begin_bytes: what it held when the block began; None likewise.
        memory_source: "kernel" (exact to some pages), "sampled" (every 10 ms; short peaks may be
            missed), "whole process" (the peak since the process began, at most the block's), or
            None.
        gpu_peak_bytes: the most that PyTorch had allocated on the current GPU; None without CUDA.
        energy_j: joules, or None where neither counter nor power is known.
        energy_source: "measured by zeus ... (what)", "modelled from ... W", or None.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int | None
    begin_bytes: int | None
    memory_source: str | None
    gpu_peak_bytes: int | None
    energy_j: float | None
    energy_source: str | None


class Meter:
    """Measures the block of a ``with``; ``reading`` is there afterwards, also when the block
    raised.

    Meters may be nested. Counters are those of the machine: what other processes draw at the same
    time is counted too.

    Example::

        with Meter(profile) as meter:
            train()
        meter.reading.wall_s

    Args:
        profile: whose ``power_w`` is used where no counter can be read; None models nothing.
        counters: False leaves energy counters alone, so that energy is modelled or None.
    """

    reading: Reading

    def __init__(self, profile: Profile | None = None, counters: bool = True) -> None:
        self._power_w = profile.power_w if profile is not None else None
        self._counters = counters

    def __enter__(self) -> Meter:
        _wait()
        self._memory = _Memory()
        self._window = energy.begin() if self._counters else None
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        _wait()
        wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
        energy_j, energy_source = energy.end(self._window)
        if energy_j is None and self._power_w is not None:
            energy_j, energy_source = self._power_w * wall_s, f"modelled from {self._power_w:g} W"
        begin, peak, gpu_peak, source = self._memory.close()
        self.reading = Reading(wall_s, cpu_s, peak, begin, source, gpu_peak, energy_j,
                               energy_source)


def _gpu() -> bool:
    """Whether this process uses CUDA; asking does not begin to."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _wait() -> None:
    """Work that was started on the GPU belongs to what came before."""
    if _gpu():
        torch.cuda.synchronize()


class _Memory:
    """Peaks of one block. The kernel and CUDA keep one peak a process; resetting it first hands it
    to the blocks around."""

    _open: Final[list[_Memory]] = []
    _lock: Final = threading.Lock()

    def __init__(self) -> None:
        self._peak = self._gpu_peak = 0
        with self._lock:
            for outer in self._open:
                outer._note()
            self.kernel = _reset_peak()
            if _gpu():
                torch.cuda.reset_peak_memory_stats()
            self._open.append(self)
        self.begin = _resident_bytes()
        self._sampler = None if self.kernel or self.begin is None else _Sampler()

    def _note(self) -> None:
        """Take over the peak so far, before somebody resets it."""
        self._peak = max(self._peak, _kernel_peak() or 0)
        if _gpu():
            self._gpu_peak = max(self._gpu_peak, torch.cuda.max_memory_allocated())

    def close(self) -> tuple[int | None, int | None, int | None, str | None]:
        """(bytes at the beginning, peak, peak of the GPU, where the peak comes from)."""
        with self._lock:
            self._note()
            self._open.remove(self)
        gpu_peak = self._gpu_peak if _gpu() else None
        if self.kernel:
            return self.begin, max(self._peak, self.begin or 0), gpu_peak, "kernel"
        if self._sampler is not None:
            return self.begin, self._sampler.close(), gpu_peak, "sampled"
        whole = peak_of_process()
        return self.begin, whole, gpu_peak, None if whole is None else "whole process"


class _Sampler:
    """Looks at resident memory every 10 ms in a thread of its own."""

    def __init__(self) -> None:
        self._peak = _resident_bytes() or 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._peak = max(self._peak, _resident_bytes() or 0)

    def close(self) -> int:
        """The largest of what was seen."""
        self._stop.set()
        self._thread.join()
        return max(self._peak, _resident_bytes() or 0)


def _reset_peak() -> bool:
    """Set the kernel's peak of this process to what it holds now; False where that is not allowed
    or not possible."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return _kernel_peak() is not None


def _kernel_peak() -> int | None:
    """Bytes of VmHWM; None where the system has no such thing."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _resident_bytes() -> int | None:
    """Bytes this process holds in RAM now; None where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def peak_of_process() -> int | None:
    """Bytes of the largest resident size since the process began; None on Windows.

    Linux hands ``ru_maxrss`` of the parent on to a new program, so the kernel's own mark is read
    where there is one. A meter of memory (``_reset_peak``) sets that mark back.
    """
    if (found := _kernel_peak()) is not None:
        return found
    try:
        # not on every system
        import resource
    except ImportError:
        return None
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin"
            else 1024)
    )
