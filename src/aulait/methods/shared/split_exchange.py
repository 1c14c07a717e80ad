"""Rounds of several exchanges, in which single messages of clients are read: SplitLoRA's half of
the work that is not its algorithm.

A update with labels is a message of a step, one without holds the client's factors and is its last
of the round. Every message passes the aggregator, which looks at the decoded states: finite, of a
sane size (their root mean square counts as norm), one of each client that was asked. A client that
is refused or silent takes no further part in the round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import WireError, require
from aulait.core.types import ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import Ask
from aulait.methods.shared import client_update
from aulait.methods.shared.traffic import Meter
from aulait.privacy.aggregator import PrivateAggregator
from aulait.privacy.update_checks import ExpectedShapes
from aulait.training.activation_codec import decode

MOST_STEPS = 100_000  # of a round; what a client does after that does not count
MOMENTS = ("m/", "v/", "t")


class Exchanges:
    """The exchanges of one round, and afterwards what can be told about them.

    Args:
        aggregator: refuses under privacy, before anybody is asked, and bad messages one by one.
        forms: client -> names and shapes of the factors that it sends in the end.
        method: name of the method, for the aggregator's message.
        instead: the nearest method that works under privacy.
    """

    def __init__(self, aggregator: PrivateAggregator, expected_shapes: ExpectedShapes, method: str,
                 instead: str) -> None:
        self._door, self._forms, self._method, self._instead = (
            aggregator, expected_shapes, method, instead
        )
        self._refused: list[tuple[str, str]] = []
        self._bytes = {"up_bytes": 0, "down_bytes": 0}
        self._losses: dict[str, list[float]] = {}
        self._tokens: dict[str, float] = {}

    def collect(self, requests: Sequence[TrainRequest], cohort: Cohort, ask: Ask) -> dict[str,
            ClientUpdate]:
        """One exchange: sound messages by client, sorted.

        Raises:
            PrivacyError: privacy is on.
        """
        meter, raw, likes = Meter(requests, cohort), dict[str, ClientUpdate](), dict[str, Tensors]()

        def seen() -> Iterator[ClientUpdate]:
            for update in meter.up(ask(requests)):
                raw.setdefault(update.client, update)
                if update.client in self._forms:
                    update, likes[update.client] = _view(update, self._forms[update.client])
                yield update

        sound = [view.client for view in self._door.collect(seen(), self._method, self._instead,
            likes, self._refused)]
        for way, count in meter.told().items():
            self._bytes[way] += count
        return {name: raw[name] for name in sorted(sound)}

    def returned(self, own: ClientUpdate, waiting: Iterable[str]) -> dict[str, Tensors]:
        """What the server's site returns to every client that waits; one without an answer sent
        what does not fit the model."""
        back = lora.by_tag(own.tensors)
        for name in waiting:
            if name in back:
                self._losses.setdefault(name, []).append(own.info[f"{name}/loss"])
                self._tokens[name] = self._tokens.get(name, 0.0) + own.info[f"{name}/tokens"]
            else:
                self._refused.append((name, "what it sent does not fit the model"))
        return {name: back[name] for name in waiting if name in back}

    def info(self, **more: Any) -> Info:
        """What can be told about the round."""
        told: Info = {"clip_bound": None, "proxies": 0, "noise_std": 0.0, "signal_to_noise": None,
                      "refused": len(self._refused),
                      "refused_clients": [f"{name}: {reason}" for name,
                                          reason in sorted(self._refused)]}
        if self._losses:
            told["train_loss"] = (
                sum(sum(own) / len(own) for own in self._losses.values()) / len(self._losses)
            )
            told["train_tokens"] = sum(self._tokens.values()) / len(self._tokens)
        return told | self._bytes | more


def last(update: ClientUpdate) -> bool:
    """Whether a client has made its last step of the round."""
    return "labels" not in update.tensors


def clock(request: TrainRequest) -> int:
    """Exchanges in order, over rounds."""
    return request.round * MOST_STEPS + int(request.settings["step"])


def before(request: TrainRequest, site: Site) -> Tensors:
    """What the site stood at before an exchange: of the round before only the optimiser's moments,
    where they are kept.

    Raises:
        WireError: it was asked again for an exchange before its last, or has missed one.
    """
    kept = site.memory.get("kept")
    require(kept is None or clock(request) >= kept["round"], WireError,
            f"client '{site.name}' is asked for a step that is past; it can repeat its last answer "
            "only")
    found = client_update.recall(site, clock(request))
    if request.settings["step"] == 1:
        return {n: t for n, t in found.items() if n.startswith(MOMENTS)
                and request.settings["moments"] == "keep"}
    require(kept is not None, WireError,
        f"client '{site.name}' is asked to go on with a round that it has not begun; begin with "
        "step 1")
    return found


def _view(update: ClientUpdate, form: Tensors) -> tuple[ClientUpdate, Tensors]:
    """What the aggregator looks at, and what that must look like."""
    share = dict(update.tensors)
    square = share.pop("square", None)
    view: Tensors = {} if square is None else {"square": square.double().sqrt()}
    if last(update):
        return replace(update, tensors=share | view), dict(form) | {"square": torch.zeros(1)}
    labels, lengths = share.pop("labels"), share.pop("lengths", None)
    del labels, lengths  # the server's site compares them with the model
    try:
        states = decode(share)
        view["states"] = states / math.sqrt(max(1, states.numel()))
    except (WireError, RuntimeError, AttributeError, TypeError):
        return replace(update, tensors={}), {"states": torch.zeros(1)}
    return replace(update, tensors=view), {name: torch.zeros(1) if name == "square" else states
        for name in view}
