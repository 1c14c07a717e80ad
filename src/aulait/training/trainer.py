"""Local LoRA steps for many sites at once over one shared frozen base.

The sites of a pass are independent: each has its own factors, its own batches, its own optimiser
moments and its own gradient clipping. They share only the frozen matrix products, which is what
makes a federation cost no more than one plain training of the same tokens (``stacked`` lays their
factors side by side).

Shape letters: K sites · B sequences of a site in a step · T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from aulait.core.errors import DataError, require
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Record, Tensors
from aulait.models.adapter_dropout import AdapterDropout
from aulait.models.loading import Base, folded, in_basis
from aulait.training.batches import Encoder, Rows, collate, losses, scored_tokens
from aulait.training.row_keys import row_keys
from aulait.training.smoothing import smooth
from aulait.training.stacked import Penalty as Penalty
from aulait.training.stacked import Stack

# sites that an engine hands over together: updates in memory, enough neighbours of similar length
# to pad little
AT_ONCE = 64


class TrainConfig(BaseModel):
    """``[train]``: what every local or proxy site does in a round, unless its tier says otherwise.

    Attributes:
        rounds: rounds of stage 2.
        steps: optimiser steps of a site in a round.
        batch: sequences in a step.
        lr: learning rate of the local optimiser in the first round.
        schedule: how it falls over the rounds: "constant", "linear" or "cosine" (to a tenth). Under
            privacy the clip bound follows the proxies' norms down, and so does the noise.
        optimizer: "adamw" (moments start afresh every round) or "sgd".
        weight_decay: decoupled weight decay.
        max_grad_norm: bound on the norm of a site's gradient in a step; 0 for none.
        rows_at_once: sequences in one pass over the base, over all sites; a matter of speed and
            memory only.
        keep: whose adapter is written: that of the "last" round, or of the "best" measured one, the
            bare base (round 0) among them, by the loss that ``evaluate`` measures. Under privacy
            "best" needs evaluate.on = "public": a choice by held-out records would tell of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rounds: int = Field(10, ge=0)
    steps: int = Field(8, ge=1)
    batch: int = Field(4, ge=1)
    lr: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    rows_at_once: int = Field(16, ge=1)
    keep: Literal["last", "best"] = "last"


def learning_rate(config: TrainConfig, round: int) -> float:
    """The local learning rate of a round, counted from 1."""
    past = (round - 1) / max(1, config.rounds)
    if config.schedule == "linear":
        return config.lr * (1.0 - 0.9 * past)
    if config.schedule == "cosine":
        return config.lr * (0.1 + 0.45 * (1.0 + math.cos(math.pi * past)))
    return config.lr


@dataclass(frozen=True)
class LocalTraining:
    """The training one site is asked to do.

    Attributes:
        start: the adapter to begin from.
        records: what to learn from.
        trainable: factors that are trained; the others stay frozen.
        steps: optimiser steps.
        batch: sequences in a step.
        lr: learning rate.
        seed: of the order in which records are drawn.
        penalty: added to the loss of every step; None for none.
        fold: layer -> dense update (M, N) that is folded into the base weights during the steps;
            None for the bare base.
        basis: layer -> (V_PN, U_MP) in which the adapter's factors are coordinates
            (``loading.in_basis``); None for factors as they are.
        turn: steps made before these, where B and A are trained in turns, a step each and B first;
            None trains both in every step.
        smoothing: strength of the low-pass filter on the gradient of a step
            (``training.smoothing``); 0 for none.
        drift: what is added to the factors after every step, by their flat names; None for nothing.
    """

    start: Adapter
    records: Sequence[Record]
    trainable: Trainable
    steps: int
    batch: int
    lr: float
    seed: int
    penalty: Penalty | None = None
    fold: Tensors | None = None
    basis: Mapping[str, tuple[Tensor, Tensor]] | None = None
    turn: int | None = None
    smoothing: float = 0.0
    drift: Tensors | None = None

    def trainable_at(self, step: int) -> Trainable:
        """The factors that a step trains, counted from 0."""
        return in_turns(self.trainable, self.turn, step)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of the adapter's layers."""
        return tuple(a_RN.shape[0] for a_RN, _ in self.start.factors.values())

    @contextmanager
    def prepared(self, base: Base) -> Iterator[None]:
        """The base as this training needs it: the dense updates in its weights, the basis in its
        layers."""
        with folded(base, self.fold), in_basis(base, self.basis):
            yield


