"""DP-SGD of one site as the paper writes it, in float64: one record after the other, peft, a bare
model, a loop.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import get_peft_model
from tests.oracle.plain_training import _config, _put, _row, _take
from transformers import AutoModelForCausalLM, AutoTokenizer

from aulait.core.types import Adapter, Record


def train(path: str, start: Adapter, batches: Sequence[Sequence[Record]], *, part: str, lr: float,
          clip: float, expected: float,
          noise: Callable[[int], torch.Tensor]) -> Adapter:
    """The adapter after a step of plain SGD on every batch: noise(d) is the noise of a step on its
    d trained numbers."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64),
                           _config(start)).double()
    trained = _put(model, start, part)
    for batch in batches:
        total = [torch.zeros_like(weight) for weight in trained]
        for record in batch:
            ids, given = _row(tokenizer, record)
            labels = torch.tensor([[-100] * given + ids[given:]])
            loss = model(input_ids=torch.tensor([ids]), labels=labels).loss
            found = torch.autograd.grad(loss, trained)
            length = float(torch.sqrt(sum((g**2).sum() for g in found)))
            for one, g in zip(total, found, strict=True):
                one += g * min(1.0, clip / length)
        drawn = noise(sum(weight.numel() for weight in trained))
        for weight, one in zip(trained, total, strict=True):
            own, drawn = drawn[: weight.numel()].view_as(weight), drawn[weight.numel() :]
            weight.data -= lr * (one + own) / expected
    return _take(model, start)
