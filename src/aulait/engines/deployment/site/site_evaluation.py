"""What a site measures on its held-out records; the records never leave it.

Without privacy a site tells its sums (nats, tokens right, tokens). Under privacy it measures for
its own log and tells nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from aulait.core import lora
from aulait.core.errors import WireError, require
from aulait.core.types import Adapter, Tensors
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.tensor_codec import tensors
from aulait.engines.deployment.site.load_session import SiteSession
from aulait.evaluation.losses import evaluate, totals
from aulait.methods.contract import PersonalMethod, State
from aulait.models import peft_export


def measured(house: SiteSession, packet: Packet, memory: dict[str, Any], folder: Path) -> dict[str,
        Any]:
    """What a site finds on its held-out records, and what it may keep.

    Args:
        house: of the run at the site.
        packet: says what to wear: "base", "adapter", or the "state" of a method that makes personal
            adapters.
        memory: of the site.
        folder: of the run at the site; after the last round the adapter that this client would use
            is written there.

    Returns:
        "log": for the site's own log; "told": what the coordinator may hear without privacy.
    """
    found, shared, final = tensors(packet.head.get("tensors"),
        packet.body), None, bool(packet.head.get("final"))
    worn: Adapter | None = None
    if packet.head.get("what") == "adapter":
        worn = _given(packet, found)
    elif packet.head.get("what") == "state":
        state = State(int(packet.head["round"]), found)
        shared = house.brief.method.result(house.context, state)
        site = house.site(memory)
        method = house.brief.method
        own = (
            method.personal(house.brief.method_config, house.context, state, [site],
                            house.learner, final) if isinstance(method, PersonalMethod) else {})
        worn = own.get(site.name, shared)
    told = _sums(house, worn)
    if shared is not None and final:
        told["shared"] = _sums(house, shared)["sums"]
    if final and worn is not None:
        peft_export.export(worn, house.base, folder / "adapter")
    nats, _, count = told["sums"]
    return {"log": {"loss": nats / count if count else None, "what": packet.head.get("what")},
            "told": told}


def _given(packet: Packet, found: Tensors) -> Adapter:
    """The adapter in a message.

    Raises:
        WireError: its scale is no number.
    """
    alpha, rank = packet.head.get("alpha"), packet.head.get("rank")
    sound = (
        isinstance(alpha, int | float) and math.isfinite(alpha)
        and (rank is None or (isinstance(rank, int) and rank > 0))
    )
    require(sound, WireError, "an adapter whose alpha or rank is no number")
    return lora.from_tensors(found, float(packet.head["alpha"]), rank)


def _sums(house: SiteSession, worn: Adapter | None) -> dict[str, Any]:
    name, config = house.brief.client, house.brief.evaluate
    holdout = {name: house.records.holdout}
    sums = totals(house.learner, worn, holdout, config).get(name, (0.0, 0.0, 0.0))
    told: dict[str, Any] = {"sums": list(sums)}
    if config.task != "none" and house.records.holdout:
        scores = evaluate(house.learner, worn, holdout, config).task
        told["task"] = {key: value for key, value in scores.items() if math.isfinite(value)}
    return told
