"""Packets through Flower: a packet to a site, its answer when it is there; who a site is, the key
of its node says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Array, Message
from flwr.serverapp import Grid

from aulait.core.errors import WireError
from aulait.engines.deployment.coordinator.outbox import Delivery
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.flower import flwr_records
from aulait.engines.flower.hardening.patching import DELIVER
from aulait.engines.flower.hardening.pulling import pulled

TYPE = "query.aulait"
# an answer that came in time is kept for so long while the coordinator is at its own work
KEPT_S = 3600.0
_ONLINE = "online"


class FlowerTransport:
    """``Transport`` over Flower's Grid.

    Args:
        grid: of the server app.
        roster: name -> public key of every enrolled site.
    """

    def __init__(self, grid: Grid, roster: Mapping[str, str]) -> None:
        self._grid = grid
        self._names = {keys.as_pem(line).strip(): name for name, line in roster.items()}

    def connected(self) -> Mapping[str, int]:
        """Connected sites by name; a node whose key is not in the roster is nobody."""
        found: dict[str, int] = {}
        for node in self._grid.get_nodes():
            if node.status != _ONLINE:
                continue
            name = self._names.get(bytes(node.public_key).strip())
            if name is not None:
                found[name] = node.node_id
        return found

    def send(self, address: int, packet: Packet, body: Array | None,
             wait_s: float) -> str | None:
        """Hand one message to the SuperLink; the body's array is stored there once.

        Flower forgets an answer with the message that it answers, by the server's clock, and takes
        none from a site whose clock says that the message is over. So messages live for longer than
        they are delivered: until when, our SuperLink reads in the group's name
        (``hardening/superlink.py``).
        """
        until = f"{DELIVER}{time.time() + wait_s:.3f}"
        message = Message(flwr_records.records(packet, body), dst_node_id=address,
                          message_type=TYPE, ttl=wait_s + KEPT_S, group_id=until)
        (message_id,) = self._grid.push_messages([message]) or (None,)
        return message_id or None  # Flower has an empty name for a node that left

    def shared_body(self, raw: bytes) -> Array:
        """An array that messages share."""
        return flwr_records.array(raw)

    def collect(self, message_ids: Sequence[str], limit: int) -> Iterator[Delivery]:
        """What is there for these messages; nothing that a site can send stops it."""
        for found in pulled(self._grid, message_ids, limit):
            if (message := found.message) is None:
                yield Delivery(found.message_id, None, found.fault)
            elif message.has_error():
                reason = message.error.reason or "no reason given"
                yield Delivery(found.message_id, None,
                               f"{reason} (Flower's code {message.error.code})")
            else:
                try:
                    yield Delivery(found.message_id, flwr_records.packet(message.content, limit))
                except WireError as error:
                    yield Delivery(found.message_id, None, str(error))
