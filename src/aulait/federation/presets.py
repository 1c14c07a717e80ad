"""Ready-made tiers: FlexLoRA's four client types in its four resource distributions.

Type 1 has rank 8, type 2 rank 30, type 3 rank 30 in attention and 200 elsewhere, type 4 rank 200,
of an adapter of rank 200; with another ``adapter.rank`` R the ranks are those parts of R, at least
1. "equal" gives everyone all of it.

Source: Bai et al., FlexLoRA, NeurIPS 2024, Table 1 and the reference code's draws. Differs: shares
are exact, the code
draws every client by itself; "normal" gives most clients the two middle types, as the paper's
Figure 3 says (the code gives 44 percent to the largest type).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from aulait.core.errors import ConfigError, did_you_mean, require
from aulait.core.files import JsonMapping, JsonObject
from aulait.federation.tiers import TierConfig

TYPES = {"type 1": (8, None), "type 2": (30, None), "type 3": (200, 30), "type 4": (200, None)}
SHARES = {
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "heavy-tail-light": (0.80, 0.05, 0.05, 0.10),
    "heavy-tail-strong": (0.05, 0.05, 0.10, 0.80),
    "normal": (0.0575, 0.4425, 0.4425, 0.0575),
    "equal": (0.0, 0.0, 0.0, 1.0),  # ours: everyone affords the whole adapter
}


def tiers(name: str, rank: int) -> list[JsonObject]:
    """The tiers of a distribution for an adapter of a rank, the largest machines first.

    Raises:
        ConfigError: there is no distribution of that name.
    """
    require(name in SHARES, ConfigError,
            f"federation.preset '{name}' is unknown; {did_you_mean(name, SHARES)}")
    found = []
    for (label, (full, attention)), share in reversed([*zip(TYPES.items(), SHARES[name],
            strict=True)]):
        if not share:
            continue
        tier: JsonObject = {"name": label, "share": share, "placement": "local",
                                "rank": _part(full, rank)}
        found.append(tier if attention is None
                     else tier | {"attention_rank": _part(attention, rank)})
    return found


def expanded(tree: JsonMapping) -> JsonObject:
    """The settings with the tiers of ``federation.preset`` in place, when there is one and no tiers
    are written.

    Raises:
        ConfigError: the preset is unknown, or tiers are written too.
    """
    federation = tree.get("federation")
    if not isinstance(federation, Mapping) or federation.get("preset") is None:
        return dict(tree)
    rank = (
        tree.get("adapter", {}).get("rank", 8) if isinstance(tree.get("adapter", {}), Mapping)
        else 8
    )
    made = tiers(str(federation["preset"]), rank if isinstance(rank, int) else 8)
    written = federation.get("tier")
    text = "federation.preset and federation.tier are both written; keep one of them"
    require(written is None or _same(written, made), ConfigError, text)
    return {**tree, "federation": {**federation, "tier": made}}


def _same(written: Any, made: list[JsonObject]) -> bool:
    """Whether written tiers are those of the preset, with nothing but defaults beside."""
    try:
        return [TierConfig(**tier) for tier in written] == [TierConfig(**tier) for tier in made]
    except (TypeError, ValidationError):
        return False


def _part(of_200: int, rank: int) -> int:
    return max(1, round(rank * of_200 / 200))
