"""What an experiment file means where it chooses nothing for its two stages: under privacy, with
clients that train beside clients that vote, text is retrieved by the votes, and ``cores`` train in
the basis of that text, at the rank that the noise allows.

A file that says anything about its method, its adapter's size or its stages keeps the defaults of
the single keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aulait.core.files import JsonMapping, JsonObject

# keys of tables that leave the choice open
_OPEN: Final = {
    "adapter": {"alpha", "targets", "scaling"},
    "synthesis": {"texts", "proxy_count", "embedder", "max_tokens", "voters", "retrieve"},
    "algorithm": set[str](),
}


def with_usual_stages(tree: JsonMapping) -> JsonObject:
    """The tree with method, rank and source of the synthetic text written out where nothing of it
    is chosen; the tree itself elsewhere.

    Args:
        tree: tables of an experiment; they may still be wrong.
    """
    tables = {name: tree.get(name, {}) for name in (*_OPEN, "privacy", "federation", "run")}
    if not all(isinstance(table, Mapping) for table in tables.values()):
        return dict(tree)
    open_ = all(set(tables[name]) <= keys for name, keys in _OPEN.items())
    privacy, federation = tables["privacy"], tables["federation"]
    private = bool(privacy) and not privacy.get("off") and privacy.get("unit", "client") == "client"
    if not (open_ and private and "preset" not in federation and _both(federation.get("tier"))):
        return dict(tree)
    return {**tree, "algorithm": {"name": "cores"},
            "adapter": {"rank": "auto", **tables["adapter"]},
            "synthesis": {"source": "retrieve", **tables["synthesis"]}}


def _both(tiers: object) -> bool:
    """Whether some tiers train and some vote, none at a rank of its own; those of the defaults
    do."""
    if tiers is None:
        return True
    if not isinstance(tiers, list | tuple):
        return False
    written = [tier for tier in tiers if isinstance(tier, Mapping)]
    own = any({"rank", "attention_rank"} & {*tier} for tier in written)
    return not own and {"local", "proxy"} <= {tier.get("placement") for tier in written}
