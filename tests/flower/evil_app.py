"""A client app of a site that means harm, or is broken: what it does stands in the file that TRIAL_FAULT names.

"twice": every message is handed to the worker twice; "garbage": requests are answered with random bytes; "torn": with half of the
true answer; anything else: honest.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from aulait.engines.deployment.protocol import envelope
from aulait.engines.deployment.site import local_socket
from aulait.engines.flower import flwr_records

app = ClientApp()


@app.query("aulait")
def query(message: Message, context: Context) -> Message:
    fault = Path(os.environ["TRIAL_FAULT"]).read_text()
    raw = flwr_records.raw(message.content, 2**31)
    answer = b""
    for _ in range(2 if fault == "twice" else 1):
        with local_socket.calling(Path(os.environ["AULAIT_SOCKET"]), None) as connection:
            local_socket.send_raw(connection, raw)
            answer = envelope.packet_bytes(local_socket.receive(connection, 2**31))
    if json.loads(envelope.head_of(raw, 2**31))["kind"] == "train" and fault in ("garbage", "torn"):
        answer = os.urandom(len(answer)) if fault == "garbage" else answer[: len(answer) // 2]
        return Message(RecordDict({flwr_records.NAME: ArrayRecord({flwr_records.FRONT: flwr_records.array(answer)})}), reply_to=message)
    return Message(flwr_records.records(envelope.packet_from(answer, 2**31)), reply_to=message)
