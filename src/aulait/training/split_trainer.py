"""Two halves of a cut model that train together by messages: one at the clients, one at the server.

They share no graph of gradients. In a step a client sends hidden states and labels; the server
answers with the gradient of the client's loss at these states; each half then has the gradient of
its own factors. Clipping is over the whole gradient of a client, of which each half knows a part,
so each sends the other its squared norm, one number, before either makes its step: then split
equals monolithic training to rounding, also where the bound binds.

What a client with B rows exchanges with the server, T the longest row of *its* batch (padding for
other sites is not sent):

    up, a step      hidden (B, T, D) on the wire · labels 4 B T · norm 4
                    (sequence to sequence: lengths 4 B · labels 4 B T')
    down, a step    gradient (B, T, D) on the wire, where the client's half trains anything · norm 4

Labels are -100 where there is no loss, so the server does not see a prompt's tokens; their states
it sees. None of this is private: states of single records leave the site, and their texts can be
guessed from them.

Source: Lin et al., "SplitLoRA", 2024, arXiv 2407.00952.
Shape letters: K sites · B sequences of a site · T tokens · D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aulait.core.errors import PrivacyError, require
from aulait.core.factors import FactorName
from aulait.core.lora import placed
from aulait.core.types import Adapter, Record, Tensors, nbytes
from aulait.models.loading import Base
from aulait.training import split_model
from aulait.training.activation_codec import (
    Activations,
    Gradients,
    Wire,
    coded_bytes,
    decode,
    encode,
)
from aulait.training.batches import IGNORE, collate
from aulait.training.stacked import Penalty, Stack
from aulait.training.trainer import (
    Learner,
    LocalTraining,
    TrainConfig,
    Trained,
    draws,
    optimizer_of,
    shorten,
    squares,
)

NUMBER_BYTES = 4  # a squared norm, a label, a length
REASON = "activations of single records leave the site; use 'local' or 'proxy'"


@dataclass(frozen=True)
class ModelCut:
    """Where a model is cut, and how what crosses the cut travels.

    Attributes:
        after: blocks before the cut.
        wire: how states and gradients travel.
    """

    after: int
    wire: Wire


class ModelHalf:
    """Factors of K sites on one side of the cut, with their optimiser.

    Attributes:
        stack: the factors.
        names: of the stack's leaves.
    """

    def __init__(self, base: Base, config: TrainConfig, starts: Sequence[Adapter],
                 layers: Sequence[str], training: LocalTraining) -> None:
        own = [start.holding({name: start.factors[name] for name in layers}) for start in starts]
        self.base = base
        self.stack = Stack.of(own, training.trainable, base.device)
        self.names = [FactorName(layer, factor) for layer in layers
                      for factor in training.trainable.factors]
        self._starts, self._config, self._penalty = own, config, training.penalty
        self._optimizer = (
            optimizer_of(self.stack.leaves, config, training.lr) if self.names else None)

    def penalty(self) -> list[Tensor]:
        """What the method adds to the loss on this side; nothing, or one number."""
        terms: Penalty | None = self._penalty
        if terms is None or not (terms.proximal or terms.tail) or not self.names:
            return []
        return [self.stack.penalty(terms)]

    def squares(self) -> Tensor:
        """Squared norms of the sites' gradients on this side (K,)."""
        return squares(self.stack.leaves, len(self._starts)).to(self.base.device)

    def update(self, other_K: Tensor) -> Tensor:
        """Clip by the norm over both sides, the other's squares given, and make a step; the norms
        (K,) before clipping."""
        norm_K = (self.squares() + other_K).sqrt()
        if self._optimizer is not None:
            shorten(self.stack.leaves, norm_K, self._config.max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return norm_K

    def moments(self, k: int) -> Tensors:
        """The optimiser's memory of site k at its own ranks: every leaf's moments under the tags m
        and v, "t" the steps made; {} of SGD."""
        found: Tensors = {}
        for name, leaf in zip(self.names, self.stack.leaves, strict=True):
            state = self._optimizer.state[leaf] if self._optimizer is not None else {}
            if "exp_avg" in state:
                rows, columns = name.factor.of(self._starts[k].factors[name.layer]).shape
                found[f"m/{name}"] = state["exp_avg"][k, :rows, :columns].cpu().clone()
                found[f"v/{name}"] = state["exp_avg_sq"][k, :rows, :columns].cpu().clone()
                found["t"] = state["step"].detach().cpu().reshape(1).clone()
        return found

    def resume(self, moments: Sequence[Tensors]) -> None:
        """Go on with the ``moments`` of every site, all after the same number of steps; without
        them the optimiser starts afresh."""
        if self._optimizer is None or "t" not in moments[0]:
            return
        for name, leaf in zip(self.names, self.stack.leaves, strict=True):
            template = {f"{kind}/{name}": leaf[0] for kind in "mv"}
            padded = [placed({n: own[n] for n in template}, template) for own in moments]
            first, second = (
                torch.stack([own[n] for own in padded]).to(leaf.device) for n in template)
            self._optimizer.state[leaf] = {"step": moments[0]["t"].reshape(()).clone(),
                                           "exp_avg": first, "exp_avg_sq": second}


class ClientHalf(ModelHalf):
    """The clients' half: embedding, first blocks, records and their draws, the factors of those
    blocks.

    Args:
        learner: base, settings and encoded records.
        training: one per site, of equal steps, batch, factors, learning rate and penalty.
        cut: where the model is cut, and how states travel.
    """

    def __init__(self, learner: Learner, training: Sequence[LocalTraining], cut: ModelCut) -> None:
        layers = split_model.client_layers(training[0].start.factors, cut.after)
        super().__init__(learner.base, learner.config, [own.start for own in training], layers,
                         training[0])
        self._learner, self._training, self._cut = learner, training, cut
        self._plans = [draws(own, learner.lengths(own.records)) for own in training]
        self._hidden = torch.empty(0)

    def forward(self, step: int) -> list[Activations]:
        """Read the batches of a step, counted from 0; a message of every site."""
        batches = [[own.records[i] for i in plan[step]]
                   for own, plan in zip(self._training, self._plans, strict=True)]
        rows = collate(self.base, self._learner.encode,
                       [record for batch in batches for record in batch])
        with self.stack.applied_to(self.base):
            ids_BT = rows.ids if rows.source is None else rows.source
            self._hidden = split_model.client_forward(self.base, self._cut.after, ids_BT, rows.mask)
        sent, batch = [], len(batches[0])
        for k, own in enumerate(batches):
            at, (states, targets) = slice(k * batch, (k + 1) * batch), widths(self._learner, own)
            lengths = None if rows.mask is None else rows.mask[at].sum(1).int()
            sent.append(Activations(encode(self._hidden[at, :states], self._cut.wire),
                                    rows.labels[at, :targets].int(), lengths))
        return sent

    def backward(self, returned: Sequence[Gradients]) -> Tensor:
        """Gradients of this half's factors, and its step; the squared norms (K,) that the server
        needs for its own."""
        if self.names:
            parts = [part for own in returned for part in decode(own.hidden)]
            gradient = torch.zeros_like(self._hidden)
            for row, part in enumerate(parts):
                gradient[row, : len(part)] = part.to(gradient.dtype)
            added = self.penalty()
            torch.autograd.backward([self._hidden, *added],
                                    [gradient, *map(torch.ones_like, added)])
        square_K = self.squares()
        self.update(torch.cat([own.square for own in returned]).to(square_K.device))
        return square_K


class HalfFactors(Protocol):
    """The factors of one half, as they are read after the last step."""

    @property
    def factors(self) -> Mapping[str, object]:
        """By layer."""

    def take(self, k: int) -> Adapter:
        """Those of site k."""


class ClientSide(Protocol):
    """The clients' half wherever it is: ``ClientHalf`` in this process, or at the sites."""

    @property
    def names(self) -> Sequence[FactorName]:
        """Of its trained factors."""

    @property
    def stack(self) -> HalfFactors:
        """Its factors."""

    def forward(self, step: int) -> list[Activations]:
        """As ``ClientHalf.forward``."""

    def backward(self, returned: Sequence[Gradients]) -> Tensor:
        """As ``ClientHalf.backward``."""


class ServerHalf(ModelHalf):
    """The server's half: last blocks, head and loss, the factors of those blocks.

    Attributes:
        label_smoothing: part of a token's target that is spread over the vocabulary.

    Args:
        base: the model.
        config: of the optimiser.
        starts: adapters of K sites; or one that serves them all.
        training: factors, learning rate and penalty.
        cut: where the model is cut, and how gradients travel.
        wanted: whether the clients' halves train anything, so that gradients travel at all.
    """

    def __init__(self, base: Base, config: TrainConfig, starts: Sequence[Adapter],
                 training: LocalTraining, cut: ModelCut, wanted: bool) -> None:
        of_clients = set(split_model.client_layers(starts[0].factors, cut.after))
        layers = [layer for layer in starts[0].factors if layer not in of_clients]
        super().__init__(base, config, starts, layers, training)
        self._cut, self._wanted, self.label_smoothing = cut, wanted, 0.0

    def backward(self, sent: Sequence[Activations],
                 weights: Sequence[float] | None = None) -> tuple[list[Gradients], Tensor, Tensor]:
        """Loss and gradients on the states of K sites; the factors' own gradients wait for
        ``update``.

        Args:
            sent: a message of every site.
            weights: of the sites' losses in the gradient of shared factors, each > 0; None for 1. A
                site's returned gradient is always that of its own loss.

        Returns:
            What every site is returned, mean losses (K,), numbers of scored tokens (K,).
        """
        hidden, loss_K, count_K = self._losses(sent)
        weight_K = (
            torch.ones_like(loss_K) if weights is None
            else torch.tensor(weights, device=self.base.device))
        torch.autograd.backward([(weight_K * loss_K).sum(), *self.penalty()])
        square_K = self.squares().expand(len(sent))
        parts: Sequence[Tensor | None] = [None] * len(sent)
        if hidden.grad is not None and self._wanted:
            parts = torch.split(hidden.grad, [len(own.labels) for own in sent])
        returned = []
        for own, part, weight, square in zip(sent, parts, weight_K, square_K, strict=True):
            tokens = own.hidden["data"].shape[1]
            gradient = {} if part is None else encode(part[:, :tokens].float() / weight,
                                                      self._cut.wire)
            returned.append(Gradients(gradient, square.reshape(1)))
        return returned, loss_K.detach(), count_K

    def _losses(self, sent: Sequence[Activations]) -> tuple[Tensor, Tensor, Tensor]:
        """The states of all sites, which gather the gradient, mean losses (K,) with their graph,
        and numbers of scored tokens (K,)."""
        device = self.base.device
        rows = [row for own in sent for row in decode(own.hidden)]
        hidden = pad_sequence(rows, batch_first=True).to(device, self.base.model.dtype)
        hidden.requires_grad_(self._wanted or not self.names)
        labels = pad_sequence([row.long() for own in sent for row in own.labels], batch_first=True,
                              padding_value=IGNORE).to(device)
        lengths = [own.lengths for own in sent if own.lengths is not None]
        mask = None
        if lengths:
            place_1T = torch.arange(hidden.shape[1], device=device)[None]
            mask = (place_1T < torch.cat(lengths).to(device)[:, None]).long()
        with self.stack.applied_to(self.base):
            out, target, row = split_model.server_forward(
                self.base, self._cut.after, hidden, labels, mask)
        counts = torch.tensor([len(own.labels) for own in sent], device=device)
        site = torch.repeat_interleave(torch.arange(len(sent), device=device), counts)[row]
        each = torch.nn.functional.cross_entropy(
            out, target, reduction="none", label_smoothing=self.label_smoothing)
        zero_K = torch.zeros(len(sent), device=device)
        count_K = zero_K.index_add(0, site, torch.ones_like(each))
        return hidden, zero_K.index_add(0, site, each) / count_K.clamp(min=1), count_K


class SplitLearner(Learner):
    """Trains sites whose model is cut, each with a server's half of its own; otherwise as
    ``Learner``.

    Args:
        learner: base, settings and encoded records, shared.
        after: blocks before the cut.
        wire: how states and gradients travel.
        private: whether the run promises privacy.

    Raises:
        PrivacyError: it does.
        ModelError: the model cannot be cut there.
    """

    def __init__(self, learner: Learner, after: int, wire: Wire = "float32", *,
                 private: bool) -> None:
        require(not private, PrivacyError,
                f"a split client found under privacy: {REASON}, or set privacy.off = true")
        coded_bytes(0, 0, 0, wire)
        split_model.check_cut(learner.base, after)
        self.base, self.config, self.encode = learner.base, learner.config, learner.encode
        self.cut = ModelCut(after, wire)

    def client_half(self, training: Sequence[LocalTraining]) -> ClientSide:
        """The clients' half of K sites; here, in the same process."""
        return ClientHalf(self, training, self.cut)

    def _together(self, training: Sequence[LocalTraining]) -> list[Trained]:
        """K sites in one pass per step on either side of the cut."""
        first, clients = training[0], len(training)
        client_half = self.client_half(training)
        server_half = ServerHalf(self.base, self.config, [own.start for own in training], first,
                                 self.cut, bool(client_half.names))
        losses, norms, tokens = torch.zeros(clients), torch.zeros(clients), torch.zeros(clients)
        up, down = [0] * clients, [0] * clients
        with first.prepared(self.base):
            for step in range(first.steps):
                sent = client_half.forward(step)
                returned, loss_K, count_K = server_half.backward(sent)
                norms += server_half.update(client_half.backward(returned)).cpu()
                losses, tokens = losses + loss_K.cpu(), tokens + count_K.cpu()
                for k in range(clients):
                    up[k] += nbytes(sent[k].tensors()) + NUMBER_BYTES
                    down[k] += nbytes(returned[k].hidden) + NUMBER_BYTES
        done = []
        for k, own in enumerate(training):
            halves = {**client_half.stack.take(k).factors, **server_half.stack.take(k).factors}
            adapter = own.start.holding({layer: halves[layer] for layer in own.start.factors})
            done.append(Trained(adapter, float(losses[k] / first.steps), int(tokens[k]),
                                float(norms[k] / first.steps), up[k], down[k],
                                frozenset(client_half.stack.factors)))
        return done


def fault(base: Base, sent: Activations) -> str | None:
    """What is wrong with a client's message that decodes, before it meets the model; None if
    nothing is."""
    states, labels = decode(sent.hidden), sent.labels
    if states.ndim != 3 or states.shape[-1] != split_model.hidden_width(base) or 0 in states.shape:
        return (f"states of shape {tuple(states.shape)}, expected (rows, tokens, "
                f"{split_model.hidden_width(base)})")
    seq2seq = base.config.kind == "seq2seq"
    if labels.dtype != torch.int32 or labels.ndim != 2 or len(labels) != len(states):
        return "labels of another shape than the states"
    if not seq2seq and labels.shape[1] != states.shape[1]:
        return "labels of another shape than the states"
    if bool(((labels != IGNORE) & ((labels < 0) | (labels >= base.model.config.vocab_size))).any()):
        return "labels outside the vocabulary"
    lengths = sent.lengths
    if seq2seq != (lengths is not None):
        return "lengths where none belong, or none where they do"
    if lengths is not None and (lengths.shape != (len(states),) or int(lengths.min()) < 1
                                or int(lengths.max()) > states.shape[1]):
        return "lengths that the states do not have"
    return None


def widths(learner: Learner, batch: Sequence[Record]) -> tuple[int, int]:
    """Tokens of the longest row of a client's batch: of its hidden states, and of its labels."""
    coded = [learner.encode(record) for record in batch]
    if learner.base.config.kind == "seq2seq":
        return max(1, *(n for _, n in coded)), max(1, *(len(ids) - n for ids, n in coded))
    longest = max(1, *(len(ids) for ids, _ in coded))
    return longest, longest


def travelled(learner: Learner, training: Sequence[LocalTraining], after: int,
              wire: Wire) -> list[tuple[int, int]]:
    """Bytes up and down of every site's steps, by the formula at the head of this file; the seeded
    draws are repeated, nothing is trained.

    The factors that the method sends before and after the steps are not among them: their bytes are
    the method's own formula (``travels``), on the layers of the clients' half alone.
    """
    found = []
    for own in training:
        trains = bool(split_model.client_layers(own.start.factors, after))
        rows, seq2seq = own.batch, learner.base.config.kind == "seq2seq"
        up = down = 0
        for step in draws(own, learner.lengths(own.records)):
            states, targets = widths(learner, [own.records[i] for i in step])
            coded = coded_bytes(rows, states, split_model.hidden_width(learner.base), wire)
            up += coded + NUMBER_BYTES * (rows * targets + (rows if seq2seq else 0) + 1)
            down += (coded if trains else 0) + NUMBER_BYTES
        found.append((up, down))
    return found
