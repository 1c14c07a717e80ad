"""Which of one client's records train and which are held out.

By count (``split_holdout``) both parts have exact sizes, so that one record more may move others.
By hash (``split_by_hash``) every unit is looked at alone: one unit more or less changes either part
by its own records and by no others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from aulait.core.errors import DataError, require
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.core.units import unit_key, unit_place, units
from aulait.data.config import DataConfig
from aulait.data.record_store import picked
from aulait.data.unit_rule import UnitRule


@dataclass(frozen=True, slots=True)
class ClientData:
    """A client's records; both parts are sensitive.

    Attributes:
        train: at most ``records_per_client`` records, in random order; the same ones during the
            whole run. By hash, all records of at most so many units, unit by unit.
        holdout: records of the same client that are never in ``train``.
    """

    train: Sequence[Record]
    holdout: Sequence[Record]


def split_holdout(name: str, records: Sequence[Record], config: DataConfig,
                  seeds: Seeds) -> ClientData:
    """Hold-out first, then the cap on both parts; ``records`` are distinct and sorted."""
    cap, part = config.records_per_client, config.holdout
    held = min(max(1, round(len(records) * part)), len(records) - 1) if part > 0 else 0
    order = torch.randperm(len(records), generator=seeds.generator("holdout", client=name)).tolist()
    rest = sorted(order[held:])
    chosen = torch.randperm(len(rest), generator=seeds.generator("cap", client=name)).tolist()[:cap]
    holdout_cap = max(1, round(cap * part / (1 - part)))
    holdout = picked(records, order[: min(held, holdout_cap)])
    return ClientData(picked(records, [rest[index] for index in chosen]), holdout)


def split_by_hash(name: str, records: Sequence[Record], config: DataConfig,
                  seeds: Seeds) -> ClientData:
    """Share and hold-out, each unit for itself; nothing is capped, and a part may be empty.

    The order is that of another hash of the unit: whoever takes the first ones gets a fair sample.
    """
    used, held, order = (seeds.integer(f"unit-{purpose}", client=name)
                         for purpose in ("share", "holdout", "order"))
    places: dict[str, list[int]] = {}  # of each unit's records, units in the order of their first
    for index, record in enumerate(records):
        places.setdefault(unit_key(record), []).append(index)
    keys = [key for key in places if unit_place(used, key) < config.share]
    parts: tuple[list[int], list[int]] = ([], [])
    for key in sorted(keys, key=lambda key: (unit_place(order, key), key)):
        parts[unit_place(held, key) < config.holdout].extend(places[key])
    return ClientData(*(picked(records, part) for part in parts))


def refuse_full(clients: Mapping[str, ClientData], config: DataConfig, rule: UnitRule) -> None:
    """Refuse a cap that binds: by it one unit would push another out."""
    counts = {name: len(units(client.train)) for name, client in clients.items()}
    name = max(counts, key=lambda name: counts[name], default="")
    most, cap = counts.get(name, 0), config.records_per_client
    share = math.floor(90 * config.share * cap / most) / 100 if most else 1.0
    less = f", or use a part of every client's units: data.share = {share:g}" if share else ""
    require(most <= cap, DataError,
            f"client '{name}' has {most} {rule.noun} to train on and they are chosen by hash, where"
            f" a cap may not bind: one unit would push out another; expected at most "
            f"data.records_per_client = {cap}; raise it to {most}{less}")
