"""What this machine sustains: matrix products, memory traffic, starting operations, and the memory
that is left.

Everything is measured on work like that of a training step, in the memory state the process is in.
Results of operations are made anew as PyTorch makes them, since on many machines fresh memory is
far slower than memory that has been used before (see ``keep_freed_memory``).
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from aulait.core.errors import DeviceError
from aulait.core.types import Profile

# (tokens, in, out) of the products of a step: square, into and out of the feed-forward part, tall
# and thin, the head.
SHAPES: Final = {
    "cpu": ((128, 256, 256), (512, 256, 640), (512, 768, 768), (1024, 640, 256), (2048, 256, 256),
            (4096, 256, 640), (1024, 256, 4096)),
    "cuda": ((2048, 1024, 1024), (4096, 2048, 2048), (4096, 2048, 8192), (4096, 8192, 2048),
             (8192, 4096, 4096), (16384, 1024, 4096)),
}
COPIED: Final = {"cpu": (8, 2**24), "cuda": (4, 2**28)}  # results made in a row, bytes of each

Stopwatch = Callable[[], float]

PEAKS: Final[tuple[tuple[frozenset[str], dict[str, float]], ...]] = tuple(
    (frozenset(words.split()), {"float32": full, **{name: half for name in halves.split()}})
    for words, full, half, halves in (
        ("h100 pcie", 51.2e12, 756e12, "bfloat16 float16"),
        ("h200", 66.9e12, 989.4e12, "bfloat16 float16"),
        ("h100", 66.9e12, 989.4e12, "bfloat16 float16"),
        ("a100", 19.5e12, 312e12, "bfloat16 float16"),
        ("l40s", 91.6e12, 362e12, "bfloat16 float16"),
        ("l4", 30.3e12, 121e12, "bfloat16 float16"),
        ("a10", 31.2e12, 125e12, "bfloat16 float16"),
        ("v100", 15.7e12, 125e12, "float16"),
        ("t4", 8.1e12, 65e12, "float16"),
        ("4090", 82.6e12, 165.2e12, "bfloat16 float16"),
        ("3090", 35.6e12, 71e12, "bfloat16 float16"),
    )
)
"""Words of a GPU's name -> FLOP/s of NVIDIA's data sheets (V100 SXM2, T4, A10, A100, L4, L40S, H100
and H200 SXM) and of the GA102 and AD102 architecture papers (RTX 3090, 4090): dense, float32
without TF32, half precision with float32 accumulation."""


def measure_device(dtypes: Sequence[str] = ("float32",), device: str | None = None,
                   budget_s: float = 3.0,
            clock: Callable[[], float] = time.perf_counter) -> Profile:
    """The profile of this machine, measured now with the threads that torch is set to.

    Args:
        dtypes: precisions whose matrix products are measured.
        device: "cpu", "cuda" or "mps"; None takes CUDA when there is one.
        budget_s: seconds the measurement may take, about.
        clock: what tells the time; ``time.process_time`` leaves out waiting for other programs on a
            shared machine, and counts all threads.

    Returns:
        A profile without a link and without power, neither of which can be measured here.

    Raises:
        DeviceError: a precision is unknown, or the device is not there.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    unknown = [dtype for dtype in dtypes if not isinstance(getattr(torch, dtype, None),
        torch.dtype)]
    if unknown:
        raise DeviceError(
            f"precision '{unknown[0]}' is unknown; expected 'float32', 'bfloat16' or 'float16'")
    try:
        torch.zeros(1, device=kind)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"device '{kind}' is not there ({str(error).splitlines()[0][:100]}); expected 'cpu' or "
            "another one") from error
    slice_s = budget_s / (len(dtypes) + 2)
    found = device_name(kind)
    return Profile(
        name=found,
        device=kind,
        flop_per_s={dtype: _products(getattr(torch, dtype), kind, slice_s, clock)
                    for dtype in dtypes},
        peak_flop_per_s=peak(found),
        memory_bytes=memory_bytes(kind),
        memory_bytes_per_s=_bandwidth(kind, slice_s, clock),
        operation_s=_operation(kind, slice_s, clock),
        source=f"measured with {torch.get_num_threads()} threads" if kind == "cpu" else "measured",
    )


def peak(name: str) -> dict[str, float]:
    """Precision -> FLOP/s of the data sheet of a GPU; empty where its name is not in ``PEAKS``."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return next((dict(figures) for known, figures in PEAKS if known <= words), {})


def device_name(device: str = "cpu") -> str:
    """What the processor or the GPU calls itself."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    named = (
        re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists()
        else None
    )
    return named.group(1).strip() if named else platform.processor() or platform.machine()


