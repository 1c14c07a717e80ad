"""The loop that a user of PEFT would write for federated averaging: one client after the other
wears the global adapter, trains it with an optimiser of its own on its own padded rows, and hands
its state to the mean."""

from __future__ import annotations

from dataclasses import dataclass

import peft
import torch
import transformers
from torch import Tensor

from aulait.core.cohort import everyone
from aulait.core.factors import Trainable
from aulait.core.lora import initial
from aulait.core.types import Adapter
from aulait.models.named import folder_of
from aulait.runs.prepared import PreparedRun
from aulait.training.batches import Rows, collate
from aulait.training.trainer import TrainConfig, draws
from aulait_benchmarks.simulate import site_work

State = dict[str, Tensor]


@dataclass(frozen=True)
class PeftLoop:
    """A loop that is ready to run.

    Attributes:
        model: the base with one PEFT adapter.
        start: the adapter of the first round, under PEFT's names.
        batches: round -> client -> step -> rows, tokenised and padded beforehand.
        config: learning rate, weight decay and clipping, as aulait has them.
    """

    model: peft.PeftModel
    start: State
    batches: list[list[list[Rows]]]
    config: TrainConfig

    def run(self) -> State:
        """All rounds; the last global adapter."""
        shared = self.start
        for clients in self.batches:
            states = []
            for steps in clients:
                peft.set_peft_model_state_dict(self.model, shared)
                self._train(steps)
                found = peft.get_peft_model_state_dict(self.model)
                states.append({name: value.clone() for name, value in found.items()})
            shared = {name: torch.stack([own[name] for own in states]).mean(0) for name in shared}
        return shared

    def _train(self, steps: list[Rows]) -> None:
        leaves = [leaf for leaf in self.model.parameters() if leaf.requires_grad]
        optimizer = torch.optim.AdamW(leaves, lr=self.config.lr,
                                      weight_decay=self.config.weight_decay)
        for rows in steps:
            self.model(input_ids=rows.ids, labels=rows.labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(leaves, self.config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()


def peft_loop(run: PreparedRun, trainable: Trainable, rounds: int) -> PeftLoop:
    """The loop over the clients of a prepared run: its base, its first adapter, its rows.

    Right padding needs no mask in a causal model, so that none is made, as in aulait's own passes.

    Args:
        run: nothing of it has been trained; the base is loaded a second time.
        trainable: the factors that clients train; the others are frozen.
        rounds: how many.
    """
    base, context = run.models.base, run.context
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder_of(base.config.name), dtype=base.model.dtype).to(base.device).eval()
    worn = peft.get_peft_model(model, peft.LoraConfig(
        r=context.rank, lora_alpha=context.alpha, target_modules=sorted(context.shapes)))
    if trainable is Trainable.B:
        for name, leaf in worn.named_parameters():
            if "lora_A" in name:
                leaf.requires_grad_(False)
    state = {}
    for name, (a, b) in first_adapter(run).factors.items():
        state[f"base_model.model.{name}.lora_A.weight"] = a
        state[f"base_model.model.{name}.lora_B.weight"] = b
    batches = [[_rows(run, name, round) for name in everyone(run.federation.trainers)]
               for round in range(1, rounds + 1)]
    return PeftLoop(worn, state, batches, run.models.learner.config)


def _rows(run: PreparedRun, name: str, round: int) -> list[Rows]:
    """The steps of a client in a round, each padded alone: the rows that aulait draws."""
    learner = run.models.learner
    work = site_work(run, name, first_adapter(run), Trainable.AB, round)
    return [collate(run.models.base, learner.encode, [work.records[i] for i in step])
            for step in draws(work, learner.lengths(work.records))]


def first_adapter(run: PreparedRun) -> Adapter:
    """The adapter with which the first round begins."""
    context = run.context
    return initial(context.shapes, context.rank, context.alpha, context.seeds)
