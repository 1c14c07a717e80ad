"""FedEx-LoRA: FedIT's factors, and what they miss of the mean of the products goes into the base.

what: A = mean A_k, B = mean B_k, W0 <- W0 + s (mean(B_k A_k) - B A); clients go on from A and B on
the new base.
source: Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient
    Fine-Tuning of Foundation Models", ACL 2025, arXiv 2410.09432.
travels: up 4 · sum over layers r_k (M + N) bytes; down the same, and after the first round the
    residual as factors, 4 · sum (sum_j r_j + R) (M + N), j all sites of the round before; 4 · sum M
    N in its place for a client that missed one.
privacy: refused under client-level privacy: the residual needs the mean of single products (noise
    on products was measured with FlexLoRA, docs/decisions/0007). Nearest: 'ffa', exact as well, or
    'fedit'.
differs: the server keeps the total update G; a client's base holds G less the product it is sent, s
    B A at its ranks, which is the paper's residual at equal ranks and stays exact at unequal ones.
    The reference code transposes the residual, right for GPT-2 only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import Adapter, Info, Order, Reply, Site, Tensors
from aulait.methods.contract import Ask, Setting, State, Traits
from aulait.methods.shared import base_folding, client_update
from aulait.methods.shared.per_client import FactorMean, Singles
from aulait.methods.shared.weighted_mean import MixtureConfig, orders
from aulait.privacy.aggregator import Door
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="A and B averaged, the residual of the products folded into the base",
    source="Singhal, Ponkshe, Vepakomma, FedEx-LoRA, ACL 2025, arXiv 2410.09432",
    up="4 sum r_k (M + N)",
    down="4 sum r_k (M + N), then 4 sum (sum_j r_j + R + r_k) (M + N)",
    privacy="refused: the residual needs the mean of single products",
    differs="the residual travels as factors and is exact at unequal ranks",
    unequal_ranks=True,
    exact="yes",
    private=False,
    secure=False,
    instead="ffa",
)


class Config(MixtureConfig):
    """``[algorithm] name = "fedex"``."""


def init(config: Config, setting: Setting) -> State:
    """The common start, nothing folded yet."""
    return State(0, lora.to_tensors(lora.initial(setting.shapes, setting.rank, setting.alpha,
        setting.seeds)))


def step(config: Config, setting: Setting, state: State, cohort: Cohort, ask: Ask,
         door: Door) -> tuple[State, Info]:
    """Send factors and last residual, average the factors, stack the products."""
    theta = {name: t for name, t in state.tensors.items() if "/" not in name}
    factors = orders(setting, cohort, theta)
    sent = [Order(o.client, o.stage, o.round, o.tensors | base_folding.sent(state, o.client),
                  o.settings) for o in factors]
    forms = {order.client: order.tensors for order in factors}
    singles = Singles(config, cohort, ask, door, sent, forms, "fedex", TRAITS.instead)
    mean, terms = FactorMean(theta), []
    for weight, reply in singles:
        mean.add(weight, reply.share)
        terms.append((weight, reply))
    after = mean.mean()
    stack = {layer: (torch.zeros(1, n), torch.zeros(m, 1)) for layer,
             (m, n) in setting.shapes.items()}
    if singles.total > 0:
        stack = {layer: _moved(setting, layer, theta,
            [(w / singles.total, reply) for w, reply in terms]) for layer in stack}
    norm = lora.norm(Adapter(stack, 1.0, 1))
    return State(cohort.round, after | base_folding.folded(state, stack,
        singles.clients)), singles.told(update_norm=norm)


def answer(orders: Sequence[Order], sites: Sequence[Site], setting: Setting,
           learner: Learner) -> list[Reply]:
    """Fold what was sent, train on from the sent factors; the share is A and B."""
    starts = [lora.from_tensors(_factors(order), setting.alpha, setting.rank) for order in orders]
    rest: dict[tuple[int, ...], Tensors] = {}  # sites of equal G and equal factors share one base
    folds: list[object] = []
    for start, whole in zip(starts, base_folding.received(orders, sites), strict=True):
        key = (id(whole), *(a.shape[0] for a, _ in start.factors.values()))
        if whole and key not in rest:
            rest[key] = lora.subtract(whole, lora.dense(start))
        folds.append(rest.get(key))
    done = client_update.train(
        orders, sites, setting, learner, lambda order, _: lora.from_tensors(_factors(order),
            setting.alpha, setting.rank), "AB", fold=folds)
    return [client_update.reply(site, lora.to_tensors(after.adapter), after) for site,
            (_, after) in zip(sites, done, strict=True)]


def result(setting: Setting, state: State) -> Adapter:
    """The total update."""
    return base_folding.as_adapter(setting, state)


def travels(config: Config, setting: Setting, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client that took part in the round before."""
    stacked = {layer: setting.rank + sum(setting.rank_of(site)(layer) for site in sites)
               for layer in setting.shapes}
    factors = client_update.factor_bytes(setting, name)
    return factors, factors + base_folding.stack_bytes(setting, round, stacked)


def _factors(order: Order) -> Tensors:
    return {name: t for name, t in order.tensors.items() if "/" not in name}


def _moved(setting: Setting, layer: str, theta: Tensors,
           terms: Sequence[tuple[float, Reply]]) -> tuple[torch.Tensor, torch.Tensor]:
    """How the mean product moved, as factors: s sum p_k B_k A_k - s B diag(q) A, q_j the weight of
    those who own column j."""
    scale = setting.alpha / setting.rank
    a, b = theta[f"{layer}.A"], theta[f"{layer}.B"]
    owned_R = torch.zeros(setting.rank)
    for weight, reply in terms:
        owned_R[: reply.share[f"{layer}.A"].shape[0]] += weight
    stacked_a = [weight * scale * reply.share[f"{layer}.A"] for weight, reply in terms]
    stacked_b = [reply.share[f"{layer}.B"] for _, reply in terms]
    return torch.cat([*stacked_a, -scale * owned_R[:, None] * a]), torch.cat([*stacked_b, b], dim=1)
