"""The coordinator's half of split training when the fronts are on other machines: the same steps,
each an exchange of messages.

``answer`` of a method runs here for a split client, with a learner whose front is far away. A
client that falls silent in the middle of a round is carried on with an empty batch, so that the
others lose nothing, and its update is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from aulait.core import lora
from aulait.core.errors import WireError
from aulait.core.factors import FactorName
from aulait.core.log_files import plain_text
from aulait.core.types import Adapter, Tensors
from aulait.engines.deployment.protocol import tensor_codec
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.tensor_codec import FACTOR, FOLD
from aulait.training import split_model
from aulait.training.activation_codec import Activations, Gradients, Wire, decode, encode
from aulait.training.batches import IGNORE
from aulait.training.split_trainer import SplitLearner, fault
from aulait.training.trainer import Advance, Learner, LocalTraining, Trained

Exchange = Callable[[Mapping[str, tuple[dict[str, Any], Tensors]]], Mapping[str, Packet]]


class RemoteSplitLearner(SplitLearner):
    """Trains clients whose fronts are at their sites.

    Args:
        learner: base and settings; the records it sees are placeholders.
        after: blocks of the front.
        form: how states and gradients travel.
        clients: names, in the order in which ``train`` is given their works.
        round: of the run.
        exchange: client -> (more of the head, tensors) to answers of those who gave one.

    Attributes:
        lost: clients that sent what does not fit, with the reason, or fell silent, without one.
    """

    def __init__(self, learner: Learner, after: int, form: Wire, clients: Sequence[str], round: int,
                 exchange: Exchange) -> None:
        super().__init__(learner, after, form, private=False)
        self._clients, self._round, self._exchange = list(clients), round, exchange
        self._of: dict[int, str] = {}
        self.lost: dict[str, str] = {}

    def train(self, works: Sequence[LocalTraining], advance: Advance | None = None) -> list[Trained]:
        """As ``Learner.train``; works are those of the clients, in their order."""
        self._of = {id(work): name for work, name in zip(works, self._clients, strict=True)}
        return super().train(works, advance)

    def client_half(self, works: Sequence[LocalTraining]) -> RemoteFront:
        """The fronts of some works, by name."""
        return RemoteFront(self, works, [self._of[id(work)] for work in works], self._round,
                           self._exchange)


class _Stack:
    """What ``SplitLearner`` reads of the fronts after the last step."""

    def __init__(self, starts: Sequence[Adapter], layers: Sequence[str]) -> None:
        self.starts = [Adapter({name: start.factors[name] for name in layers}, start.alpha,
                               start.rank) for start in starts]
        self.factors = {name: None for name in layers}

    def take(self, k: int) -> Adapter:
        """Factors of site k."""
        return self.starts[k]


class RemoteFront:
    """K fronts at K sites, spoken to all at once.

    Attributes:
        names: of the trained factors on that side.
        stack: their factors.
    """

    def __init__(self, learner: RemoteSplitLearner, works: Sequence[LocalTraining],
                 clients: Sequence[str], round: int, exchange: Exchange) -> None:
        self._learner, self._works, self._clients, self._round, self._exchange = (
            learner, works, clients, round, exchange
        )
        layers = split_model.client_layers(works[0].start.factors, learner.cut.after)
        self.stack = _Stack([work.start for work in works], layers)
        self.names = [FactorName(layer, factor) for layer in layers
                      for factor in works[0].trainable.factors]
        self._ahead: dict[str, Activations] = {}
        self._squares: dict[str, Tensor] = {}
        self._step = 0

    def forward(self, step: int) -> list[Activations]:
        """The message of every site for a step; of one that is lost an empty batch."""
        if step == 0:
            self._hear(self._exchange({name: self._begin(k) for k, name in enumerate(self._clients)
                                       if name not in self._learner.lost}))
        return [self._ahead.get(name) or self._empty(k) for k, name in enumerate(self._clients)]

    def backward(self, returned: Sequence[Gradients]) -> Tensor:
        """Send the gradients; squared norms (K,) of the fronts. The states of the next step come
        with them."""
        sent = {name: ({"do": "go", "step": self._step, "round": self._round},
                       dict(own.hidden) | {"square": own.square.cpu()})
                for name, own in zip(self._clients, returned, strict=True)
                if name not in self._learner.lost}
        self._ahead, self._squares = {}, {}
        self._step += 1
        self._hear(self._exchange(sent))
        return torch.cat([self._squares.get(name, torch.zeros(1)) for name in self._clients]).to(
            self._learner.base.device)

    def _begin(self, k: int) -> tuple[dict[str, Any], Tensors]:
        work, start = self._works[k], self.stack.starts[k]
        head = {"do": "begin", "round": self._round, "steps": work.steps, "batch": work.batch,
                "part": work.trainable.value, "lr": work.lr,
                "seed": work.seed, "alpha": start.alpha, "rank": start.rank,
                "penalty": asdict(work.penalty) if work.penalty else None}
        tensors = {f"{FACTOR}{name}": t for name, t in lora.to_tensors(start).items()}
        front = split_model.client_layers(dict.fromkeys(work.fold or ()), self._learner.cut.after)
        return head, tensors | {f"{FOLD}{layer}": (work.fold or {})[layer] for layer in front}

    def _hear(self, answers: Mapping[str, Packet]) -> None:
        for k, name in enumerate(self._clients):
            if name in self._learner.lost:
                continue
            if name not in answers:
                self._learner.lost[name] = ""
                continue
            try:
                self._take(k, name, tensor_codec.tensors(answers[name].head.get("tensors"),
                    answers[name].body))
            # whatever a stranger's bytes do to our reading of them; the engine tells the operator
            except Exception as error:
                self._learner.lost[
                    name] = (
                        f"sent what does not fit a split round ({type(error).__name__}: "
                        f"{plain_text(str(error), 200)})"
                    )

    def _take(self, k: int, name: str, told: Tensors) -> None:
        """One site's answer, looked at before it meets the model."""
        square = told.get("square", torch.zeros(1))
        if square.shape != (1,) or not bool(torch.isfinite(square).all()):
            raise WireError("no norm")
        self._squares[name] = square.float()
        if self._step == self._works[k].steps:
            start = self.stack.starts[k]
            sent_back = {key.removeprefix(FACTOR): t for key, t in told.items()
                         if key.startswith(FACTOR)}
            found = {layer: lora.factors_of(sent_back, layer) for layer in start.factors}
            if any(new.shape != old.shape for layer in found for new,
                   old in zip(found[layer], start.factors[layer], strict=True)):
                raise WireError("factors of another shape")
            self.stack.starts[k] = Adapter(found, start.alpha, start.rank)
            return
        sent = Activations.of({key.removeprefix("sent/"): t for key, t in told.items()
                               if key.startswith("sent/")})
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
