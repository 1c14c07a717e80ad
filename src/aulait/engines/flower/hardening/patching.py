"""Tools of the files of this folder: reach a name of Flower's or end, stand in front of its
listeners, end with the parent.

Names of Flower's that are gone end the process at once: a measure that cannot be put in place must
not be missing silently. So private names are reached by ``part`` and not by an import at the top.
"""

from __future__ import annotations

import contextlib
import hmac
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from aulait.engines.flower.hardening.private_names import PRIVATE_NAMES, PrivateName

PASS_HEADER: Final = "x-aulait-pass"
REQUEST_BYTES: Final = 16 * 2**20
"""Largest HTTP body either way: Flower cuts what it sends into objects of 5 MiB."""
UNFIT: Final = 78
"""Exit code: Flower lacks a name that a measure needs."""
DELIVER: Final = "until-"
"""In front of the server's time until which a message is delivered; both are the name of its
group."""
_GRACE_S: Final = 2.0

Scope = MutableMapping[str, Any]
Call = Callable[..., Awaitable[Any]]
App = Callable[[Scope, Call, Call], Awaitable[None]]


def part(module: str, name: str) -> Any:
    """A private name of Flower's, or the end of this process: see ``UNFIT``.

    Raises:
        KeyError: it does not stand in ``private_names.py``.
    """
    if not any((own.module, own.name) == (module, name) for own in PRIVATE_NAMES):
        raise KeyError(f"{module}.{name} is not in the table of private names")
    return _found(module, name)


def _found(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        tell("unfit", missing=f"{module}.{name}")
        print(f"aulait: found a Flower without {module}.{name}, expected flwr>=1.41,<1.43",
              file=sys.stderr, flush=True)
        os._exit(UNFIT)


def swap(module: str, name: str, new: Any) -> Any:
    """Put our own in the place of a name of Flower's; returns what was there."""
    old = part(module, name)
    setattr(importlib.import_module(module), name, new)
    return old


def require_names(names: Iterable[PrivateName]) -> None:
    """Look for every name that is needed before anything is listened to."""
    for own in names:
        _found(own.module, own.name)


class Pieces:
    """Counts the pieces of a message while they arrive, and what they come to once they are put
    together.

    Args:
        limit: most bytes, before and after.

    Attributes:
        over: whether there were more.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._sizes, self._arrays, self.over = limit, dict[str,
            int](), list[bytes](), False
        self._total, self._one_at_a_time = 0, threading.Lock()  # Flower pulls with several threads

    def add(self, name: str, content: bytes) -> None:
        """One piece.

        Raises:
            ValueError: with it there are too many bytes.
        """
        with self._one_at_a_time:
            self._sizes[name] = len(content)
            self._total += len(content)
            if content.startswith(b"Array "):
                self._arrays.append(content)
            self.over = self.over or self._total > self._limit
        if self.over:
            raise ValueError(f"more than {self._limit:,} bytes")

    def joined(self) -> int:
        """Bytes of all arrays; one may name a piece many times.

        Raises:
            Exception: an array is not well made.
        """
        total = 0
        for content in self._arrays:
            head, _, told = content.partition(b"\0")
            names = head.decode().split(" ")[1].split(",")
            total += sum(self._sizes[names[k]] for k in json.loads(told)["arraychunk_ids"])
        self.over = self.over or total > self._limit
        return total


def tell(event: str, **fields: Any) -> None:
    """One JSON line to the process above, over the pipe it gave us; its end is no reason to
    fail."""
    channel = os.environ.get("AULAIT_TELL")
    if channel:
        with contextlib.suppress(OSError, ValueError):
            os.write(int(channel), json.dumps({"event": event, **fields}).encode() + b"\n")


def watch(parent: int, group: bool) -> None:
    """End with the process that started us, or with the first of all: politely, then at once; a
    leader takes its group along.

    Without the second, a chain of processes would end one after the other, each with its own grace.
    """
    root = int(os.environ.get("AULAIT_ROOT", parent))

    def there() -> bool:
        try:
            os.kill(root, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # of another account, so somebody else's by now; the parent tells soon enough
        return os.getppid() == parent

    def look() -> None:
        while there():
            time.sleep(0.2)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(_GRACE_S)
        if group:
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=look, daemon=True, name="aulait-parent").start()


async def _turned_away(send: Call, status: int) -> None:
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def guarded(inner: App, allowed: Callable[[str, dict[bytes, bytes]], int]) -> App:
    """An ASGI app that answers only what is allowed.

    Args:
        inner: Flower's.
        allowed: (path, headers) -> 0, or the HTTP status that turns the request away before a byte
            of it is read.
    """

    async def gate(scope: Scope, receive: Call, send: Call) -> None:
        if scope["type"] == "lifespan":
            return await inner(scope, receive, send)
        if scope["type"] != "http":
            return None  # websockets are nobody's business here
        if status := allowed(scope["path"], dict(scope["headers"])):
            return await _turned_away(send, status)
        return await inner(scope, receive, send)

    return gate


def with_pass(secret: str) -> Callable[[str, dict[bytes, bytes]], int]:
    """A loopback address: whoever carries the pass of this run."""

    def check(_path: str, headers: dict[bytes, bytes]) -> int:
        return (
            0 if secret and hmac.compare_digest(headers.get(PASS_HEADER.encode(), b""),
                secret.encode()) else 404
        )

    return check


def clients(adjust: Callable[[Any], None]) -> None:
    """Adjust every HTTP client that Flower makes in this process."""
    kind: Any = part("flwr.supercore.protobuf.client", "ProtobufClient")
    first = kind.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        first(self, *args, **kwargs)
        adjust(self._client)

    kind.__init__ = made


def carry_pass(client: Any) -> None:
    """The client shows the pass; it speaks to one loopback address, and follows nobody elsewhere
    with it."""
    client.headers[PASS_HEADER] = os.environ["AULAIT_PASS"]
    client.follow_redirects = False
