"""Two network namespaces and a slow link between them: by ``tc netem`` where the kernel has it, else by a process that forwards packets.

    python tests/flower/slow_link.py FD FD MBIT_PER_S DELAY_S LOSS    the forwarder: packets of two TUN devices, one by one

The forwarder is what netem does: a packet waits its turn at the link's rate, is lost with a probability, arrives after the
delay; more than a thousand waiting packets are dropped. TCP above it is the kernel's own, with its own losses to mend.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

MOST_WAITING = 1000  # packets, as netem's default
_TUNSETIFF, _TUN, _NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass(frozen=True)
class Place:
    """One end: its namespace, and its address on the link."""

    name: str
    address: str

    def words(self, *words: str) -> list[str]:
        """A command that runs there."""
        return ["ip", "netns", "exec", self.name, *words]


def hindrance() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    try:
        done = subprocess.run(["ip", "netns", "add", f"probe{os.getpid()}"], capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return "found no 'ip'; install iproute2"
    if done.returncode:
        return f"ip netns is not permitted: {done.stderr.strip()[:200]}"
    ip("netns", "del", f"probe{os.getpid()}")
    return ""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def link(mbit_per_s: float, delay_s: float, loss: float) -> Iterator[tuple[Place, Place, str]]:
    """Two namespaces joined by a link of this rate, one-way delay and loss in either direction.

    Args:
        mbit_per_s: rate, each way.
        delay_s: one way; the round trip takes twice as long.
        loss: probability that a packet is lost.

    Yields:
        Both places, and what makes the link slow.
    """
    near, far = Place(f"near{os.getpid()}", "10.77.0.1"), Place(f"far{os.getpid()}", "10.77.0.2")
    made: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            for place in (near, far):
                ip("netns", "add", place.name)
                made.append(place.name)
                ip("-n", place.name, "link", "set", "lo", "up")
            how = _veth(near, far, mbit_per_s, delay_s, loss) or stack.enter_context(_forwarded(near, far, mbit_per_s, delay_s, loss))
            yield near, far, how
        finally:
            stack.close()
            for name in made:
                with contextlib.suppress(RuntimeError):
                    ip("netns", "del", name)


def _veth(near: Place, far: Place, mbit_per_s: float, delay_s: float, loss: float) -> str:
    """A veth pair with netem at both ends; empty where the kernel has no netem."""
    ip("-n", near.name, "link", "add", "way0", "type", "veth", "peer", "name", "way1", "netns", far.name)
    for place, device in ((near, "way0"), (far, "way1")):
        words = ["tc", "qdisc", "add", "dev", device, "root", "netem", "rate", f"{mbit_per_s}mbit", "delay", f"{1e3 * delay_s}ms", "loss",
                 f"{100 * loss}%", "limit", str(MOST_WAITING)]
        if subprocess.run(place.words(*words), capture_output=True, timeout=20, check=False).returncode:
            ip("-n", near.name, "link", "del", "way0")
            return ""
        _up(place, device)
    return "tc netem"


def _up(place: Place, device: str) -> None:
    ip("-n", place.name, "addr", "add", f"{place.address}/24", "dev", device)
    ip("-n", place.name, "link", "set", device, "up")


@contextlib.contextmanager
def _forwarded(near: Place, far: Place, mbit_per_s: float, delay_s: float, loss: float) -> Iterator[str]:
    """A TUN device in each place, and a process between them."""
    ends = []
    for place, device in ((near, f"tn{os.getpid() % 100000}"), (far, f"tf{os.getpid() % 100000}")):
        end = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", device.encode(), _TUN | _NO_PI))
        ends.append(end)
        ip("link", "set", device, "netns", place.name)
        _up(place, device)
    words = [sys.executable, __file__, *map(str, (*ends, mbit_per_s, delay_s, loss))]
    process = subprocess.Popen(words, pass_fds=ends)
    for end in ends:
        os.close(end)
    try:
        yield "packets forwarded one by one in a process, as this kernel has no netem"
    finally:
        process.terminate()
        process.wait(10)


def forward(ends: tuple[int, int], bytes_per_s: float, delay_s: float, loss: float) -> None:
    """Carry packets both ways for ever."""
    with contextlib.suppress(OSError):
        os.nice(-10)  # it stands for a wire, which no busy processor slows down
    for end in ends:
        os.set_blocking(end, False)
    free = [0.0, 0.0]  # when each direction's rate lets the next packet begin
    waiting = [0, 0]
    due: list[tuple[float, int, int, bytes]] = []
    number, chance = 0, random.Random(0)
    while True:
        pause = max(0.0, due[0][0] - time.monotonic()) if due else None
        for end in select.select(ends, [], [], pause)[0]:
            way = ends.index(end)
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet, now = os.read(end, 65536), time.monotonic()
                    if waiting[way] >= MOST_WAITING:
                        continue
                    free[way] = max(free[way], now) + len(packet) / bytes_per_s
                    if chance.random() >= loss:
                        number, waiting[way] = number + 1, waiting[way] + 1
                        heapq.heappush(due, (free[way] + delay_s, number, way, packet))
        while due and due[0][0] <= time.monotonic():
            _, _, way, packet = heapq.heappop(due)
            waiting[way] -= 1
            with contextlib.suppress(OSError):
                os.write(ends[1 - way], packet)


if __name__ == "__main__":
    forward((int(sys.argv[1]), int(sys.argv[2])), float(sys.argv[3]) * 1e6 / 8, float(sys.argv[4]), float(sys.argv[5]))
