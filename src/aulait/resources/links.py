"""Links: what moving bytes takes in time and energy, usual links, and a measurement over plain
HTTP.

The measurement needs the other end: ``serve_echo`` on the server's machine, ``measure_link`` on the
client's. It moves
random bytes both ways and asks for nothing else; it is no speed test of a provider, but of the path
that a run will use.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import urlsplit

from aulait.core.errors import ConfigError, WireError
from aulait.core.types import Profile

LIMIT_BYTES: Final = 64 * 2**20
"""The largest body that the echo server sends or takes in one request."""
_CHUNK: Final = os.urandom(2**20)  # random, so that nothing on the way makes it smaller
_FIRST_BYTES: Final = 2**16
_PINGS: Final = 9
_TIMEOUT_S: Final = 20.0
_J_PER_BYTE_OF_KWH_PER_GB: Final = 3.6e6 / 1e9


@dataclass(frozen=True)
class Link:
    """A usual link between a site and the server.

    Attributes:
        up_bytes_per_s: from the site.
        down_bytes_per_s: to the site.
        latency_s: one way: half the round trip.
        joules_per_byte: electricity of the network (not of the two machines) over the traffic it
            carries. An average that counts equipment which is always on: sending less saves less
            than it says. Estimates differ tenfold.
        source: of the speeds.
        energy_source: of the joules.
    """

    up_bytes_per_s: float
    down_bytes_per_s: float
    latency_s: float
    joules_per_byte: float
    source: str
    energy_source: str


def _link(down_mbit_per_s: float, up_mbit_per_s: float, round_trip_ms: float, kwh_per_gb: float,
          source: str, energy: str) -> Link:
    """A link from the units in which sources tell it."""
    rates = (up_mbit_per_s * 1e6 / 8, down_mbit_per_s * 1e6 / 8)
    return Link(*rates, round_trip_ms / 2e3, kwh_per_gb * _J_PER_BYTE_OF_KWH_PER_GB, source, energy)


_FIXED = (
    "0.03 kWh/GB: fixed networks, EU study of ICT impact 2020, as collected in Scope3's methodology"
)
_MOBILE = (
    "0.14 kWh/GB: mobile networks, EU study of ICT impact 2020, as collected in Scope3's "
    "methodology"
)
_ETHERNET = (
    "94 % of the nominal rate is payload in full frames; the round trip is typical, not measured "
    "by us"
)

LINKS: Final[Mapping[str, Link]] = {
    "3g": _link(6.1, 1.6, 100, 2.8,
                "means in five UK cities, Ofcom 2014 (6.1 down, 1.6 up Mbit/s); the round trip is "
                "typical, not measured by us",
                "2.8 kWh/GB: base stations alone, a study of dense urban areas, as collected in "
                "Scope3's methodology"),
    "4g": _link(36, 11, 40, 0.14,
                "world mean of mobile links, Ookla Speedtest Global Index, September 2020, when "
                "few were 5G", _MOBILE),
    "5g": _link(166, 21, 30, 0.06,
                "world median over 5G, Ookla, third quarter of 2021; the round trip is typical, "
                "not measured by us",
                "0.06 kWh/GB: bottom-up estimate of 5G radio access, as collected in Scope3's "
                "methodology"),
    "home": _link(100, 20, 21, 0.03,
                  "the US regulator's benchmark of fixed broadband, FCC March 2024 (100 down, 20 "
                  "up Mbit/s); round trip: world mean of fixed links, Ookla, September 2020",
                  _FIXED),
    "office": _link(94, 94, 10, 0.03, f"100 Mbit/s both ways; {_ETHERNET}", _FIXED),
    "fibre": _link(940, 940, 10, 0.03, f"1 Gbit/s both ways; {_ETHERNET}", _FIXED),
    "datacenter": _link(9400, 9400, 0.5, 6e-6, f"10 Gbit/s both ways; {_ETHERNET}",
                        "6e-6 kWh/GB: our estimate, five ports of 5 W each at 10 Gbit/s"),
}
"""Name -> usual link. Typical figures to plan with; measure yours with ``aulait probe --link``."""


def transfer_s(size_bytes: float, bytes_per_s: float, latency_s: float = 0.0) -> float:
    """Seconds until the last byte has arrived: latency, then bytes at the rate of the link.

    Nothing is added for the slow start of TCP or for loss. No bytes take no time: nothing is sent.
    """
    return latency_s + size_bytes / bytes_per_s if size_bytes else 0.0


def round_trip_s(profile: Profile, down_bytes: float, up_bytes: float) -> float:
    """Seconds that an order down and a reply up spend on a machine's link; arithmetic in between is
    not counted.

    Raises:
        ConfigError: bytes are to be moved over a link whose speed is not known.
    """
    for size_bytes, rate in ((down_bytes, profile.down_bytes_per_s),
                             (up_bytes, profile.up_bytes_per_s)):
        if size_bytes and not rate:
            raise ConfigError(
                f"machine '{profile.name}' has no link speed, expected one to send "
                f"{size_bytes:,.0f} bytes over; name a link ({', '.join(LINKS)}), or measure it "
                "with aulait probe --link URL")
    down_s = transfer_s(down_bytes, profile.down_bytes_per_s or 1.0, profile.latency_s)
    return down_s + transfer_s(up_bytes, profile.up_bytes_per_s or 1.0, profile.latency_s)


def measure_link(url: str, seconds: float = 2.0) -> tuple[float, float, float]:
    """Bytes up a second, bytes down a second, and one-way latency in seconds, against
    ``serve_echo`` at the URL.

    Latency is half the median of small requests on one open connection. A rate is that of the
    largest body that fits into half of the time, without the round trip. On a link as fast as
    loopback it is this program's speed, not the link's.

    Args:
        url: as ``http://host:8123``.
        seconds: for both directions together, at least; a slow link takes longer.

    Raises:
        ConfigError: the URL is not http://host:port.
        WireError: nobody answers there, or not an echo server.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host = None
    if not host or parts.scheme != "http" or seconds <= 0:
        raise ConfigError(
            f"found link '{url}' and {seconds:g} s, expected http://HOST:PORT and more than 0 s; "
            "start the other end there with aulait probe --echo HOST:PORT")
    wire = HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        # the first also opens the connection
        ping_s = [_asked(wire, "GET", 0) for _ in range(_PINGS + 1)][1:]
        round_trip = statistics.median(ping_s)
        down = _rate(lambda size: _asked(wire, "GET", size), round_trip, seconds / 2)
        up = _rate(lambda size: _asked(wire, "POST", size), round_trip, seconds / 2)
    except (OSError, HTTPException) as error:
        raise WireError(
            f"found nobody to measure the link with at {url} "
            f"({str(error) or type(error).__name__}), expected an echo server; start it there with "
            "aulait probe --echo HOST:PORT") from error
    finally:
        wire.close()
    return up, down, round_trip / 2


