"""Flower's Control API, by which a run is submitted and sites are let in."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from aulait.core.errors import AulaitError, ConfigError
from aulait.engines.deployment.protocol.signing import NO_KEY
from aulait.engines.flower.hardening.patching import PASS_HEADER
from aulait.engines.flower.hardening.private_names import FlowerObject

_CONTROL_S: Final = 30.0


class Control:
    """Flower's Control API at a loopback address that asks for a pass.

    Args:
        address: host:port.
        secret: the pass.
    """

    def __init__(self, address: str, secret: str) -> None:
        self._client: FlowerObject = ControlHttpClient.from_server_address(address, insecure=True,
            root_certificates=None, interceptors=[])
        # that one would send the pass to a proxy that the environment names
        self._client._client.close()
        self._client._client = httpx.Client(headers={PASS_HEADER: secret}, follow_redirects=False,
            trust_env=False, timeout=_CONTROL_S)

    def enrolled(self) -> dict[bytes, tuple[int, str]]:
        """Public key (as Flower's bytes) -> (node id, status) of the sites the SuperLink lets
        in."""

        nodes = self._ask("ListNodes", ListNodesRequest()).nodes_info
        return {bytes(node.public_key): (int(node.node_id), str(node.status)) for node in nodes
                if node.status != "unregistered"}

    def register(self, roster: Mapping[str, str]) -> None:
        """Let exactly these sites in: new keys are registered, keys that left the roster are turned
        away from now on.

        Args:
            roster: name of a site -> its public key, one OpenSSH line.
        """

        wanted, present = {_key_bytes(name, line): name
                           for name, line in roster.items()}, self.enrolled()
        for key, (node, _) in present.items():
            if key not in wanted:
                self._ask("UnregisterNode", UnregisterNodeRequest(node_id=node))
        for key, name in wanted.items():
            if key not in present:
                self._ask("RegisterNode", RegisterNodeRequest(public_key=key, name=name))

    def submit(self, app: Path, config: Mapping[str, str | int | float | bool]) -> int:
        """Start a run of the app in this folder; returns Flower's number of it."""
        bundle = build_fab_from_disk(app)
        fab = fab_to_proto(Fab(sha256(bundle).hexdigest(), bundle, {}))
        return int(self._ask("StartRun",
            StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))).run_id)

    def traffic(self, run: int) -> tuple[int, int]:
        """Bytes that a run's messages took down to the sites and up from them, as Flower counts
        what is inside its requests."""

        found = self._ask("ListRuns", ListRunsRequest(run_id=run)).run_dict[run]
        return int(found.bytes_sent), int(found.bytes_recv)

    def stop_all(self) -> None:
        """Stop runs that an earlier, killed server left behind, so that no site answers their
        requests any more."""

        for number, run in self._ask("ListRuns", ListRunsRequest(limit=100)).run_dict.items():
            if run.status.status != "finished":
                self._ask("StopRun", StopRunRequest(run_id=number))

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _ask(self, method: str, request: FlowerObject) -> FlowerObject:

        try:
            return getattr(self._client, method)(request)
        except httpx.HTTPStatusError as error:
            text = " ".join(error.response.text.split())[:300]
            raise AulaitError(
                f"Flower refused {method} with status {error.response.status_code}: {text}; see "
                "superlink.log") from None
        except httpx.HTTPError as error:
            raise AulaitError(
                f"Flower's SuperLink did not answer {method} ({error}); see "
                "superlink.log") from None


def _key_bytes(name: str, line: str) -> bytes:
    """A public key as Flower sends it."""
    try:
        key = load_ssh_public_key(line.encode())
    except NO_KEY:
        key = None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigError(
            f"found no elliptic-curve key in OpenSSH format for site '{name}', expected one; enrol "
            "it again")
    return bytes(public_key_to_bytes(key))
