"""FLoRIST: FLoRA's stacks, decomposed exactly and cut to the rank that holds a part of the energy.

The mean of the clients' products, B A of the stacks, has the singular values sigma_1 >= sigma_2 >=
... The server keeps the smallest rank p with sigma_1^2 + ... + sigma_p^2 >= tau times the sum of
all squares, layer by layer, and folds U_p S_p V_p^T into the base; the next round begins with fresh
adapters, as in FLoRA. Down travel factors of rank p instead of the whole stack. The paper
decomposes both stacks and then a core of the size of the ranks; here both are reduced by QR, which
gives the same values, and where the ranks together are large the sum is formed instead.

tau = 1 keeps everything and is FLoRA. p follows from the clients' factors, so bytes down are known
afterwards only: the formula is a bound. The server reads every client's factors, so client-level
privacy is refused.

what: FLoRA whose merge is cut, layer by layer, to the rank that holds a part tau of its energy
source: Ramesh, Dass, FLoRIST, MLSys 2026, arXiv 2506.09199
travels: up 4 sum r_k (M + N); down at most 4 sum min(sum_j r_j, M, N) (M + N) after the first round
privacy: refused for clients: a stack shows every client's factors. Records: DP-SGD at the site
differs: the common scale is alpha / R instead of 2; a client that missed a round is sent the whole
    update; QR instead of two decompositions
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

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
from aulait.models.low_rank import Merge, ProductSum

TRAITS = described(__name__, __doc__, Abilities(
    private=False, secure=False, instead="ffa", units=("record",), folds=True))


class FLoRISTConfig(fresh_adapters.FreshConfig):
    """``[algorithm] name = "florist"``.

    Attributes:
        energy: tau in (0, 1], the part of the merge's squared singular values that is kept.
    """

    energy: float = Field(0.9, gt=0, le=1)


Config = FLoRISTConfig


def init(config: FLoRISTConfig, context: RunContext) -> State:
    """Nothing folded yet."""
    return State(0, {})


def step(config: FLoRISTConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send the last merge, ask for trained factors, decompose their mean and cut it."""
    sent = fresh_adapters.requests(config, context, state, cohort)
    updates = SingleUpdates(config, cohort, server, sent, fresh_adapters.reading(
        "florist", TRAITS.instead, context, cohort))
    found = fresh_adapters.terms(config, context, updates)
    sums = Merge(context.shapes)
    for weight, own in found:
        sums.add(weight / updates.total, own)
    merge = {layer: cut(sums.layers[layer], config.energy) for layer in context.shapes}
    after = base_folding.after_merge(state, merge, updates.clients)
    kept = sum(len(a_RN) for a_RN, _ in merge.values()) / max(1, len(merge))
    return (State(cohort.round, after),
            updates.metrics(lora.norm(Adapter(merge, 1.0, 1)), kept_rank=kept))


def travels(config: FLoRISTConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up, and at most so many down, of one client that took part in the round before."""
    most = {layer: min(sum(context.rank_of(site)(layer) for site in sites), *shape)
            for layer, shape in context.shapes.items()}
    return (client_update.factor_bytes(context, client),
            base_folding.merge_bytes(context, round, most))


def cut(total: ProductSum, energy: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The best factors of the smallest rank that holds a part of a sum's energy; of rank one, and
    zero, where the sum is nothing."""
    squares = total.singular_values().square()
    rank = total.rank_bound
    if energy < 1 and len(squares):
        rank = 1 + int((squares.cumsum(0) < energy * squares.sum()).sum())
    return total.truncated(max(1, min(rank, total.rank_bound)))
