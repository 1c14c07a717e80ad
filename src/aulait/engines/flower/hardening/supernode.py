"""The inside of a SuperNode: nothing that the server ships is fetched.

- The bundle that the server ships is never fetched, and the run's configuration is not read; agent
  tasks and every other kind of task but a client app's are refused.
- No redirect is followed, no answer unpacked, none larger than a limit read; a message is measured
  while it arrives.
- The address for the site's own processes asks for a pass, so that no other account of the machine
  can answer for it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Error, Message

from aulait.engines.flower.hardening.patching import (
    REQUEST_BYTES,
    Pieces,
    clients,
    guarded,
    part,
    require_names,
    swap,
    tell,
    with_pass,
)
from aulait.engines.flower.hardening.private_names import names_of

_MAIN: Final = "flwr.supernode.main"
_NODE: Final = "flwr.supernode.start_client_internal"
_RETRY: Final = "flwr.supercore.retry.http_retry"
_BUSY: Final = (429, 502, 503, 504)  # a proxy on the way speaks, or a server that starts
_NOTHING: Final = sha256(b"").hexdigest()
# Flower's own 20 s would be waited out by every site after each restart of the server
_LONGEST_RETRY_S: Final = 5


def careful(client: Any) -> None:
    """A site's client towards the server: sent nowhere else, unpacks nothing, reads a bounded
    answer, says when nobody answers."""
    client.follow_redirects = False
    client.headers["accept-encoding"] = "identity"

    def bounded(response: httpx.Response) -> None:
        length = response.headers.get("content-length", "")
        if "content-encoding" in response.headers or not length.isdigit() or int(
            length) > REQUEST_BYTES:
            text = (
                f"the server's answer is packed, of no stated length or above {REQUEST_BYTES:,} "
                "bytes"
            )
            raise httpx.ReadError(text, request=response.request)

    client.event_hooks["response"].append(bounded)
    first, away = client.send, set[str]()  # what an outage said so far

    def send(request: httpx.Request, **options: Any) -> httpx.Response:
        try:
            response: httpx.Response = first(request, **options)
        except httpx.TransportError as error:
            if (text := f"{type(error).__name__}: {error}"[:300]) not in away:
                tell("away", error=text)
            away.add(text)
            raise _passing(error, request) from error
        if response.is_error and response.status_code not in _BUSY and request.url.path.endswith(
            "/activate-node"):
            tell("unknown", status=response.status_code)
        if away:
            tell("back")
        away.clear()
        return response

    client.send = send


def _passing(error: Any, request: Any) -> Exception:
    """Flower takes every word of TLS for a wrong certificate and never asks again; a connection
    that broke is tried again."""
    text = str(error).lower()
    if "certificate" in text or ("ssl" not in text and "tls" not in text):
        return cast(Exception, error)
    return httpx.ReadError("the encrypted connection broke", request=request)


def supernode() -> None:
    """``flower-supernode`` that fetches no code, listens to its own site only, and measures what
    arrives.

    When Flower's loop ends, so does the process: its listener's thread would keep alive a node that
    asks for nothing.
    """
    require_names(names_of("supernode"))
    made, pull, push = part(_MAIN, "create_app"), part(_NODE,
        "_pull_and_store_message"), part(_NODE, "_push_messages")
    swap(_MAIN, "create_app", lambda *args, **kwargs: guarded(made(*args, **kwargs),
        with_pass(os.environ["AULAIT_PASS"])))
    swap(_NODE, "get_fused_config_from_fab", lambda *_: {})
    swap(_NODE, "_pull_and_store_message", lambda **given: _pulled(pull, given))
    swap(_NODE, "_push_messages", lambda **given: _pushed(push, given))
    if key := os.environ.get("AULAIT_NODE_KEY"):
        swap(_NODE, "_init_connection", _signed(part(_NODE, "_init_connection"), Path(key)))
    swap(_RETRY, "MAX_RETRY_DELAY", _LONGEST_RETRY_S)
    clients(careful)
    code: Any = 1
    try:
        part("flwr.supernode.cli.flower_supernode", "flower_supernode")()
    except SystemExit as ended:
        code = ended.code
    except Exception:
        traceback.print_exc()
    os._exit(code if isinstance(code, int) else 1)


_known: set[int] = set()
_asked: dict[str, str] = {}  # the message that is worked on


def _pulled(pull: Callable[..., int | None], given: dict[str, Any]) -> int | None:
    """Flower's next message, through narrowed callbacks: no bundle, only runs of a server app, a
    bounded size.

    Args:
        pull: Flower's own function.
        given: its arguments.
    """
    task_type, fab = part("flwr.supercore.constant", "TaskType"), part("flwr.supercore.fab", "Fab")
    node, seen = int(given["state"].get_node_id()), dict[str, Any]()
    if node not in _known:
        _known.add(node)
        tell("connected", node=node)
    pieces = Pieces(int(os.environ["AULAIT_MESSAGE_BYTES"]))

    def receive() -> Any:
        found = given["receive"]()
        seen["message"] = found[0] if found else None
        _asked["message"] = found[0].metadata.message_id if found else ""
        return found

    def get_run(number: int) -> Any:
        run = given["get_run"](number)
        if run.primary_task_type not in (task_type.SERVER_APP, task_type.SERVER_APP.value, ""):
            tell("refused", what=f"a run of kind {str(run.primary_task_type)[:40]!r}")
            raise part("flwr.supercore.run", "RunNotRunningException")
        run.fab_hash = _NOTHING
        return run

    def pull_object(number: int, object_id: str) -> Any:
        piece = given["pull_object"](number, object_id)
        pieces.add(object_id, piece)
        return piece

    ours = {"receive": receive, "get_run": get_run, "get_fab": lambda _digest,
            _run: fab(_NOTHING, b"", {}), "pull_object": pull_object}
    run = pull(**(given | ours))
    if run is not None:
        pieces.joined()
    return _answer_too_large(given, seen["message"]) if pieces.over else run


def _pushed(push: Callable[..., None], given: dict[str, Any]) -> None:
    """Flower's sending of answers, until that to the message of this turn has gone.

    Flower sends once a turn what is there. An answer that was left over, because its server died
    while its message came, would be sent in place of the next one, and that one a turn later: this
        node would be a message behind for ever.

    Args:
        push: Flower's own function; it waits for an answer.
        given: its arguments.
    """
    answered = set[str]()

    def send(message: Any, *rest: Any) -> Any:
        answered.add(message.metadata.reply_to_message_id)
        return given["send"](message, *rest)

    while _asked["message"] not in answered:
        push(**(given | {"send": send}))


def _answer_too_large(given: dict[str, Any], message: Any) -> int:
    """Tell the server that its message is too large, so that it need not wait for an answer;
    returns the run."""
    tell("refused", what="a message above limits.message_bytes")
    reply = Message(Error(code=0, reason="the message is larger than this site accepts"),
                    reply_to=message)
    part(_NODE, "_insert_message")(reply, given["state"], given["object_store"])
    return int(message.metadata.run_id)


def _signed(connect: Callable[..., Any], key: Path) -> Callable[..., Any]:
    """Flower signs only over TLS; on loopback without it, a site still shows who it is."""
    private: Any = load_ssh_private_key(key.read_bytes(), None)
    return lambda **given: connect(
        **(given | {"authentication_keys": (private, private.public_key())}))
