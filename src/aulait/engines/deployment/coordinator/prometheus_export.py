"""A run's status for Prometheus, and a small server that answers GET /metrics and nothing else.

Everything is read from the run folder at every question, so that there is no state to go wrong. The
counters sum rounds.jsonl: after a resume they may be a round lower, which Prometheus takes as a
restart of the counter. The metrics name sites and tell when they answered: like RUN/serve they are
the operator's, and the server listens on loopback unless told otherwise; it has no TLS and no
password.

Format, escaping and what a scraper may ask for are ``prometheus_client``'s, by its own request
handler. Its own server (``start_http_server``) answers on every path and to every Host.
"""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import MetricsHandler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from aulait.core.errors import AulaitError, ConfigError
from aulait.core.files import JsonObject
from aulait.engines.deployment.coordinator import status

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
STAGES = ("prepare", "synthesis", "train", "finish")
DOWN = ("unknown", "silent", "refused")  # of the states that ``EventLog.site`` names
PATIENCE_S = 5.0


class RunCollector:
    """Tells ``prometheus_client`` where a run stands, anew at every question.

    Args:
        run: the run folder; it may not exist yet.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def collect(self) -> Iterator[Metric]:
        """The metrics.

        Raises:
            DataError: the path is no run folder.
        """
        return _families(status.read_status(self._run))


def metrics_text(run: Path) -> str:
    """The status of a run in Prometheus' text format.

    Raises:
        DataError: the path is no run folder.
    """
    return generate_latest(RunCollector(run)).decode("utf-8")


def _families(found: JsonObject) -> Iterator[Metric]:
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
    for key, told in (("up_bytes", "Bytes of updates"), ("down_bytes", "Bytes of requests"),
                      ("refused", "Updates left out of a merge")):
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


class MetricsServer:
    """A server of one run's metrics; it ends with the process or with ``close``.

    Args:
        run: the run folder; it may not exist yet.
        port: 0 takes a free one.
        host: an address of this machine.

    Attributes:
        address: host and port, the port also when 0 was asked for.

    Raises:
        ConfigError: the port is taken or may not be used.
    """

    def __init__(self, run: Path, port: int, host: str = "127.0.0.1") -> None:
        class OfThisRun(_RunMetricsHandler):
            registry = RunCollector(run)
            hosts = frozenset({host, *LOOPBACK}) if host in LOOPBACK else frozenset()

        try:
            self._server = _QuietServer((host, port), OfThisRun)
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            reason = "is taken" if taken else f"cannot be used ({error})"
            raise ConfigError(f"metrics port {host}:{port} {reason}, expected a free one; choose "
                              "another --metrics") from error
        self.address: tuple[str, int] = (host, self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2},
                         name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that hangs up is no event."""


class _RunMetricsHandler(MetricsHandler):
    """``prometheus_client``'s own handler behind a check of path and Host.

    Attributes:
        hosts: names under which this machine may be asked; empty: any.
    """

    server_version, sys_version = "aulait", ""
    timeout = PATIENCE_S
    hosts: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, "only /metrics is here")
        elif self.hosts and _host(self.headers.get("Host", "")) not in self.hosts:
            # A web page whose name was made to point at this machine.
            self.send_error(HTTPStatus.FORBIDDEN, "this address is for this machine alone")
        else:
            try:
                super().do_GET()
            except (AulaitError, OSError):
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "the run folder cannot be read yet")


def _host(header: str) -> str:
    """The name in a Host header without its port."""
    return header if header.endswith("]") else header.rpartition(":")[0] or header
