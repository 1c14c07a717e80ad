"""The inside of the SuperLink: the public address answers the Fleet API alone.

Flower 1.41 serves three APIs on one port. Over the Control API anybody could start a run, which is
code of theirs on the coordinator's machine; over the Runtime API anybody could take a task and
answer in its place. Neither asks who calls. So:
- the public address answers the Fleet API, whose every request is signed by a node key, to bodies
  of bounded size;
- Control and Runtime API listen on loopback and ask for a pass that the processes of one run share;
- a site that claims to be another site in an answer is turned away;
- an answer is handed to the coordinator once all its pieces are here: whoever stops in the middle
  of sending holds up nobody;
- a message is not delivered after the time that its sender gave it, so that a site that comes back
  begins with what counts;
- a site that comes back before its last heartbeat has run out (60 s) is let in: its key says that
  it is the same one;
- a site's clock may be wrong by 5 minutes either way. Flower's own window is as wide, but from 305
  s late to 5 s early.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from sqlalchemy import select

from aulait.engines.flower.hardening.patching import (
    DELIVER,
    REQUEST_BYTES,
    guarded,
    part,
    require_names,
    swap,
    with_pass,
)
from aulait.engines.flower.hardening.private_names import names_of

_FLEET: Final = "/v1/fleet/"
_LINK: Final = "flwr.superlink.cli.flower_superlink"
_HANDLERS: Final = "flwr.superlink.servicer.fleet.fleet_handlers"
_RUNTIME: Final = "flwr.superlink.servicer.runtime.runtime_handlers"
_STORED: Final = "flwr.supercore.state.schema.objectstore_models"
_MESSAGES: Final = "flwr.supercore.state.schema.linkstate_models"
_NODE_KEYS: Final = "flwr.superlink.routers.fleet.node_auth"
_CLOCK_S: Final = 300


def fleet_only(path: str, headers: dict[bytes, bytes]) -> int:
    """The public address: Flower's Fleet API, whose every request is signed by a node key, and
    bodies of a declared, bounded size."""
    if not path.startswith(_FLEET):
        return 404
    length = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers or not length.isdigit() or len(length) > 12:
        return 411
    return 413 if int(length) > REQUEST_BYTES else 0


def superlink() -> None:
    """``flower-superlink`` with two listeners: the Fleet API for everybody with a key, the rest for
    this machine and this run."""
    require_names(names_of("superlink"))
    store, activate = part(_HANDLERS, "push_messages"), part(_HANDLERS, "activate_node")

    def own_replies(request: Any, state: Any) -> Any:
        if any(message.metadata.src_node_id != request.node.node_id
               for message in request.messages_list):
            raise PermissionError("a site sent an answer in the name of another one")
        return store(request=request, state=state)

    def back_again(request: Any, state: Any) -> Any:
        if (node := state.get_node_id_by_public_key(request.public_key)) is not None:
            state.deactivate_node(node)  # changes nothing unless it counts as online
        return activate(request=request, state=state)

    deliver, collect = part(_HANDLERS, "pull_messages"), part(_RUNTIME, "pull_messages")

    def in_time(request: Any, state: Any, store: Any) -> Any:
        return deliver(request=request, state=Timely(state), store=store)

    def whole(request: Any, state: Any, task: Any) -> Any:
        part_of_it = unfinished(state, list(request.message_ids))
        if part_of_it:
            kept = [one for one in request.message_ids if one not in part_of_it]
            request = type(request)(message_ids=kept)
        return collect(request, state, task)

    swap(_HANDLERS, "push_messages", own_replies)
    swap(_HANDLERS, "pull_messages", in_time)
    swap(_RUNTIME, "pull_messages", whole)
    swap(_HANDLERS, "activate_node", back_again)
    # early by less than the one, late by less than both together
    swap(_NODE_KEYS, "SYSTEM_TIME_TOLERANCE", _CLOCK_S)
    swap(_NODE_KEYS, "TIMESTAMP_TOLERANCE", 0)
    swap(_LINK, "_run_superlink_http_api", _two_listeners)
    part(_LINK, "flower_superlink")()


class Timely:
    """The SuperLink's state without messages whose time is over; those are forgotten when their
    site asks.

    Args:
        state: Flower's.
    """

    def __init__(self, state: Any) -> None:
        self._state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_message_ins(self, **asked: Any) -> Any:
        """The next message of a site that it is still to work on."""
        while found := self._state.get_message_ins(**asked):
            over = {message.metadata.message_id for message in found
                    if _over(message.metadata.group_id)}
            if not over:
                break
            self._state.delete_messages(message_ins_ids=over)
        return found


def _over(group: str) -> bool:
    try:
        return group.startswith(DELIVER) and time.time() > float(group[len(DELIVER) :])
    except ValueError:
        return False


def unfinished(state: Any, message_ids: Sequence[str]) -> set[str]:
    """Messages whose answers are announced and not here with all their pieces.

    Args:
        state: Flower's, on its database.
        message_ids: of Flower.
    """
    reply, stored, child = part(_MESSAGES, "MessageRes"), part(_STORED,
        "StoredObject"), part(_STORED, "ObjectChild")
    with state.session() as session:
        come = session.execute(select(reply.reply_to_message_id, reply.message_id).where(
            reply.reply_to_message_id.in_(message_ids), reply.delivered_at == "")).all()
    found = set[str]()
    for message_id, root in come:
        with state.object_store.session() as session:
            level, seen = [root], {root}
            while level and message_id not in found:
                here = session.scalars(select(stored.object_id).where(stored.object_id.in_(level),
                    stored.is_available == 1)).all()
                if len(here) < len(level):
                    found.add(message_id)
                below = session.scalars(
                    select(child.child_id).where(child.parent_id.in_(level))).all()
                level = [name for name in set(below) if name not in seen]
                seen.update(level)
    return found


def _two_listeners(lifespan_config: Any) -> None:
    """In place of Flower's one listener."""
    inner_port = int(os.environ["AULAIT_INNER"])
    kind: Any = part(_LINK, "SuperLinkLifespan")

    class Lifespan(kind):  # type: ignore[misc]
        """Starts the task runner towards the inner address, in our process group."""

        def _start_superexec_if_needed(self) -> None:
            words = ["flower-superexec", "--insecure", "--runtime-api-address",
                     f"127.0.0.1:{inner_port}"]
            self.superexec_process = subprocess.Popen([*words, "--parent-pid", str(os.getpid())])

    class Inner(uvicorn.Server):
        """Leaves the signals to the public one."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    # node keys sign without TLS too; insecure drops TLS alone
    lifespan_config.enable_supernode_auth = True
    app = part("flwr.superlink.main", "create_app")(lifespan_config, Lifespan)
    usual: Any = {"log_level": "warning", "ws": "none", "timeout_graceful_shutdown": 2}
    shown = guarded(app, with_pass(os.environ["AULAIT_PASS"]))
    private = Inner(uvicorn.Config(shown, host="127.0.0.1", port=inner_port, lifespan="off",
        **usual))
    public = uvicorn.Server(uvicorn.Config(guarded(app, fleet_only), host=lifespan_config.host,
        port=lifespan_config.port,
                                           ssl_keyfile=lifespan_config.ssl_keyfile,
                                           ssl_certfile=lifespan_config.ssl_certfile, **usual))

    async def both() -> None:
        inside = asyncio.create_task(private.serve())
        await public.serve()
        private.should_exit = True
        await inside

    asyncio.run(both())
