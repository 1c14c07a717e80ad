"""Training of a site by a function of the user's own: a loop in torch, or a Hugging Face Trainer.

The function gets the base with the site's factors, which are its only parameters, and the site's
records as tokens. Whatever it does with them, the factors are read afterwards; under privacy what
leaves the site is clipped and noised as ever, so the promise for whole clients does not hang on it.
Under the unit "record" the promise stands in the steps themselves, and no such function is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aulait.core.errors import ModelError, require
from aulait.core.types import Record
from aulait.models.loading import Base
from aulait.training.batches import IGNORE, Encoder
from aulait.training.stacked import Penalty, Stack
from aulait.training.trainer import Advance, Learner, LocalTraining, Trained

TokenRow = dict[str, list[int]]


class SiteModel(nn.Module):
    """The base with the factors of one site as its only parameters."""

    def __init__(self, base: Base, stack: Stack, penalty: Penalty | None) -> None:
        super().__init__()
        own = {id(leaf): nn.Parameter(leaf) for leaf in stack.leaves}
        for name, (a, b) in stack.factors.items():
            stack.factors[name] = (own.get(id(a), a), own.get(id(b), b))
        stack.leaves = list(own.values())
        self.factors = nn.ParameterList(stack.leaves)
        self._hidden = (base, stack, penalty)  # in a tuple, so that torch finds no module in it

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None,
                labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and with ``labels`` the loss over those that are not -100, the method's penalty
        included."""
        base, stack, penalty = self._hidden
        with stack.applied_to(base):
            logits: Tensor = base.model(input_ids=input_ids, attention_mask=attention_mask).logits
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
        if penalty is not None:
            loss = loss + stack.penalty(penalty)
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class SiteTraining:
    """One site's training in one round, as a function of the user's own is given it.

    Attributes:
        model: to be trained; its parameters are the factors alone.
        rows: a row for every record: ``input_ids`` and ``labels``, where -100 is not learnt.
        records: the same before they were tokens.
        steps: optimiser steps that the round asks for.
        batch: rows in a step.
        lr: the round's learning rate.
        seed: of the round at this site.
        padding: the token that fills up a batch.
    """

    model: SiteModel
    rows: Sequence[TokenRow]
    records: Sequence[Record]
    steps: int
    batch: int
    lr: float
    seed: int
    padding: int

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Some rows as one batch: ``input_ids``, ``attention_mask``, ``labels``."""
        width = max(len(row["input_ids"]) for row in rows)

        def filled(key: str, value: int) -> Tensor:
            return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])

        ones = [{"mask": [1] * len(row["input_ids"])} for row in rows]
        mask = torch.tensor([row["mask"] + [0] * (width - len(row["mask"])) for row in ones])
        return {"input_ids": filled("input_ids", self.padding), "attention_mask": mask,
                "labels": filled("labels", IGNORE)}


TrainSite = Callable[[SiteTraining], float | None]
"""Trains ``SiteTraining.model``; what it returns is told as the site's training loss."""


class OwnLearner(Learner):
    """A learner whose sites are trained by a function of the user's own, one after the other.

    Args:
        learner: whose base and settings it takes.
        function: trains one site.
    """

    def __init__(self, learner: Learner, function: TrainSite) -> None:
        super().__init__(learner.base, learner.config, learner.dropout)
        require(learner.base.config.kind == "causal", ModelError,
                "a training function found with an encoder-decoder, expected a causal language "
                "model; leave the function out")
        self._function = function

    def train(self, training: Sequence[LocalTraining],
              advance: Advance | None = None) -> list[Trained]:
        """Train every site; the arguments are those of ``Learner.train``."""
        done = []
        for own in training:
            done.append(self._alone(own))
            if advance is not None:
                advance(1)
        return done

    def _alone(self, own: LocalTraining) -> Trained:
        """One site by the function."""
        rows = [_row(self.encode, record) for record in own.records]
        stack = Stack.of([own.start], own.trainable, self.base.device)
        pad = self.base.tokenizer.pad_token_id
        with own.prepared(self.base):
            site = SiteTraining(SiteModel(self.base, stack, own.penalty), rows, own.records,
                                own.steps, own.batch, own.lr, own.seed,
                                0 if pad is None else int(pad))
            loss = self._function(site)
        whole = all(bool(leaf.isfinite().all()) for leaf in stack.leaves)
        require(whole, ModelError,
                "the training function left numbers that are not finite, expected finite factors; "
                "lower the learning rate, or clip its gradients")
        return Trained(stack.take(0), float("nan") if loss is None else float(loss),
                       sum(len(row["input_ids"]) for row in rows), 0.0)


def _row(encode: Encoder, record: Record) -> TokenRow:
    """A record as tokens and labels."""
    coded = encode.coded(record)
    labels = [IGNORE] * len(coded.ids)
    for first, behind in coded.spans:
        labels[first:behind] = coded.ids[first:behind]
    return {"input_ids": list(coded.ids), "labels": labels}
