"""Rounds of several exchanges, in which single messages of clients are read: SplitLoRA's half of
the work that is not its algorithm.

An update with labels is a message of a step, one without holds the client's factors and is its last
of the round. Every message passes the aggregator, which looks at the decoded states: finite, of a
norm within bounds (their root mean square counts as norm), one of each client that was asked. A
client that is refused or silent takes no further part in the round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import WireError, require
from aulait.core.types import ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import Server
from aulait.methods.shared import client_update
from aulait.methods.shared.traffic import TrafficCount
from aulait.privacy.aggregator import WantedUpdates
from aulait.privacy.update_checks import ExpectedShapes
from aulait.training.activation_codec import decode

MOST_STEPS = 100_000  # of a round; what a client does after that does not count
MOMENTS = ("m/", "v/", "t")


class SplitRound:
    """The exchanges of one round, and afterwards its metrics.

    Args:
        server: gets the messages; its aggregator refuses under privacy, before anybody is asked,
            and bad messages one by one.
        expected_shapes: client -> names and shapes of the factors that it sends in the end.
        method: name of the method, for the aggregator's message.
        instead: the nearest method that works under privacy.
    """

    def __init__(self, server: Server, expected_shapes: ExpectedShapes, method: str,
                 instead: str) -> None:
        self._server, self._expected_shapes = server, expected_shapes
        self._method, self._instead = method, instead
        self._refused: list[tuple[str, str]] = []
        self._bytes = {"up_bytes": 0, "down_bytes": 0}
        self._losses: dict[str, list[float]] = {}
        self._tokens: dict[str, float] = {}

    def exchange(self, requests: Sequence[TrainRequest], cohort: Cohort) -> dict[str, ClientUpdate]:
        """One exchange: valid messages by client, sorted.

        Raises:
            PrivacyError: privacy is on.
        """
        traffic = TrafficCount(requests, cohort)
        received: dict[str, ClientUpdate] = {}
        shapes: dict[str, Tensors] = {}

        def views() -> Iterator[ClientUpdate]:
            for update in traffic.counted(self._server.ask(requests)):
                received.setdefault(update.client, update)
                if update.client in self._expected_shapes:
                    expected = self._expected_shapes[update.client]
                    update, shapes[update.client] = _view(update, expected)
                yield update

        valid = [view.client for view in self._server.aggregator.collect(
            views(), self._method, self._instead, WantedUpdates(shapes), self._refused)]
        for way, count in traffic.metrics().items():
            self._bytes[way] += count
        return {name: received[name] for name in sorted(valid)}

    def returned(self, own: ClientUpdate, waiting: Iterable[str]) -> dict[str, Tensors]:
        """What the server's site returns to every client that waits; one without an answer sent
        what does not fit the model."""
        answers = lora.by_tag(own.tensors)
        for name in waiting:
            if name in answers:
                self._losses.setdefault(name, []).append(own.info[f"{name}/loss"])
                self._tokens[name] = self._tokens.get(name, 0.0) + own.info[f"{name}/tokens"]
            else:
                self._refused.append((name, "what it sent does not fit the model"))
        return {name: answers[name] for name in waiting if name in answers}

    def metrics(self, update_norm: float) -> Info:
        """The round's metrics."""
        refused = [f"{name}: {reason}" for name, reason in sorted(self._refused)]
        found: Info = {"clip_bound": None, "proxies": 0, "noise_std": 0.0, "signal_to_noise": None,
                       "refused": len(refused), "refused_clients": refused}
        if self._losses:
            means = [sum(own) / len(own) for own in self._losses.values()]
            found["train_loss"] = sum(means) / len(means)
            found["train_tokens"] = sum(self._tokens.values()) / len(self._tokens)
        return found | self._bytes | {"update_norm": update_norm}


def is_last(update: ClientUpdate) -> bool:
    """Whether a client has made its last step of the round."""
    return "labels" not in update.tensors


def exchange_number(request: TrainRequest) -> int:
    """Of an exchange, in order over all rounds."""
    return request.round * MOST_STEPS + int(request.settings["step"])


def remembered(request: TrainRequest, site: Site) -> Tensors:
    """The site's state before an exchange: of the round before only the optimiser's moments, where
    they are kept.

    Raises:
        WireError: it was asked again for an exchange before its last, or has missed one.
    """
    kept = site.memory.get("kept")
    require(kept is None or exchange_number(request) >= kept["round"], WireError,
            f"client '{site.name}' is asked for a step that is past; it can repeat its last answer "
            "only")
    found = client_update.recall(site, exchange_number(request))
    if request.settings["step"] == 1:
        keep = request.settings["moments"] == "keep"
        return {name: value for name, value in found.items() if keep and name.startswith(MOMENTS)}
    require(kept is not None, WireError,
            f"client '{site.name}' is asked to go on with a round that it has not begun; begin "
            "with step 1")
    return found


def _view(update: ClientUpdate, expected: Tensors) -> tuple[ClientUpdate, Tensors]:
    """What the aggregator looks at, and what that must look like."""
    tensors = dict(update.tensors)
    square = tensors.pop("square", None)
    view: Tensors = {} if square is None else {"square": square.double().sqrt()}
    if is_last(update):
        return (replace(update, tensors=tensors | view),
                dict(expected) | {"square": torch.zeros(1)})
    for name in ("labels", "lengths"):  # the server's site compares them with the model
        tensors.pop(name, None)
    try:
        states = decode(tensors)
        view["states"] = states / math.sqrt(max(1, states.numel()))
    except (WireError, RuntimeError, AttributeError, TypeError):
        return replace(update, tensors={}), {"states": torch.zeros(1)}
    return replace(update, tensors=view), {
        name: torch.zeros(1) if name == "square" else states for name in view}