def in_turns(trainable: Trainable, turn: int | None, step: int) -> Trainable:
    """The factors that a step trains: all that are trained, or B and A in turns.

    Args:
        trainable: both, where they take turns.
        turn: steps made before; None: no turns.
        step: counted from 0.
    """
    if turn is None:
        return trainable
    return Trainable.A if (turn + step) % 2 else Trainable.B


@dataclass(frozen=True)
class Trained:
    """What a site has after its steps.

    Attributes:
        adapter: the trained factors, on the CPU.
        loss: mean over steps of the training loss, nats a token. Sensitive.
        tokens: tokens read, padding not counted.
        updates: norm of the step's gradient before clipping, mean over steps. Sensitive.
        up_bytes: that the site sent during the steps, where the model is cut (``split_trainer``);
            else 0.
        down_bytes: that it received during the steps; else 0.
        client_layers: where the model is cut, the layers whose factors the site has; the others
            stay at the server.
    """

    adapter: Adapter
    loss: float
    tokens: int
    updates: float
    up_bytes: int = 0
    down_bytes: int = 0
    client_layers: frozenset[str] = frozenset()


Advance = Callable[[int], None]
DrawnRecord = tuple[int, int, Record]  # seed of a site's training, step, a record of its batch


def draws(training: LocalTraining, lengths: Sequence[int]) -> list[list[int]]:
    """Record numbers of every step: passes over all records in seeded order, cut into steps of
    ``batch``.

    Args:
        training: steps, batch and seed.
        lengths: of every record, in tokens. The draws of a round are sorted into steps of similar
            length so that sites padded together waste little; the steps themselves are then in an
            order of their own.
    """
    generator = torch.Generator().manual_seed(training.seed)
    need = training.steps * training.batch
    order: list[int] = []
    while len(order) < need:
        order += torch.randperm(len(lengths), generator=generator).tolist()
    order = sorted(order[:need], key=lambda i: (lengths[i], i))
    steps = [order[i : i + training.batch] for i in range(0, need, training.batch)]
    # every site of equal steps mixes them alike, so that its neighbours' lengths stay similar
    mixing = torch.Generator().manual_seed(training.steps)
    return [steps[i] for i in torch.randperm(training.steps, generator=mixing).tolist()]


