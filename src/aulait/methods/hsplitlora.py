"""HSplitLoRA: split clients, each cut and ranked as its machine allows, on the layers that matter
most; unequal ranks are merged by stacking, without noise.

Which layers: the importance of a layer is sum |W ∘ G| / (M + N), where G is the gradient of a loss
with respect to its weights and M + N what an adapter of rank 1 costs (``training.
weight_importance``). It is measured at the server before the first round and every ``renew``
rounds, on public text or on texts that stage 1 released, at the weights as they then are, and mixed
with what was found before. The most important layers that hold a ``part`` of the adapters' numbers
get adapters in the rounds that follow; the others keep what was folded into them.

Which cut and which rank: placement = "split" or "auto" with cut = "auto" (``compute.cut`` or a
tier's own) lets the planner choose both for every tier from memory, speed and link of its machine
and from what the server has to do (``federation.planner``). Every client may be cut elsewhere: the
half of the model behind its cut is trained for it at the server.

Merge: the factors of all clients, of both halves, are stacked as in FLoRA, so that the merge is the
mean of their products whatever their ranks and cuts; it is folded into the base, and fresh adapters
begin the next round. Messages of a split step cost what ``training.split_trainer`` says, beside the
factors; of these a split client sends and receives those before its cut. With part = 1 and local
clients this is FLoRA.

what: split clients with cut and rank by their machine, adapters on important layers, merge by
    stacks
source: Lin et al., HSplitLoRA, IEEE TMC 2026, arXiv 2505.02795
travels: up at most 4 sum r_k (M + N), split clients in front alone and a step 4 B T (D + 1) + 4;
    down at most 4 sum (sum_j r_j) (M + N) after the first round, a step 4 B T D + 4
privacy: refused for clients (a stack shows every client's factors) and for split ones (activations
    leave the site). Records: DP-SGD at local sites
differs: importance on public text at the server, not on clients' data; cut and rank are planned
    once, before the run, from memory, speed and link; a chosen layer has the client's whole rank;
    every client's back half has factors of its own; the common scale is alpha / R
unequal ranks: yes
exact: yes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, Info, Record, Tensors
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import base_folding, client_update, fresh_adapters
from aulait.methods.shared.base_folding import missed_bytes as missed_bytes
from aulait.methods.shared.fresh_adapters import answer as answer
from aulait.methods.shared.fresh_adapters import result as result
from aulait.methods.shared.per_client import SingleUpdates
from aulait.models.loading import folded
from aulait.training.trainer import Learner
from aulait.training.weight_importance import most_important, weight_importance

TRAITS = described(__name__, __doc__, Abilities(
    private=False, secure=False, instead="ffa", units=("record",), folds=True))
IMPORTANCE = "importance"  # tag of what is known of every layer


class HSplitLoRAConfig(fresh_adapters.FreshConfig):
    """``[algorithm] name = "hsplitlora"``.

    Attributes:
        part: of the numbers of all adapters, in (0, 1]: the most important layers that hold it get
            adapters; 1 gives all layers one and reads no text.
        importance_text: what importance is measured on: "auto" (the texts that stage 1 has
            released, else the public ones), "public" (``data.public``), "released", or a source as
            ``data.public`` takes it.
        importance_texts: how many texts are read.
        renew: rounds after which importance is measured again; 0: never.
        history: weight of what was known of importance before, in [0, 1).
    """

    part: float = Field(0.5, gt=0, le=1)
    importance_text: str = "auto"
    importance_texts: int = Field(64, ge=1)
    renew: int = Field(5, ge=0)
    history: float = Field(0.5, ge=0, lt=1)


Config = HSplitLoRAConfig


def init(config: HSplitLoRAConfig, context: RunContext) -> State:
    """Nothing folded, nothing known of importance: until ``look`` all layers count."""
    return State(0, {})


def wants(config: HSplitLoRAConfig, context: RunContext, state: State) -> tuple[str, ...]:
    """The text to read before the next round; none in most rounds."""
    return (config.importance_text,) if _due(config, state) else ()


def text_count(config: HSplitLoRAConfig) -> int:
    """How many texts ``look`` is given."""
    return config.importance_texts


def look(config: HSplitLoRAConfig, context: RunContext, state: State, learner: Learner,
         texts: Sequence[Record]) -> State:
    """The state with the importance of every layer; the very state where none is due."""
    if not _due(config, state):
        return state
    with folded(learner.base, lora.under("whole", state.tensors)):
        now = weight_importance(learner, context.shapes, texts)
    before = lora.under(IMPORTANCE, state.tensors)
    kept = config.history if before else 0.0
    known = {layer: torch.tensor([(1 - kept) * value]) + (kept * before[layer] if before else 0.0)
             for layer, value in now.items()}
    return State(state.round, state.tensors | lora.tagged(IMPORTANCE, known))


def step(config: HSplitLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the last merge, ask for factors trained on the important layers, stack them."""
    layers = chosen_layers(config, context, state)
    part = fresh_adapters.on_layers(context, layers)
    sent = fresh_adapters.requests(config, context, state, cohort, layers)
    updates = SingleUpdates(config, cohort, server, sent, fresh_adapters.reading(
        "hsplitlora", TRAITS.instead, part, cohort))
    found = fresh_adapters.terms(config, context, updates)
    merge = fresh_adapters.stacked(part, found, updates.total)
    after = base_folding.after_merge(state, merge, updates.clients)
    return (State(cohort.round, after | _known(state)),
            updates.metrics(lora.norm(Adapter(merge, 1.0, 1)),
                            adapted_layers=float(len(part.shapes))))


def travels(config: HSplitLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes of factors up and down, at most, of one client that took part in the round before:
    those of all layers."""
    stacked = {layer: sum(context.rank_of(site)(layer) for site in sites)
               for layer in context.shapes}
    return (client_update.factor_bytes(context, client),
            base_folding.merge_bytes(context, round, stacked))


def kept_bytes(config: HSplitLoRAConfig, context: RunContext, client: str) -> int:
    """Nothing is sent beside the rounds."""
    return 0


def chosen_layers(config: HSplitLoRAConfig, context: RunContext,
                  state: State) -> list[str] | None:
    """The layers that get an adapter in the next round; None for all of them."""
    known = lora.under(IMPORTANCE, state.tensors)
    if not known:
        return None
    return most_important({layer: float(value) for layer, value in known.items()},
                          context.shapes, config.part)


def _known(state: State) -> Tensors:
    """What is known of importance, as the state holds it."""
    return lora.tagged(IMPORTANCE, lora.under(IMPORTANCE, state.tensors))


def _due(config: HSplitLoRAConfig, state: State) -> bool:
    """Whether importance is measured before the next round."""
    if config.part == 1:
        return False
    return state.round == 0 or (config.renew > 0 and state.round % config.renew == 0)
