"""Serves one page to browsers of this machine, and tells them when there is a newer one.

It listens on the loopback address alone, under a path that nobody can guess, because other users of
the machine can reach that address too. A request under another name than the loopback's is refused:
a web page elsewhere could have its own name lead here.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self

HOST: Final = "127.0.0.1"
LOOPBACK: Final = (HOST, "localhost")


@dataclass(frozen=True)
class ServedPage:
    """What there is to see now.

    Attributes:
        version: another for every other content.
        over: there will be no newer one.
        html: makes the page; called in a thread of the server.
    """

    version: str
    over: bool
    html: Callable[[], str]


class PageServer:
    """The server; a context manager, within which it answers.

    Args:
        current: what there is to see now; called for every request, in its thread.
        port: to listen on; 0 takes a free one.

    Raises:
        OSError: the port cannot be had.
    """

    def __init__(self, current: Callable[[], ServedPage], port: int = 0) -> None:
        self.seen = threading.Event()
        """Set once a browser has shown the last version."""
        self._current, self._token = current, secrets.token_urlsafe(12)
        server = self

        class Handler(BaseHTTPRequestHandler):
            """Answers GET alone."""

            def do_GET(self) -> None:
                kind, body = server.answer(self.path, self.headers.get("Host", ""))
                self.send_response(200 if kind else 404)
                self.send_header("Content-Type", kind or "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("X-Content-Type-Options", "nosniff")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Requests are nobody's news."""

        self._server = ThreadingHTTPServer((HOST, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self._server.server_address[1]}/{self._token}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, host: str) -> tuple[str, bytes]:
        """Media type and body for a path; an empty type where there is nothing, or where the host
        of the request is not this machine's own."""
        name = path.removeprefix(f"/{self._token}/")
        if host.rpartition(":")[0] not in LOOPBACK or name == path:
            return "", b"not found"
        if name in ("", "page"):
            return "text/html; charset=utf-8", self._current().html().encode("utf-8")
        if name == "version":
            now = self._current()
            told = {"version": now.version, "over": now.over}
            return "application/json", json.dumps(told).encode("utf-8")
        if name == "seen":
            self.seen.set()
            return "text/plain", b"good"
        return "", b"not found"
