"""The Flower client app: hand a message to the worker of the site, hand its answer back.

Flower starts a new process for every message, so this file and what it loads stay light: no torch,
no model, no data.
Where the worker is: the environment's AULAIT_SOCKET, else ``socket`` in the node's configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from aulait.core.errors import DeviceError, WireError, require
from aulait.engines.deployment.protocol import envelope
from aulait.engines.deployment.site import local_socket
from aulait.engines.flower import flwr_records

app = ClientApp()
LIMIT_BYTES = int(os.environ.get("AULAIT_MESSAGE_BYTES", 2**31))


@app.query("aulait")
def query(message: Message, context: Context) -> Message:
    """Any message of aulait; the packet inside says of which kind."""
    where = os.environ.get("AULAIT_SOCKET") or str(context.node_config.get("socket", ""))
    require(bool(where), DeviceError,
        "found no socket of a worker, expected AULAIT_SOCKET or node-config socket=...; run "
        "'aulait join'")
    raw = flwr_records.raw(message.content, LIMIT_BYTES)
    # Health is not signed and its answer holds the last error in full: it is for this machine's own
    # questions.
    require(envelope.head_of(raw, LIMIT_BYTES) != envelope.HEALTH.head, WireError,
            "a question after the worker's health came over the network; refused")
    with local_socket.calling(Path(where), None) as connection:
        local_socket.send_raw(connection, raw)
        answer = local_socket.receive(connection, LIMIT_BYTES)
    return Message(flwr_records.records(answer), reply_to=message)
