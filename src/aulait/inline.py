"""The engine without a network: every site lives in this process and trains together with its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aulait.algorithms import evolution
from aulait.algorithms.contract import Ask, Setting
from aulait.embed import Embedder
from aulait.train import Learner
from aulait.types import Order, Reply, Site


def connect(sites: Mapping[str, Site], method: Any, setting: Setting, learner: Learner, embedder: Embedder | None) -> Ask:
    """A way to get replies for orders from sites in this process.

    Args:
        sites: by name; orders name the site they are for.
        method: module whose ``answer`` handles orders of stage "train".
        setting: what all sites know.
        learner: the shared base.
        embedder: for orders of stage "synthesis"; None when there are none.
    """

    def ask(orders: Sequence[Order]) -> list[Reply]:
        if not orders:
            return []
        chosen = [sites[order.client] for order in orders]
        if orders[0].stage == "synthesis":
            assert embedder is not None
            return evolution.answer(orders, chosen, embedder)
        replies: list[Reply] = method.answer(orders, chosen, setting, learner)
        return replies

    return ask
