"""The engine without a network: every site lives in this process and trains together with its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aulait.algorithms import evolution
from aulait.algorithms.contract import Ask, Setting
from aulait.embed import Embedder
from aulait.train import Learner
from aulait.types import Order, Reply, Site

AT_ONCE = 64  # replies in memory; enough neighbours of similar length for every pass to pad little


def connect(sites: Mapping[str, Site], method: Any, setting: Setting, learner: Learner, embedder: Embedder | None) -> Ask:
    """A way to get replies for orders from sites in this process.

    Args:
        sites: by name; orders name the site they are for.
        method: module whose ``answer`` handles orders of stage "train".
        setting: what all sites know.
        learner: the shared base.
        embedder: for orders of stage "synthesis"; None when there are none.
    """

    def ask(orders: Sequence[Order]) -> Iterator[Reply]:
        for first in range(0, len(orders), AT_ONCE):
            some = orders[first : first + AT_ONCE]
            chosen = [sites[order.client] for order in some]
            if some[0].stage == "synthesis":
                assert embedder is not None
                yield from evolution.answer(some, chosen, embedder)
            else:
                yield from method.answer(some, chosen, setting, learner)

    return ask