class Learner:
    """Trains sites on one base. Holds no state of any site.

    Args:
        base: loaded.
        config: of the training.
        dropout: of the adapters, in [0, 1).
    """

    def __init__(self, base: Base, config: TrainConfig, dropout: float = 0.0) -> None:
        self.base = base
        self.config = config
        self.dropout = dropout
        self.encode = Encoder(base)

    def lengths(self, records: Sequence[Record]) -> list[int]:
        """Tokens of every record, cut to the context."""
        return [len(self.encode(record)[0]) for record in records]

    def train(self, training: Sequence[LocalTraining],
              advance: Advance | None = None) -> list[Trained]:
        """Train all sites, those of equal shape together; results in the order given.

        Args:
            training: one per site.
            advance: is given how many sites more are finished, for a progress bar.

        Raises:
            DataError: a site has no records.
        """
        for own in training:
            require(bool(own.records), DataError,
                    "a site has no records to train on; give it some or leave it out")
        done: dict[int, Trained] = {}
        for some in self.passes(training):
            done.update(zip(some, self._together([training[i] for i in some]), strict=True))
            if advance is not None:
                advance(len(some))
        return [done[i] for i in range(len(training))]

    def passes(self, training: Sequence[LocalTraining]) -> list[list[int]]:
        """Which sites share a pass: those of equal shape on equal weights, similar lengths
        together, to pad little."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, own in enumerate(training):
            key = (own.steps, own.batch, own.trainable, own.lr, own.penalty,
                   None if own.fold is None else id(own.fold),
                   None if own.basis is None else id(own.basis), own.turn, own.smoothing,
                   own.ranks if own.smoothing else None, own.drift is None)
            groups.setdefault(key, []).append(index)
        shared = []
        for members in groups.values():
            size = max(1, self.config.rows_at_once // training[members[0]].batch)
            members = sorted(members, key=lambda i: (self._mean_length(training[i]), i))
            shared += [members[i : i + size] for i in range(0, len(members), size)]
        return shared

    def _mean_length(self, training: LocalTraining) -> float:
        """Mean tokens of a site's records."""
        return sum(self.lengths(training.records)) / len(training.records)

    def _together(self, training: Sequence[LocalTraining]) -> list[Trained]:
        """K sites of equal steps, batch, factors, learning rate, penalty, fold, basis, turns and
        filter in one pass per step."""
        first, clients = training[0], len(training)
        stack = Stack.of([own.start for own in training], first.trainable, self.base.device)
        optimizer = optimizer_of(stack.leaves, self.config, first.lr)
        plans = [draws(own, self.lengths(own.records)) for own in training]
        losses, norms, tokens = torch.zeros(clients), torch.zeros(clients), torch.zeros(clients)
        drift = stack.like([own.drift or {} for own in training]) if first.drift else {}
        with first.prepared(self.base):
            for step in range(first.steps):
                leaves = stack.only(first.trainable_at(step))
                loss_K, tokens_K = self._backward(stack, [
                    [(own.seed, step, own.records[i]) for i in plan[step]]
                    for own, plan in zip(training, plans, strict=True)], first.penalty)
                norm_K = squares(leaves, clients).sqrt()
                shorten(leaves, norm_K, self.config.max_grad_norm)
                smooth(leaves, first.smoothing)
                norms += norm_K.cpu()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                stack.shift(drift)
                losses += loss_K.cpu()
                tokens += tokens_K.cpu()
        return [Trained(stack.take(k), float(losses[k] / first.steps), int(tokens[k]),
                        float(norms[k] / first.steps)) for k in range(clients)]

    def _backward(self, stack: Stack, batches: Sequence[Sequence[DrawnRecord]],
                  penalty: Penalty | None) -> tuple[Tensor, Tensor]:
        """Add the gradients of every site's mean loss, and of the penalty, to its factors; the
        losses (K,) and tokens (K,).

        One pass for all sites; a single site whose batch has more than ``rows_at_once`` sequences
        takes several, each weighed by its share of the tokens.
        """
        clients, drawn = len(batches), [one for own in batches for one in own]
        size = len(drawn) if clients > 1 else self.config.rows_at_once
        groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        pieces = [collate(self.base, self.encode, [record for _, _, record in group])
                  for group in groups]
        counts = [1] if len(pieces) == 1 else [scored_tokens(rows) for rows in pieces]
        total_K = torch.zeros(clients, device=self.base.device)
        tokens_K = torch.zeros_like(total_K)
        for number, rows in enumerate(pieces):
            loss_K, count_K = self.losses(rows, stack, clients, self.masks(groups[number]))
            loss_K = loss_K * (counts[number] / max(1, sum(counts)))
            objective = loss_K.sum()
            if penalty is not None and number == 0:
                objective = objective + stack.penalty(penalty)
            objective.backward()  # type: ignore[no-untyped-call]
            total_K, tokens_K = total_K + loss_K.detach(), tokens_K + count_K
        return total_K, tokens_K

    def masks(self, drawn: Sequence[DrawnRecord]) -> AdapterDropout | None:
        """What the adapters' dropout leaves out of these rows; None without dropout."""
        return AdapterDropout(self.dropout, row_keys(drawn)) if self.dropout else None

    def losses(self, rows: Rows, stack: Stack, clients: int,
               dropout: AdapterDropout | None = None) -> tuple[Tensor, Tensor]:
        """Mean loss of each of K sites (K,), or of K single rows, over its own tokens, and its
        number of tokens (K,)."""
        with stack.applied_to(self.base, dropout):
            each, row = losses(self.base, rows)
        site = row // (len(rows.ids) // clients)
        zero = torch.zeros(clients, device=each.device)
        count = zero.index_add(0, site, torch.ones_like(each))
        return zero.index_add(0, site, each) / count.clamp(min=1), count


@torch.no_grad()
def squares(leaves: Sequence[Tensor], clients: int) -> Tensor:
    """The squared norm of every site's gradient (K,)."""
    square_K = torch.zeros(clients, device=leaves[0].device if leaves else None)
    for leaf in leaves:
        if leaf.grad is None:  # no token of this step reached the layer
            leaf.grad = torch.zeros_like(leaf)
        square_K += leaf.grad.reshape(clients, -1).square().sum(1)
    return square_K


@torch.no_grad()
def shorten(leaves: Sequence[Tensor], norm_K: Tensor, bound: float) -> None:
    """Scale the gradient of every site, whose norm is given, to norm <= bound; 0 means no bound."""
    if bound > 0:
        scale_K = (bound / norm_K.clamp(min=1e-12)).clamp(max=1.0)
        for leaf in leaves:
            assert leaf.grad is not None
            leaf.grad.mul_(scale_K.view(-1, 1, 1))


def optimizer_of(leaves: Sequence[Tensor], config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimiser that the settings name, with fresh moments."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(leaves, lr=lr, weight_decay=config.weight_decay)
    fused = all(leaf.dtype == torch.float32 and leaf.device.type in ("cpu", "cuda")
                for leaf in leaves)
    return torch.optim.AdamW(leaves, lr=lr, weight_decay=config.weight_decay, fused=fused)
