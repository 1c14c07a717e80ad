"""FLoRA: the clients' factors stacked, so that the product of the stacks is the mean of the
products; folded into the base weights.

A = [p_1 s_1 A_1; ...; p_K s_K A_K], B = [B_1, ..., B_K], W0 <- W0 + B A. The scale s_k is folded
into A, so any ranks may meet. In the paper's code alpha is twice the rank of every client, so that
all have one scale: scale = "common" gives everyone alpha / R. scale = "own" gives alpha / r_k, with
which clients of low rank take larger steps. Every round begins with fresh adapters, drawn from the
run's seed.

Down travel the stacks of all sites j of the round before, proxies among them; a client that missed
a round is sent the whole update, 4 · sum M N bytes. A stack shows every client's factors, so
client-level privacy is refused; 'ffa' is exact as well.

what: factors stacked and folded into the base, fresh adapters in every round
source: Wang et al., FLoRA, NeurIPS 2024, arXiv 2409.05976
travels: up 4 sum r_k (M + N); down 4 sum (sum_j r_j) (M + N) after the first round
privacy: refused for clients: a stack shows every client's factors. Records: DP-SGD at the site
differs: the common scale is alpha / R instead of 2; a client that missed a round is sent the whole
    update
unequal ranks: yes
exact: yes
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, Info
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import base_folding, client_update, fresh_adapters
from aulait.methods.shared.base_folding import missed_bytes as missed_bytes
from aulait.methods.shared.fresh_adapters import answer as answer
from aulait.methods.shared.fresh_adapters import result as result
from aulait.methods.shared.per_client import SingleUpdates

TRAITS = described(__name__, __doc__, Abilities(
    private=False, secure=False, instead="ffa", units=("record",), folds=True))


class FLoRAConfig(fresh_adapters.FreshConfig):
    """``[algorithm] name = "flora"``."""


Config = FLoRAConfig


def init(config: FLoRAConfig, context: RunContext) -> State:
    """Nothing folded yet."""
    return State(0, {})


def step(config: FLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the last merge, ask for trained factors, stack them."""
    sent = fresh_adapters.requests(config, context, state, cohort)
    updates = SingleUpdates(config, cohort, server, sent, fresh_adapters.reading(
        "flora", TRAITS.instead, context, cohort))
    found = fresh_adapters.terms(config, context, updates)
    merge = fresh_adapters.stacked(context, found, updates.total)
    after = base_folding.after_merge(state, merge, updates.clients)
    return (State(cohort.round, after),
            updates.metrics(lora.norm(Adapter(merge, 1.0, 1))))


def travels(config: FLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client that took part in the round before."""
    stacked = {layer: sum(context.rank_of(site)(layer) for site in sites)
               for layer in context.shapes}
    return (client_update.factor_bytes(context, client),
            base_folding.merge_bytes(context, round, stacked))
