"""The site's half of a round of split training: a client half that lives from the first message of
the round to the last.

    split_begin   its factors, trainable part, steps, seed ...
    split_step    gradients of step k
    split_states  the squared norm of its gradient, and states of step k + 1; after the last step
                  its factors

It is in memory only: a worker that dies in the middle takes no further part in that round.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import Tensor

from aulait.core import lora
from aulait.core.errors import WireError, require
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.lora import Shapes
from aulait.core.types import Adapter, Tensors
from aulait.engines.deployment.protocol.heads import Stamp
from aulait.engines.deployment.protocol.messages import (
    BASIS,
    FACTOR,
    FOLD,
    SENT,
    Message,
    SplitBegin,
    SplitStates,
    SplitStep,
)
from aulait.engines.deployment.protocol.tensor_codec import pack_tensors, unpack_tensors
from aulait.engines.deployment.site.load_session import SiteSession
from aulait.training.activation_codec import Gradients
from aulait.training.split_trainer import ClientHalf, ModelCut
from aulait.training.stacked import Penalty
from aulait.training.trainer import LocalTraining


@dataclass
class _OpenRound:
    """A split round that goes on.

    Attributes:
        half: the client half of the model.
        steps: of the round.
        held: dense updates in the base's weights, for as long as the round goes on.
        done: steps made.
        sent: shape of the states last sent.
    """

    half: ClientHalf
    steps: int
    held: ExitStack
    done: int = 0
    sent: tuple[int, ...] = ()


@dataclass
class SplitSessions:
    """The split round that is going on at a site; at most one."""

    _now: _OpenRound | None = field(default=None)

    def clear(self) -> None:
        """Forget it; the base's weights are as they were."""
        if self._now is not None:
            self._now.held.close()
        self._now = None

    def answer(self, message: Message[SplitBegin | SplitStep],
               session: SiteSession) -> Message[SplitStates]:
        """One exchange.

        Raises:
            WireError: the message does not belong to what goes on, or does not fit the model.
        """
        head, sent = message.head, unpack_tensors(message.body)
        if isinstance(head, SplitBegin):
            self.clear()
            now = self._now = _opened(head, sent, session)
            return self._forward(now, head.stamp, session, {})
        going = self._now
        if going is None or head.step != going.done:
            raise WireError("asked to go on with a split round that is not going on here; begin "
                            "the round anew")
        square = sent.pop("square", None)
        if square is None or square.numel() != 1:
            raise WireError("gradients without their norm")
        require(not sent or ("data" in sent and tuple(sent["data"].shape) == going.sent), WireError,
                "gradients of another shape than the states that were sent")
        own = going.half.backward([Gradients(sent, square.reshape(1))]).reshape(1).cpu()
        going.done += 1
        return self._forward(going, head.stamp, session, {"square": own})

    def _forward(self, going: _OpenRound, stamp: Stamp, session: SiteSession,
                 told: Tensors) -> Message[SplitStates]:
        """The states of the next step, or the factors after the last."""
        if going.done == going.steps:
            own = going.half.stack.take(0)
            told |= {f"{FACTOR}{name}": t for name, t in lora.to_tensors(own).items()}
            self.clear()
        else:
            (sent,) = going.half.forward(going.done)
            going.sent = tuple(sent.hidden["data"].shape)
            told |= {f"{SENT}{name}": t for name, t in sent.tensors().items()}
        head = SplitStates(**stamp.fields, client=session.terms.client)
        return Message(head, pack_tensors(told).raw)


def _opened(head: SplitBegin, sent: Tensors, session: SiteSession) -> _OpenRound:
    """A client half at the start of a round, within what the terms say.

    Raises:
        WireError: the work is another than that of the terms, or does not fit the model.
    """
    terms = session.terms
    seed = session.context.seeds.integer("batches", head.round, terms.client)
    require((head.steps, head.batch, head.seed) == (terms.steps, terms.batch, seed), WireError,
            "a split round that asks for other work than the terms")
    shapes = session.context.shapes
    basis = _pairs(BASIS, sent, shapes)
    inner = {layer: (len(v_PN), len(v_PN)) for layer, (v_PN, _) in basis.items()}
    factors = _pairs(FACTOR, sent, {**shapes, **inner})
    fold = {name.removeprefix(FOLD): t for name, t in sent.items() if name.startswith(FOLD)}
    for layer, dense in fold.items():
        require(layer in shapes and tuple(dense.shape) == tuple(shapes[layer]), WireError,
                f"a dense update of '{layer[:80]}' does not fit the model")
    penalty = Penalty(**head.penalty) if head.penalty is not None else None
    work = LocalTraining(Adapter(factors, head.alpha, head.rank, session.context.scaling),
                session.records.train, Trainable(head.part), terms.steps, terms.batch, head.lr,
                head.seed, penalty, fold or None, basis or None)
    held = ExitStack()
    held.enter_context(work.prepared(session.base))
    half = ClientHalf(session.learner, [work], ModelCut(terms.cut, terms.wire))
    return _OpenRound(half, terms.steps, held)


def _pairs(tag: str, sent: Tensors, shapes: Shapes) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (A, B) of the tensors whose names begin with a tag.

    Raises:
        WireError: they do not fit the layers, or one has no partner.
    """
    names = [FactorName.parse(name.removeprefix(tag)) for name in sent if name.startswith(tag)]
    found = {}
    for own in names:
        a, b = (sent.get(f"{tag}{FactorName(own.layer, factor)}")
                for factor in (Factor.A, Factor.B))
        if own.layer not in shapes or a is None or b is None or a.ndim != 2 or b.ndim != 2:
            raise WireError(f"factors of '{own.layer[:80]}' do not fit the model")
        m, n = shapes[own.layer]
        require(a.shape[1] == n and b.shape[0] == m and b.shape[1] == a.shape[0], WireError,
                f"factors of '{own.layer[:80]}' do not fit a layer of ({m}, {n})")
        found[own.layer] = a, b
    return found