def memory_bytes(device: str = "cpu", root: str = "/") -> int | None:
    """Memory a run may fill: free memory of the GPU; else what is available, or what its control
    group leaves if that is less.

    Args:
        device: "cpu", "cuda" or "mps".
        root: folder that holds "proc" and "sys".
    """
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    base, found = Path(root), []
    info = base / "proc/meminfo"
    if info.exists():
        available = re.search(r"^MemAvailable:\s*(\d+) kB", info.read_text(), re.MULTILINE)
        found += [1024 * int(available.group(1))] if available else []
    for limit, used in (("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        most, now = base / "sys/fs/cgroup" / limit, base / "sys/fs/cgroup" / used
        if most.exists() and now.exists() and most.read_text().strip().isdigit():
            found.append(max(0, int(most.read_text()) - int(now.read_text())))
    return min(found, default=None)


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees instead of giving it back to the system; whether
    that was possible.

    glibc returns large blocks at once and takes them anew at the next operation; every page is then
    cleared and mapped again. A training step on a processor frees and takes hundreds of MB, and on
    virtual machines this can be half of its time. The process holds its peak memory until it ends.
    Does nothing where the C library is not glibc.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        # M_MMAP_THRESHOLD (-3) and M_TRIM_THRESHOLD (-1, of which -1 means never) of malloc.h; see
        # mallopt(3).
        return bool(library.mallopt(-3, 2**30) and library.mallopt(-1, -1))
    except (OSError, AttributeError):
        return False


def give_memory_back() -> None:
    """Give the system what this process has freed, and let it do so by itself again: the opposite
    of ``keep_freed_memory``."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        for threshold in (-3, -1):
            library.mallopt(threshold, 2**17)  # as glibc begins
        library.malloc_trim(0)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _spent(work: Callable[[], object], device: str, clock: Stopwatch) -> float:
    _wait(device)
    started = clock()
    work()
    _wait(device)
    return clock() - started


def _median(work: Callable[[], object], device: str, budget_s: float, clock: Stopwatch) -> float:
    """Median seconds of the work after one warm-up: until the budget is spent, at least once."""
    _spent(work, device, clock)
    times = [_spent(work, device, clock)]
    while sum(times) < budget_s and len(times) < 100:
        times.append(_spent(work, device, clock))
    return statistics.median(times)


def _products(dtype: torch.dtype, device: str, budget_s: float, clock: Stopwatch) -> float:
    """FLOP/s over the products of a step, forward and backward; every shape does the same number of
    FLOP (harmonic mean)."""
    per_flop_s = []
    shapes = SHAPES["cpu" if device == "cpu" else "cuda"]
    for tokens, width, out in shapes:
        x, weight, grad = (_filled(*shape, dtype=dtype, device=device)
                           for shape in ((tokens, width), (out, width), (tokens, out)))
        for work in (lambda x=x, weight=weight: x @ weight.T, lambda grad=grad,
                     weight=weight: grad @ weight):
            seconds = _median(work, device, budget_s / len(shapes) / 2, clock)
            per_flop_s.append(seconds / (2.0 * tokens * width * out))
    return 1 / statistics.fmean(per_flop_s)


def _filled(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)


def _bandwidth(device: str, budget_s: float, clock: Stopwatch) -> float:
    """Bytes read and written a second by copies into results made anew, all held until the last one
    is made."""
    count, size = COPIED["cpu" if device == "cpu" else "cuda"]
    source = torch.ones(size // 4, device=device)
    return (
        2 * count * size / _median(lambda: [source.clone() for _ in range(count)], device, budget_s,
                                   clock)
    )


class _Counter(TorchDispatchMode):
    """Counts operations as they reach the device, views included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


class _Small(nn.Module):
    """A gated feed-forward block of eight numbers' width with thin factors beside its layers:
    nothing but overhead."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False, device=device)
                                    for _ in range(3)).requires_grad_(False)
        self.factors = nn.ParameterList(torch.zeros(1, 2, 8, device=device) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        gate, up = self._layer(0, normed), self._layer(1, normed)
        return x + self._layer(2, nn.functional.silu(gate) * up)

    def _layer(self, i: int, x: Tensor) -> Tensor:
        y: Tensor = self.layers[i](x)
        low = torch.bmm(x.reshape(1, -1, 8), self.factors[2 * i].transpose(1, 2))
        return y + torch.bmm(low, self.factors[2 * i + 1]).view(y.shape)


def _operation(device: str, budget_s: float, clock: Stopwatch) -> float:
    """Seconds of one operation of a step so small that nothing else counts: forward, backward and
    AdamW, Python's share included."""
    blocks = nn.Sequential(*(_Small(device) for _ in range(4)))
    optimizer = torch.optim.AdamW(blocks.parameters(), lr=0.0)
    x = torch.ones(1, 2, 8, device=device)

    def step() -> None:
        blocks(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with _Counter() as counter:
        step()
    # As in the cost model: an operation of the forward pass, which Python calls module by module,
    # counts twice.
    with _Counter() as forward:
        blocks(x).sum()
    return _median(step, device, budget_s, clock) / float(counter.count + forward.count)
