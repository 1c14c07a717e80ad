"""Every name that we use of Flower's and that Flower does not publish, once: what it is for, and
what happens when it is gone.

Flower publishes ``flwr.app``, ``flwr.clientapp`` and ``flwr.serverapp``. The names below were read
in 1.41 and are the same in 1.42; the requirement ``flwr>=1.41,<1.43`` keeps others away. A test
holds this table against the installed Flower and against the sources: no other private name is
used. ``attribute`` names, which are looked for on objects, cannot be checked before; each is used
in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

FlowerProcess = Literal["superlink", "supernode", "clientapp", "superexec", "serverapp",
                        "coordinator"]
FlowerObject: TypeAlias = Any  # an object of Flower's own, whose type Flower does not publish
STOPS: Final = "the process ends at its start with code 78 and one line; aulait ends with that line"
IMPORT: Final = "the command ends with an import error before anything is started"


@dataclass(frozen=True)
class PrivateName:
    """One name.

    Attributes:
        module: of Flower's.
        name: in it.
        roles: processes that need it.
        use: what we use it for, or what we stop with it.
        gone: what happens when Flower has it no longer.
    """

    module: str
    name: str
    roles: tuple[FlowerProcess, ...]
    use: str
    gone: str = STOPS


_LINK: Final[tuple[FlowerProcess, ...]] = ("superlink",)
_NODE: Final[tuple[FlowerProcess, ...]] = ("supernode",)
_APP: Final[tuple[FlowerProcess, ...]] = ("clientapp",)
_RUNNER: Final[tuple[FlowerProcess, ...]] = ("serverapp",)
_COMMAND: Final[tuple[FlowerProcess, ...]] = ("coordinator",)

PRIVATE_NAMES: Final = (
    # the SuperLink
    PrivateName("flwr.superlink.cli.flower_superlink", "flower_superlink", _LINK,
                "the executable's own function, run once everything is replaced"),
    PrivateName("flwr.superlink.cli.flower_superlink", "_run_superlink_http_api", _LINK,
                "its one listener, replaced by two: the Fleet API outside, the rest on loopback"),
    PrivateName("flwr.superlink.cli.flower_superlink", "SuperLinkLifespan", _LINK,
                "starts the task runner; ours starts it towards the inner address"),
    PrivateName("flwr.superlink.main", "create_app", _LINK, "the ASGI app behind both listeners"),
    PrivateName("flwr.superlink.servicer.fleet.fleet_handlers", "push_messages", _LINK,
                "takes answers; ours turns away one in the name of another site"),
    PrivateName("flwr.superlink.servicer.fleet.fleet_handlers", "pull_messages", _LINK,
                "hands messages to sites; ours leaves out those whose time is over"),
    PrivateName("flwr.superlink.servicer.fleet.fleet_handlers", "activate_node", _LINK,
                "lets a node in; ours also one that comes back before its heartbeat ran out"),
    PrivateName("flwr.superlink.servicer.runtime.runtime_handlers", "pull_messages", _LINK,
                "hands answers to the server app; ours only those that are whole"),
    PrivateName("flwr.supercore.state.schema.objectstore_models", "StoredObject", _LINK,
                "the table by which a missing piece of an answer is found"),
    PrivateName("flwr.supercore.state.schema.objectstore_models", "ObjectChild", _LINK,
                "the table of which piece belongs to which"),
    PrivateName("flwr.supercore.state.schema.linkstate_models", "MessageRes", _LINK,
                "the table of answers"),
    PrivateName("flwr.superlink.routers.fleet.node_auth", "SYSTEM_TIME_TOLERANCE", _LINK,
                "how early a site's clock may be: 5 minutes"),
    PrivateName("flwr.superlink.routers.fleet.node_auth", "TIMESTAMP_TOLERANCE", _LINK,
                "how late it may be, beside the one above: nothing more"),
    # the SuperNode
    PrivateName("flwr.supernode.cli.flower_supernode", "flower_supernode", _NODE,
                "the executable's own function"),
    PrivateName("flwr.supernode.main", "create_app", _NODE,
                "its listener for the site's own processes, put behind a pass"),
    PrivateName("flwr.supernode.start_client_internal", "get_fused_config_from_fab", _NODE,
                "reads the run's configuration out of the shipped bundle; ours reads nothing"),
    PrivateName("flwr.supernode.start_client_internal", "_pull_and_store_message", _NODE,
                "fetches a message and the bundle; ours never the bundle, and measures it"),
    PrivateName("flwr.supernode.start_client_internal", "_push_messages", _NODE,
                "sends answers; ours until the answer to this message has gone"),
    PrivateName("flwr.supernode.start_client_internal", "_insert_message", _NODE,
                "lays an error by for the server: its message was too large"),
    PrivateName("flwr.supernode.start_client_internal", "_init_connection", _NODE,
                "connects; without TLS ours signs too"),
    PrivateName("flwr.supercore.retry.http_retry", "MAX_RETRY_DELAY", _NODE,
                "longest pause before the server is tried again: 5 s instead of 20 s"),
    PrivateName("flwr.supercore.constant", "TaskType", _NODE,
                "tells a run of a server app from agent tasks, which are refused"),
    PrivateName("flwr.supercore.fab", "Fab", ("supernode", "coordinator"),
                "an empty bundle in the place of the shipped one; the bundle that is submitted"),
    PrivateName("flwr.supercore.run", "RunNotRunningException", _NODE,
                "what Flower expects where a run is turned down"),
    # the process that answers one message
    PrivateName("flwr.supernode.cli.flwr_clientapp", "flwr_clientapp", _APP,
                "the executable's own function"),
    PrivateName("flwr.supernode.cli.flwr_clientapp", "run_clientapp", _APP,
                "that it runs the functions below"),
    PrivateName("flwr.supernode.runtime.run_clientapp", "install_from_fab", _APP,
                "installs shipped code; ours does nothing"),
    PrivateName("flwr.supernode.runtime.run_clientapp", "get_project_dir", _APP,
                "where shipped code lies; ours is nowhere"),
    PrivateName("flwr.supernode.runtime.run_clientapp", "get_load_client_app_fn", _APP,
                "loads the shipped app; ours the site's own"),
    PrivateName("flwr.supernode.runtime.run_clientapp", "install_app_dependencies", _APP,
                "installs packages that the bundle names; ours raises"),
    # clients, task runner, server app
    PrivateName("flwr.supercore.protobuf.client", "ProtobufClient",
                ("supernode", "clientapp", "superexec", "serverapp"),
                "every HTTP client: ours follow no redirect, read a bounded answer, show the pass"),
    PrivateName("flwr.supercore.cli.flower_superexec", "flower_superexec", ("superexec",),
                "the executable's own function"),
    PrivateName("flwr.superlink.cli.flwr_serverapp", "flwr_serverapp", _RUNNER,
                "the executable's own function"),
    # answers, pulled one by one (pulling.py)
    PrivateName("flwr.proto.message_pb2", "ConfirmMessageReceivedRequest", _RUNNER,
                "tells the SuperLink that an answer need not be kept", IMPORT),
    PrivateName("flwr.proto.runtime_pb2", "PullAppMessagesRequest", _RUNNER,
                "asks which answers are there", IMPORT),
    PrivateName("flwr.supercore.inflatable.inflatable_object", "iterate_object_tree", _RUNNER,
                "the pieces of an answer", IMPORT),
    PrivateName("flwr.supercore.inflatable.inflatable_protobuf_utils",
                "make_pull_object_fn_protobuf", _RUNNER, "fetches a piece", IMPORT),
    PrivateName("flwr.supercore.inflatable.inflatable_utils", "ObjectPullError", _RUNNER,
                "a piece did not come", IMPORT),
    PrivateName("flwr.supercore.inflatable.inflatable_utils", "inflate_object_from_contents",
                _RUNNER, "puts the pieces together", IMPORT),
    PrivateName("flwr.supercore.inflatable.inflatable_utils", "pull_objects", _RUNNER,
                "fetches all pieces, each within the limit", IMPORT),
    # the Control API (control.py)
    PrivateName("flwr.supercore.control", "ControlHttpClient", _COMMAND,
                "speaks to the SuperLink; its HTTP client is replaced by one with a pass", IMPORT),
    PrivateName("flwr.proto.control_pb2", "ListNodesRequest", _COMMAND, "which sites are let in",
                IMPORT),
    PrivateName("flwr.proto.control_pb2", "RegisterNodeRequest", _COMMAND, "lets a site in",
                IMPORT),
    PrivateName("flwr.proto.control_pb2", "UnregisterNodeRequest", _COMMAND,
                "turns a site away", IMPORT),
    PrivateName("flwr.proto.control_pb2", "StartRunRequest", _COMMAND, "submits a run", IMPORT),
    PrivateName("flwr.proto.control_pb2", "ListRunsRequest", _COMMAND,
                "runs that an earlier server left, and their bytes", IMPORT),
    PrivateName("flwr.proto.control_pb2", "StopRunRequest", _COMMAND, "stops such a run", IMPORT),
    PrivateName("flwr.cli.build", "build_fab_from_disk", _COMMAND, "packs the app of two lines",
                IMPORT),
    PrivateName("flwr.common.serde", "fab_to_proto", _COMMAND, "the bundle as it is sent", IMPORT),
    PrivateName("flwr.common.serde", "user_config_to_proto", _COMMAND,
                "the run's configuration as it is sent", IMPORT),
    PrivateName("flwr.supercore.primitives.asymmetric", "public_key_to_bytes", _COMMAND,
                "a site's key as Flower names it", IMPORT),
)

ATTRIBUTES: Final = {
    "HttpGrid._runtime_client": "speaks to the SuperLink for the server app (pulling.py)",
    "ProtobufClient._client": "the HTTP client in it, adjusted (patching.py, control.py)",
    "Metadata._message_id": "the name of an answer that was put together by hand (pulling.py)",
}


def names_of(role: FlowerProcess) -> list[PrivateName]:
    """The names that a process needs, in the order of the table."""
    return [own for own in PRIVATE_NAMES if role in own.roles]
