"""The coordinator's half of split training when the client halves are on other machines: the same
steps, each an exchange of messages.

``answer`` of a method runs here for a split client, with a learner whose client half is far away. A
client that falls silent in the middle of a round is carried on with an empty batch, so that the
others lose nothing, and its update is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aulait.core import lora
from aulait.core.errors import WireError
from aulait.core.factors import FactorName
from aulait.core.log_files import plain_text
from aulait.core.types import Adapter, Tensors
from aulait.engines.deployment.protocol.heads import RunFields
from aulait.engines.deployment.protocol.messages import (
    BASIS,
    FACTOR,
    FOLD,
    SENT,
    SplitBegin,
    SplitStep,
)
from aulait.training import split_model
from aulait.training.activation_codec import Activations, Gradients, Wire, decode, encode
from aulait.training.batches import IGNORE
from aulait.training.split_trainer import SplitLearner, fault
from aulait.training.trainer import Advance, Learner, LocalTraining, Trained

SplitMessage = tuple[SplitBegin | SplitStep, Tensors]


@dataclass(frozen=True)
class RemoteClients:
    """Split clients of a round, and how they are spoken to.

    Attributes:
        names: in the order in which ``train`` is given their works.
        round: of the run.
        address: what a message to a client bears: stamp, client, terms.
        exchange: messages by client -> tensors of those who answered; a site whose answer cannot be
            read has the reason instead.
    """

    names: Sequence[str]
    round: int
    address: Callable[[str], RunFields]
    exchange: Callable[[Mapping[str, SplitMessage]], Mapping[str, Tensors | Exception]]


class RemoteSplitLearner(SplitLearner):
    """Trains clients whose half of the model is at their sites.

    Args:
        learner: base and settings; the records it sees are placeholders.
        after: blocks of the client half.
        wire: how states and gradients travel.
        clients: whom it trains.

    Attributes:
        lost: clients that sent what does not fit, with the reason, or fell silent, without one.
    """

    def __init__(self, learner: Learner, after: int, wire: Wire, clients: RemoteClients) -> None:
        super().__init__(learner, after, wire, private=False)
        self._clients, self._name_of = clients, dict[int, str]()
        self.lost: dict[str, str] = {}

    def train(self, works: Sequence[LocalTraining],
              advance: Advance | None = None) -> list[Trained]:
        """As ``Learner.train``; works are those of the clients, in their order."""
        self._name_of = {id(work): name
                         for work, name in zip(works, self._clients.names, strict=True)}
        return super().train(works, advance)

    def client_half(self, works: Sequence[LocalTraining]) -> RemoteFront:
        """The client halves of some works."""
        names = [self._name_of[id(work)] for work in works]
        return RemoteFront(self, works, names, self._clients)


class _RemoteFactors:
    """What ``SplitLearner`` reads of the client halves after the last step."""

    def __init__(self, starts: Sequence[Adapter], layers: Sequence[str]) -> None:
        self.starts = [start.holding({name: start.factors[name] for name in layers})
                       for start in starts]
        self.factors = {name: None for name in layers}

    def take(self, k: int) -> Adapter:
        """Factors of site k."""
        return self.starts[k]


class RemoteFront:
    """K client halves at K sites, spoken to all at once.

    Args:
        learner: that trains them.
        works: one a site.
        names: of the clients, in the order of the works.
        clients: how they are spoken to.

    Attributes:
        names: of the trained factors on that side.
        stack: their factors.
    """

    def __init__(self, learner: RemoteSplitLearner, works: Sequence[LocalTraining],
                 names: Sequence[str], clients: RemoteClients) -> None:
        self._learner, self._works, self._clients = learner, works, clients
        self._client_names = names
        layers = split_model.client_layers(works[0].start.factors, learner.cut.after)
        self.stack = _RemoteFactors([work.start for work in works], layers)
        self.names = [FactorName(layer, factor) for layer in layers
                      for factor in works[0].trainable.factors]
        self._ahead: dict[str, Activations] = {}
        self._squares: dict[str, Tensor] = {}
        self._step = 0

    def forward(self, step: int) -> list[Activations]:
        """The message of every site for a step; of one that is lost an empty batch."""
        if step == 0:
            self._hear(self._clients.exchange(
                {name: self._begin(k, name) for k, name in enumerate(self._client_names)
                 if name not in self._learner.lost}))
        return [self._ahead.get(name) or self._empty(k)
                for k, name in enumerate(self._client_names)]

    def backward(self, returned: Sequence[Gradients]) -> Tensor:
        """Send the gradients; squared norms (K,) of the client halves. The states of the next step
        come with them."""
        sent: dict[str, SplitMessage] = {}
        for name, own in zip(self._client_names, returned, strict=True):
            if name not in self._learner.lost:
                head = SplitStep(**self._clients.address(name), round=self._clients.round,
                                 step=self._step)
                sent[name] = head, dict(own.hidden) | {"square": own.square.cpu()}
        self._ahead, self._squares = {}, {}
        self._step += 1
        self._hear(self._clients.exchange(sent))
        return torch.cat([self._squares.get(name, torch.zeros(1))
                          for name in self._client_names]).to(self._learner.base.device)

    def _begin(self, k: int, name: str) -> SplitMessage:
        """The message that begins the round of site k."""
        work, start = self._works[k], self.stack.starts[k]
        penalty = work.penalty
        head = SplitBegin(
            **self._clients.address(name), round=self._clients.round, steps=work.steps,
            batch=work.batch, part=work.trainable.value, lr=work.lr, seed=work.seed,
            alpha=start.alpha, rank=start.rank,
            penalty=None if penalty is None else {
                "proximal": penalty.proximal, "tail": penalty.tail, "keep": penalty.keep})
        tensors = {f"{FACTOR}{name}": t for name, t in lora.to_tensors(start).items()}
        fold = work.fold or {}
        below = split_model.client_layers(dict.fromkeys(fold), self._learner.cut.after)
        vectors = Adapter({layer: work.basis[layer] for layer in start.factors}, 1.0) \
            if work.basis else None
        fixed = {} if vectors is None else lora.to_tensors(vectors)
        return head, (tensors | {f"{FOLD}{layer}": fold[layer] for layer in below}
                      | {f"{BASIS}{name}": t for name, t in fixed.items()})

    def _hear(self, answers: Mapping[str, Tensors | Exception]) -> None:
        for k, name in enumerate(self._client_names):
            if name in self._learner.lost:
                continue
            if name not in answers:
                self._learner.lost[name] = ""
                continue
            try:
                if isinstance(told := answers[name], Exception):
                    raise told
                self._take(k, name, told)
            # Whatever a stranger's bytes do to our reading of them; the engine tells the operator.
            except Exception as error:
                self._learner.lost[name] = ("sent what does not fit a split round "
                                            f"({type(error).__name__}: "
                                            f"{plain_text(str(error), 200)})")

    def _take(self, k: int, name: str, told: Tensors) -> None:
        """One site's answer, looked at before it meets the model.

        Raises:
            WireError: it does not fit.
        """
        square = told.get("square", torch.zeros(1))
        if square.shape != (1,) or not bool(torch.isfinite(square).all()):
            raise WireError("no norm")
        self._squares[name] = square.float()
        if self._step == self._works[k].steps:
            self.stack.starts[k] = _trained(self.stack.starts[k], told)
            return
        sent = Activations.of({key.removeprefix(SENT): t for key, t in told.items()
                               if key.startswith(SENT)})
        wrong = fault(self._learner.base, sent)
        if wrong is not None or not bool(torch.isfinite(decode(sent.hidden)).all()):
            raise WireError(wrong or "states that are not finite")
        self._ahead[name] = sent

    def _empty(self, k: int) -> Activations:
        """A batch without a token that counts."""
        rows, width = self._works[k].batch, split_model.hidden_width(self._learner.base)
        seq2seq = self._learner.base.config.kind == "seq2seq"
        lengths = torch.ones(rows, dtype=torch.int32) if seq2seq else None
        nothing = torch.full((rows, 1), IGNORE, dtype=torch.int32)
        return Activations(encode(torch.zeros(rows, 1, width), self._learner.cut.wire), nothing,
                           lengths)


def _trained(start: Adapter, told: Tensors) -> Adapter:
    """The factors of a client half after the last step.

    Raises:
        WireError: they have another shape than those it began with.
    """
    sent = {key.removeprefix(FACTOR): t for key, t in told.items() if key.startswith(FACTOR)}
    found = {layer: lora.factors_of(sent, layer) for layer in start.factors}
    if any(new.shape != old.shape for layer in found
           for new, old in zip(found[layer], start.factors[layer], strict=True)):
        raise WireError("factors of another shape")
    return start.holding(found)
