"""Training of one site as anybody would write it: peft, the bare Hugging Face model, a torch optimiser, a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aulait.core.types import Adapter, Record
from aulait.models.adapter_dropout import AdapterDropout, layer_number


def train(
    path: str, start: Adapter, batches: Sequence[Sequence[Record]], *, part: str, lr: float, optimizer: str,
    max_grad_norm: float, weight_decay: float = 0.0, masks: Callable[[int, Sequence[Record]], AdapterDropout] | None = None,
) -> tuple[Adapter, float]:
    """The adapter after a step on every batch, and the mean of the steps' losses; ``masks`` stand where PEFT has dropout."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), _config(start))
    trained = _put(model, start, part)
    if optimizer == "sgd":
        chosen: torch.optim.Optimizer = torch.optim.SGD(trained, lr=lr, weight_decay=weight_decay)
    else:
        chosen = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    losses = []
    for step, batch in enumerate(batches):
        for name in start.factors if masks is not None else ():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_dropout["default"] = Masked(masks(step, batch), layer_number(name))
        rows = [_row(tokenizer, record) for record in batch]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row, _ in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
        labels = torch.tensor([[-100] * given + row[given:] + [-100] * (width - len(row)) for row, given in rows])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        chosen.step()
        chosen.zero_grad()
        losses.append(float(loss.detach()))
    return _take(model, start), sum(losses) / len(losses)


def _row(tokenizer, record: Record) -> tuple[list[int], int]:
    prefix = [tokenizer.bos_token_id]
    if record.prompt is not None:
        prefix += tokenizer(record.prompt + "\n", add_special_tokens=False)["input_ids"]
    return [*prefix, *tokenizer(record.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], len(prefix)


def _config(start: Adapter) -> LoraConfig:
    ranks = {a.shape[0] for a, _ in start.factors.values()}
    assert len(ranks) == 1
    return LoraConfig(r=ranks.pop(), lora_alpha=start.alpha, use_rslora=start.scaling == "rslora", lora_dropout=0.0, target_modules=list(start.factors), bias="none")


def _put(model, start: Adapter, part: str) -> list[torch.nn.Parameter]:
    trained = []
    for name, (a, b) in start.factors.items():
        layer = model.base_model.model.get_submodule(name)
        for letter, value in (("A", a), ("B", b)):
            weight = getattr(layer, f"lora_{letter}")["default"].weight
            weight.data.copy_(value)
            weight.requires_grad_(letter in part)
            if letter in part:
                trained.append(weight)
    return trained


def _take(model, start: Adapter) -> Adapter:
    factors = {}
    for name in start.factors:
        layer = model.base_model.model.get_submodule(name)
        factors[name] = tuple(getattr(layer, f"lora_{letter}")["default"].weight.detach().clone() for letter in "AB")
    return Adapter(factors, start.alpha, scaling=start.scaling)


class Masked(torch.nn.Module):
    """A mask in the place of a random dropout."""

    def __init__(self, dropout: AdapterDropout, layer: int) -> None:
        super().__init__()
        self.dropout, self.layer = dropout, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout.applied(x, self.layer)
