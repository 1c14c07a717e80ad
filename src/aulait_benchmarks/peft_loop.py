"""The loop that a user of PEFT would write for federated averaging: one client after the other
wears the global adapter, trains it with an optimiser of its own on its own padded rows, and hands
its state to the mean."""

from __future__ import annotations

from collections.abc import Sequence
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
class PeftWork:
    """What the loop trains, without the model, so that it may be handed to another process.

    Attributes:
        folder: of the base.
        dtype: of its weights.
        device: where it is.
        config: of PEFT's adapter.
        trainable: the factors that clients train; the others are frozen.
        start: the adapter of the first round, under PEFT's names.
        batches: round -> client -> step -> rows, tokenised and padded beforehand.
        training: learning rate, weight decay and clipping, as aulait has them.
    """

    folder: str
    dtype: torch.dtype
    device: torch.device
    config: peft.LoraConfig
    trainable: Trainable
    start: State
    batches: list[list[list[Rows]]]
    training: TrainConfig


class PeftLoop:
    """The base with one PEFT adapter, and the rounds over it.

    Args:
        work: what is trained; the base is loaded for it.
    """

    def __init__(self, work: PeftWork) -> None:
        self.work = work
        base = transformers.AutoModelForCausalLM.from_pretrained(
            work.folder, dtype=work.dtype).to(work.device).eval()
        self._model = peft.get_peft_model(base, work.config)
        if work.trainable is Trainable.B:
            for name, leaf in self._model.named_parameters():
                if "lora_A" in name:
                    leaf.requires_grad_(False)

    def run(self) -> State:
        """All rounds; the last global adapter."""
        shared = self.work.start
        for clients in self.work.batches:
            shared = mean([self.client(shared, steps) for steps in clients])
        return shared

    def client(self, shared: State, steps: Sequence[Rows]) -> State:
        """One client's adapter after its steps."""
        peft.set_peft_model_state_dict(self._model, shared)
        leaves = [leaf for leaf in self._model.parameters() if leaf.requires_grad]
        config = self.work.training
        optimizer = torch.optim.AdamW(leaves, lr=config.lr, weight_decay=config.weight_decay)
        for rows in steps:
            self._model(input_ids=rows.ids, labels=rows.labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(leaves, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        found = peft.get_peft_model_state_dict(self._model)
        return {name: value.clone() for name, value in found.items()}


def mean(states: Sequence[State]) -> State:
    """The global adapter of a round."""
    return {name: torch.stack([own[name] for own in states]).mean(0) for name in states[0]}


def peft_work(run: PreparedRun, trainable: Trainable, rounds: int) -> PeftWork:
    """The loop over the clients of a prepared run: its base, its first adapter, its rows.

    Right padding needs no mask in a causal model, so that none is made, as in aulait's own passes.

    Args:
        run: nothing of it has been trained.
        trainable: the factors that clients train.
        rounds: how many.
    """
    base, context = run.models.base, run.context
    config = peft.LoraConfig(r=context.rank, lora_alpha=context.alpha,
                             target_modules=sorted(context.shapes))
    state = {}
    for name, (a, b) in first_adapter(run).factors.items():
        state[f"base_model.model.{name}.lora_A.weight"] = a
        state[f"base_model.model.{name}.lora_B.weight"] = b
    batches = [[_rows(run, name, round) for name in everyone(run.federation.trainers)]
               for round in range(1, rounds + 1)]
    return PeftWork(str(folder_of(base.config.name)), base.model.dtype, base.device, config,
                    trainable, state, batches, run.models.learner.config)


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
