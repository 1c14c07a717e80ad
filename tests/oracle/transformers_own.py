"""Losses and training steps by transformers and PEFT alone: their chat template, their special tokens, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model
from tests.oracle.chat_spans import scored_tokens
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from aulait.core.types import Adapter, Record


class Own:
    """A bare model of a folder."""

    def __init__(self, path: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def row(self, record: Record) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and labels (1, T): a text as the tokenizer reads it, a conversation by its template with the assistant's
        tokens as labels."""
        if not record.turns:
            ids = self.tokenizer(record.text)["input_ids"]
            return torch.tensor([ids]), torch.tensor([ids])
        ids, scored = scored_tokens(self.tokenizer, record.turns)
        return torch.tensor([ids]), torch.tensor([[token if own else -100 for token, own in zip(ids, scored, strict=True)]])

    @torch.no_grad()
    def loss(self, records: Sequence[Record]) -> tuple[float, int]:
        """Nats a token over all tokens that carry loss, and their number."""
        nats = tokens = 0
        for record in records:
            ids, labels = self.row(record)
            count = int((labels[:, 1:] != -100).sum())
            if count:
                nats += float(self.model(input_ids=ids, labels=labels).loss.double()) * count
            tokens += count
        return nats / tokens, tokens

    def step(self, start: Adapter, batch: Sequence[Record], lr: float) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
        """PEFT's factors after one step of plain gradient descent on the mean loss over the tokens of a batch, and that loss.

        The losses of PEFT's logits are in float64: torch's float32 log-softmax over the 49,152 tokens of SmolLM2 moves the step
        by 3e-4 of its size.
        """
        rank = next(iter(start.factors.values()))[0].shape[0]
        model = get_peft_model(self.model, LoraConfig(r=rank, lora_alpha=start.alpha, lora_dropout=0.0, target_modules=list(start.factors)))
        inside = {name: model.base_model.model.get_submodule(name) for name in start.factors}
        for name, (a, b) in start.factors.items():
            inside[name].lora_A["default"].weight.data.copy_(a)
            inside[name].lora_B["default"].weight.data.copy_(b)
        rows = [self.row(record) for record in batch]
        counts = [int((labels[:, 1:] != -100).sum()) for _, labels in rows]
        loss = sum(cross_entropy(model(input_ids=ids).logits[0, :-1].double(), labels[0, 1:], ignore_index=-100, reduction="sum")
                   for ids, labels in rows) / sum(counts)
        loss.backward()
        optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=lr)
        optimizer.step()
        return {name: (own.lora_A["default"].weight.detach(), own.lora_B["default"].weight.detach())
                for name, own in inside.items()}, float(loss.detach())
