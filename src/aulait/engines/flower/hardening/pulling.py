"""Answers out of the SuperLink, one by one, whatever is in them.

Flower's own ``Grid.pull_messages`` puts all answers of a call together before it gives the first;
one that cannot be put together ends the call and takes the others along, and pieces that do not
come are waited for by the hour. Here an answer that is none is told as such, with the message that
it answers, and the next one is looked at. Only one is in memory at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)

from aulait.core.errors import WireError, require
from aulait.engines.flower.hardening.patching import Pieces

# our own SuperLink gives answers that are there as a whole; a plain one may give them before
_PIECES_S: Final = 60.0


@dataclass(frozen=True)
class Pulled:
    """An answer.

    Attributes:
        message_id: the message that is answered.
        message: the answer; None where ``fault`` says what is wrong with it.
        fault: in words.
    """

    message_id: str
    message: Message | None
    fault: str = ""


def pulled(grid: Any, message_ids: Sequence[str], limit: int) -> Iterator[Pulled]:
    """Answers that are there.

    Args:
        grid: Flower's ``HttpGrid``.
        message_ids: messages whose answers are waited for.
        limit: largest answer in bytes.

    Raises:
        httpx.HTTPError: the SuperLink is gone.
    """
    client = grid._runtime_client
    found = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
    for outer, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        name, message_id = outer.metadata.message_id, outer.metadata.reply_to_message_id
        try:
            message = _message(grid, client, name, tree, limit)
            own = message.metadata.reply_to_message_id
            require(own == message_id, WireError, "sent a message that says it answers another one")
            yield Pulled(message_id, message)
        except httpx.HTTPError:
            raise
        except ObjectPullError:
            yield Pulled(message_id, None, "sent an answer whose pieces did not all come")
        except WireError as error:
            yield Pulled(message_id, None, str(error))
        except ValueError as error:
            yield Pulled(message_id, None,
                         f"sent what is no message of Flower's, or too large a one ({error})")
        except Exception as error:  # whatever a stranger's bytes do to Flower's reading of them
            yield Pulled(message_id, None,
                         f"sent what is no message of Flower's ({type(error).__name__})")
        with contextlib.suppress(httpx.HTTPError):  # it is not kept any longer
            client.ConfirmMessageReceived(ConfirmMessageReceivedRequest(node=grid.node,
                run_id=grid.run.run_id, message_object_id=name))


def _message(grid: Any, client: Any, name: str, tree: Any, limit: int) -> Message:
    """Pull all pieces of an answer and put them together, within the limit before and after."""
    piece, pieces = make_pull_object_fn_protobuf(client.PullObject, grid.node,
        grid.run.run_id), Pieces(limit)

    def bounded(number: str) -> bytes:
        content: bytes = piece(number)
        pieces.add(number, content)
        return content

    contents = pull_objects([own.object_id for own in iterate_object_tree(tree)], bounded,
                            max_time=_PIECES_S)
    joined = pieces.joined()
    require(joined <= limit, WireError,
        f"sent an answer of {joined:,} bytes once its pieces are put together, expected at most "
        f"{limit:,}")
    message = inflate_object_from_contents(name, contents)
    require(isinstance(message, Message), WireError,
            "sent something else than a message of Flower's")
    assert isinstance(message, Message)
    message.metadata.__dict__["_message_id"] = name
    return message
