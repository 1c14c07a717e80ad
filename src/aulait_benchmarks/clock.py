"""The clock of benchmarks whose work is all in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Clock(NamedTuple):
    """A clock and what it is called."""

    now: Callable[[], float]
    name: str


def own_clock() -> Clock:
    """With one thread the processor's time, which leaves out waiting for other programs; with
    several, which may wait for each other, the wall clock's."""
    if torch.get_num_threads() == 1:
        return Clock(time.process_time, "processor time")
    return Clock(time.perf_counter, "wall time")
