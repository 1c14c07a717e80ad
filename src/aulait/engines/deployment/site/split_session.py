"""The site's half of a round of split training: a front that lives from the first message of the
round to the last.

    begin   factors of the front, part, steps, seed ...  ->  states and labels of step 1
    go      gradients of step k                          ->  the front's squared norm, and states of
    step k + 1
                                                             (after the last step the front's
                                                             factors)

The session is in memory only: a worker that dies in the middle takes no further part in that round.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from aulait.core import lora
from aulait.core.errors import WireError, require
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.types import Adapter, Tensors
from aulait.engines.deployment.protocol import tensor_codec
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.tensor_codec import FACTOR, FOLD, Stamp
from aulait.engines.deployment.site.load_session import SiteSession
from aulait.models.loading import folded
from aulait.training.activation_codec import Gradients
from aulait.training.split_trainer import ClientHalf, ModelCut
from aulait.training.stacked import Penalty
from aulait.training.trainer import LocalTraining


@dataclass
class _Session:
    front: ClientHalf
    steps: int
    held: ExitStack  # dense updates in the base's weights, for as long as the round goes on
    done: int = 0
    sent: tuple[int, ...] = ()  # shape of the states last sent


@dataclass
class Sessions:
    """The split round that is going on at a site; at most one."""

    _now: _Session | None = field(default=None)

    def clear(self) -> None:
        """Forget it; the base's weights are as they were."""
        if self._now is not None:
            self._now.held.close()
        self._now = None

    def answer(self, packet: Packet, stamp: Stamp, house: SiteSession) -> Packet:
        """One exchange.

        Raises:
            WireError: the message does not belong to what goes on, or does not fit the model.
        """
        sent = tensor_codec.tensors(packet.head.get("tensors"), packet.body)
        if packet.head.get("do") == "begin":
            self.clear()
            self._now = _begin(packet, sent, house)
            return self._forward(stamp, house, {})
        session = self._now
        require(session is not None and packet.head.get("step") == session.done, WireError,
                "asked to go on with a split round that is not going on here; begin the round anew")
        assert session is not None
        square = sent.pop("square", None)
        require(square is not None and square.numel() == 1, WireError,
                "gradients without their norm")
        assert square is not None
        require(not sent or ("data" in sent and tuple(sent["data"].shape) == session.sent),
                WireError,
                "gradients of another shape than the states that were sent")
        told = {"square": session.front.backward([Gradients(sent, square.reshape(1))]).reshape(
            1).cpu()}
        session.done += 1
        return self._forward(stamp, house, told)

    def _forward(self, stamp: Stamp, house: SiteSession, told: Tensors) -> Packet:
        session = self._now
        assert session is not None
        if session.done == session.steps:
            own = session.front.stack.take(0)
            told |= {f"{FACTOR}{name}": t for name, t in lora.to_tensors(own).items()}
            self.clear()
        else:
            (sent,) = session.front.forward(session.done)
            session.sent = tuple(sent.hidden["data"].shape)
            told |= {f"sent/{name}": t for name, t in sent.tensors().items()}
        made = tensor_codec.body(told)
        return Packet({"kind": "split", **stamp.head(), "client": house.brief.client,
                       "tensors": made.listed}, made.raw)


def _begin(packet: Packet, sent: Tensors, house: SiteSession) -> _Session:
    """A front at the start of a round, within what the brief says."""
    head, brief = packet.head, house.brief
    steps, part, lr, seed = head.get("steps"), head.get("part"), head.get("lr"), head.get("seed")
    alpha, rank = head.get("alpha"), head.get("rank")
    sound = (steps == brief.steps and head.get("batch") == brief.batch and part in list(Trainable)
             and _positive(lr) and _positive(alpha)
             and isinstance(seed, int) and seed == house.context.seeds.integer("batches",
                 int(head["round"]), brief.client))
    require(sound, WireError, "a split round that asks for other work than the brief")
    factors: dict[str, tuple[Any, Any]] = {}
    for name, tensor in sent.items():
        if name.startswith(FACTOR):
            own = FactorName.parse(name.removeprefix(FACTOR))
            if own.factor is Factor.B:
                continue  # looked at with its A
            layer, other = own.layer, sent.get(f"{FACTOR}{own.partner}")
            fits = (
                layer in house.context.shapes and other is not None and tensor.ndim == 2
                and other.ndim == 2
            )
            require(fits, WireError, f"factors of '{layer[:80]}' do not fit the model")
            assert other is not None
            m, n = house.context.shapes[layer]
            require(tensor.shape[1] == n and other.shape[0] == m
                    and other.shape[1] == tensor.shape[0], WireError,
                    f"factors of '{layer[:80]}' do not fit a layer of ({m}, {n})")
            factors[layer] = (tensor, other)
    fold = (
        {name[len(FOLD):]: tensor for name, tensor in sent.items() if name.startswith(FOLD)} or None
    )
    for layer, dense in (fold or {}).items():
        require(layer in house.context.shapes
                and tuple(dense.shape) == tuple(house.context.shapes[layer]), WireError,
                f"a dense update of '{layer[:80]}' does not fit the model")
    penalty = head.get("penalty")
    work = LocalTraining(Adapter(factors, float(head["alpha"]), rank), house.records.train, Trainable(str(part)),
                brief.steps, brief.batch, float(head["lr"]),
                int(head["seed"]),
                None if penalty is None
                else Penalty(**{key: float(value) for key, value in penalty.items()}), fold)
    held = ExitStack()
    held.enter_context(folded(house.base, fold))
    return _Session(ClientHalf(house.learner, [work], ModelCut(brief.cut, brief.wire)), brief.steps, held)


def _positive(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        and value >= 0
    )