def _rate(move: Callable[[int], float], round_trip_s: float, seconds: float) -> float:
    """Bytes a second of a large body: sizes double until one takes a quarter of the time; the rest
    of it repeats that size."""
    end, size, rates = time.perf_counter() + seconds, _FIRST_BYTES, list[float]()
    while time.perf_counter() < end or not rates:
        took_s = move(size)
        if took_s < seconds / 4 and size < LIMIT_BYTES:
            size = min(2 * size, LIMIT_BYTES)  # a small body says little about the rate
        else:
            rates.append(size / max(took_s - round_trip_s, took_s / 2, 1e-9))
    return statistics.median(rates)


def _asked(wire: HTTPConnection, verb: str, size_bytes: int) -> float:
    """Seconds of one request that moves so many bytes, down with GET, up with POST."""
    start = time.perf_counter()
    if verb == "GET":
        wire.request("GET", f"/down/{size_bytes}")
    else:
        wire.request("POST", "/up", body=_pieces(size_bytes),
                     headers={"Content-Length": str(size_bytes)})
    answer: HTTPResponse = wire.getresponse()
    got = 0
    while piece := answer.read(len(_CHUNK)):
        got += len(piece)
    if answer.status != 200 or answer.headers.get("X-Aulait") != "echo" or got != (size_bytes
            if verb == "GET" else 0):
        raise HTTPException(f"status {answer.status} and {got:,} bytes")
    return time.perf_counter() - start


def _pieces(size_bytes: int) -> Iterator[bytes]:
    """So many random bytes, a piece at a time."""
    for begin in range(0, size_bytes, len(_CHUNK)):
        yield _CHUNK[: size_bytes - begin]


class _Echo(BaseHTTPRequestHandler):
    """GET /down/N sends N random bytes; POST /up takes a body and throws it away; nothing else."""

    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send bytes."""
        size = self.path.removeprefix("/down/")
        if not self.path.startswith("/down/") or not _allowed(size):
            self.send_error(400, f"expected /down/N with N at most {LIMIT_BYTES}")
            return
        self._head(int(size))
        for piece in _pieces(int(size)):
            self.wfile.write(piece)

    def do_POST(self) -> None:
        """Take bytes."""
        size = self.headers.get("Content-Length", "")
        if self.path != "/up" or not _allowed(size):
            # a body of unknown length would be read as the next request
            self.close_connection = True
            self.send_error(413, f"expected /up with Content-Length at most {LIMIT_BYTES}")
            return
        left = int(size)
        while left > 0 and (piece := self.rfile.read(min(left, len(_CHUNK)))):
            left -= len(piece)
        self._head(0)

    def _head(self, size_bytes: int) -> None:
        self.send_response(200)
        self.send_header("X-Aulait", "echo")
        self.send_header("Content-Length", str(size_bytes))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: who measured is nobody's business."""


def _allowed(size: str) -> bool:
    return size.isascii() and size.isdigit() and len(size) < 12 and int(size) <= LIMIT_BYTES


@contextmanager
def serve_echo(port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """The other end of ``measure_link``, in a thread, as long as the block runs; yields its URL.

    It knows nobody and asks for no password: whoever reaches it can make it move ``LIMIT_BYTES`` a
        request. So it listens
    on loopback unless told otherwise, and should run only while a link is measured.

    Args:
        port: to listen on; 0 takes a free one.
        host: address to listen on.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        server = ThreadingHTTPServer((host, port), _Echo)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error}), expected a free port of this machine; "
            "choose another") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05},
                              daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
