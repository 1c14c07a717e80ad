"""A run's status for Prometheus: its text format, and a small server that answers GET /metrics and
nothing else.

Everything is read from the run folder at every question, so that there is no state to go wrong. The
counters sum rounds.jsonl: after a resume they may be a round lower, which Prometheus takes as a
restart of the counter. The metrics name sites and tell when they answered: like RUN/serve they are
the operator's, and the server listens on loopback unless told otherwise; it has no TLS and no
password.
"""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from aulait.core.errors import AulaitError, ConfigError
from aulait.engines.deployment.coordinator import status

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
STAGES = ("prepare", "synthesis", "train", "finish")
DOWN = ("unknown", "silent", "refused")  # of the states that EventLog.site names
PATIENCE_S = 5.0


def text(run: Path) -> str:
    """The status of a run in Prometheus' text format.

    Raises:
        DataError: the path is no run folder.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status.read(run)))
    return generate_latest(registry).decode("utf-8")


class _Collector:
    """Hands one status to the library, which formats and escapes."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        return _families(self._found)


def _families(found: dict[str, Any]) -> Iterator[Metric]:
    at = found["stage"]
    sites, spent = found["sites"], found["epsilon"].items()
    up = found["state"] == "running"
    yield _gauge("aulait_up", "1 while a process holds the run", [((), up)])
    yield _gauge("aulait_outcome", "1 for the state that the run is in", [((found["state"],), 1)],
                 ("state",))
    yield _gauge("aulait_stage", "1 for the stage that the run is in",
                 [((stage,), stage == at) for stage in sorted({*STAGES, *filter(None, [at])})],
                 ("stage",))
    yield _gauge("aulait_round", "Rounds of the stage that are finished", [((), found["round"])])
    yield _gauge("aulait_rounds", "Rounds that the stage has", [((), found["rounds"])])
    yield _gauge("aulait_progress_age_seconds", "Seconds since the last progress",
                 [((), found["progress_s"])])
    yield _gauge("aulait_epsilon", "Epsilon spent by the clients of a role; +Inf without privacy",
                 [((role,), math.inf if value is None else value) for role, value in spent],
                 ("role",))
    yield _gauge("aulait_epsilon_budget", "Epsilon that the run may spend", [((), found["budget"])])
    yield _gauge("aulait_loss", "Held-out loss last measured, nats a token", [((), found["loss"])])
    yield _gauge("aulait_site_up", "1 while a site takes part",
                 [((site["name"], site["role"] or ""), up and site["state"] not in (None, *DOWN))
                  for site in sites], ("site", "role"))
    yield _gauge("aulait_site_last_seen_seconds", "Seconds since a site was last heard of",
                 [((site["name"],), site["last_seen_s"]) for site in sites], ("site",))
    yield _gauge("aulait_site_round", "Last round that a site was asked in",
                 [((site["name"],), site["round"]) for site in sites], ("site",))
    for key, told in (("up_bytes", "Bytes of replies"), ("down_bytes", "Bytes of orders"),
                      ("refused", "Replies left out of a merge")):
        family = CounterMetricFamily(f"aulait_{key}", f"{told}, all rounds")
        family.add_metric((), found[key])
        yield family


def _gauge(name: str, told: str, samples: Iterable[tuple[tuple[str, ...], Any]],
           labels: tuple[str, ...] = ()) -> Metric:
    """A gauge without the samples whose value is not known."""
    family = GaugeMetricFamily(name, told, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, float(value))
    return family


class Metrics:
    """A server of one run's metrics; it ends with the process or with ``close``.

    Attributes:
        address: host and port, the port also when 0 was asked for.
    """

    def __init__(self, run: Path, port: int, host: str) -> None:
        try:
            self._server = _Server((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = (
                "is taken" if getattr(error, "errno", None) == errno.EADDRINUSE
                else f"cannot be used ({error})"
            )
            raise ConfigError(
                f"metrics port {host}:{port} {reason}, expected a free one; choose another "
                "--metrics") from error
        self._server.run = run
        self.address: tuple[str, int] = (host, self._server.server_address[1])
        self._server.hosts = {host, *LOOPBACK} if host in LOOPBACK else set()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2},
                         name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def serve(run: Path, port: int, host: str = "127.0.0.1") -> Metrics:
    """Answer GET /metrics about a run, from a thread.

    Args:
        run: the run folder; it may not exist yet.
        port: 0 takes a free one.
        host: an address of this machine.

    Raises:
        ConfigError: the port is taken or may not be used.
    """
    return Metrics(run, port, host)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    run: Path
    hosts: set[str]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that hangs up is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "aulait", ""
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, "only /metrics is here\n")
        elif self.server.hosts and _host(self.headers.get("Host", "")) not in self.server.hosts:
            # a web page whose name was made to point at this machine
            self._answer(HTTPStatus.FORBIDDEN, "this address is for this machine alone\n")
        else:
            try:
                self._answer(HTTPStatus.OK, text(self.server.run), CONTENT_TYPE_PLAIN_0_0_4)
            except (AulaitError, OSError):
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "the run folder cannot be read yet\n")

    def _answer(self, code: HTTPStatus, body: str, kind: str = "text/plain; charset=utf-8") -> None:
        data = body.encode("utf-8", errors="replace")
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape is no event."""


def _host(header: str) -> str:
    """The name in a Host header without its port."""
    return header if header.endswith("]") else header.rpartition(":")[0] or header
