"""Made-up clients for data that have no natural ones: equal shares, unequal sizes, or unequal
mixtures of labels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aulait.core.errors import DataError, did_you_mean, require
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.core.units import RecordGroup, unit_key, unit_place

Kind = Literal["iid", "dirichlet", "quantity"]


def deal(records: list[Record], kind: Kind, clients: int, floor: int, alpha: float,
         seed: int) -> list[list[Record]]:
    """Give every record to one of the clients.

    Args:
        records: distinct, in an order that depends on their content only.
        kind: "iid" deals at random in equal numbers (they differ by one at most); "quantity" at
            random in numbers from a Dirichlet distribution; "dirichlet" divides the records of
            every label in shares from its own Dirichlet distribution (Hsu, Qi and Brown, Measuring
            the effects of non-identical data distribution, 2019).
        clients: how many, at least 1.
        floor: the fewest records a client gets; "dirichlet" moves records from the largest clients
            to reach it.
        alpha: concentration, above 0; the smaller, the less equal.
        seed: of all random choices made here.

    Raises:
        DataError: fewer records than ``clients`` times ``floor``.
    """
    message = (
        f"found {len(records)} distinct records, expected at least {clients * floor} for {clients} "
        "clients"
    )
    require(len(records) >= clients * floor, DataError,
            f"{message}; lower data.clients or data.min_records")
    dice = np.random.default_rng(seed)
    dealt: list[list[Record]] = [[] for _ in range(clients)]
    if kind == "iid":
        _share(records, np.full(clients, 1 / clients), floor, dealt, dice)
    elif kind == "quantity":
        _share(records, _dirichlet(alpha, clients, dice), floor, dealt, dice)
    else:
        labels: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            labels[record.label or ""].append(record)
        for label in sorted(labels):
            _share(labels[label], _dirichlet(alpha, clients, dice), 0, dealt, dice)
        while len(smallest := min(dealt, key=len)) < floor:
            largest = max(dealt, key=len)
            smallest.append(largest.pop(int(dice.integers(len(largest)))))
    return dealt


def deal_by_hash(units: Sequence[RecordGroup], kind: Kind, clients: int, alpha: float,
                 seeds: Seeds) -> list[list[Record]]:
    """Give every unit to one of the clients by a hash of its key, whatever other units there are.

    The same kinds as ``deal``, but the clients' shares are met in expectation only. With
    "dirichlet" the shares of a label follow from the seed and the label; the label of a unit is
    that of its first record.

    Args:
        units: the records of each, in an order that depends on the unit's content only.
        kind: of the shares.
        clients: how many, at least 1.
        alpha: concentration, above 0.
        seeds: of the run.
    """
    dealt: list[list[Record]] = [[] for _ in range(clients)]
    ends: dict[str, NDArray[np.float64]] = {}
    purpose = seeds.integer("unit-partition")
    for unit in units:
        label = (unit[0].label or "") if kind == "dirichlet" else ""
        if label not in ends:
            ends[label] = np.cumsum(_shares(kind, clients, alpha,
                                            seeds.integer("unit-shares", client=label)))
        place = unit_place(purpose, unit_key(unit[0]))
        own = int(np.searchsorted(ends[label], place * ends[label][-1], side="right"))
        dealt[min(own, clients - 1)] += unit
    return dealt


def _shares(kind: Kind, clients: int, alpha: float, seed: int) -> NDArray[np.float64]:
    """The clients' shares of the units (of one label): equal, or from a Dirichlet distribution."""
    if kind == "iid":
        return np.full(clients, 1 / clients)
    return _dirichlet(alpha, clients, np.random.default_rng(seed))


def _dirichlet(alpha: float, clients: int, dice: np.random.Generator) -> NDArray[np.float64]:
    """Shares from a symmetric Dirichlet distribution; where its numbers leave the range of a
    double, from the distribution's limit: everything to one client (alpha towards 0), or to all
    alike."""
    shares: NDArray[np.float64] = dice.dirichlet([alpha] * clients)
    if np.isfinite(shares).all() and math.isclose(shares.sum(), 1.0, rel_tol=1e-6):
        return shares
    if alpha > 1:
        return np.full(clients, 1 / clients)
    whole: NDArray[np.float64] = np.eye(clients)[int(dice.integers(clients))]
    return whole


def _share(
    records: list[Record],
    shares: NDArray[np.float64],
    floor: int,
    dealt: list[list[Record]],
    dice: np.random.Generator,
) -> None:
    """Give every client ``floor`` records and its share of the others, rounded by largest
    remainder."""
    others = len(records) - floor * len(dealt)
    wanted = shares * others
    counts = np.floor(wanted).astype(int)
    counts[np.argsort(counts - wanted, kind="stable")[: others - int(counts.sum())]] += 1
    order = iter(dice.permutation(len(records)).tolist())
    for own, count in zip(dealt, counts, strict=True):
        own += [records[index] for index in islice(order, floor + int(count))]


def count(unseen: int | Sequence[str]) -> int:
    """How many clients are unseen, given as a number or by their names."""
    return unseen if isinstance(unseen, int) else len(unseen)


def named(unseen: int | Sequence[str]) -> Sequence[str]:
    """The unseen clients that are given by name."""
    return () if isinstance(unseen, int) else unseen


def unseen(clients: Sequence[str], asked: int | Sequence[str], smallest: int,
           seeds: Seeds) -> list[str]:
    """The clients that take no part, sorted: those that are named, or so many by their names and
    the seed.

    Raises:
        DataError: fewer than ``smallest`` clients would be left, or a name is no client's.
    """
    require(not asked or len(clients) - count(asked) >= smallest, DataError,
            f"data.unseen is {asked} and {len(clients)} clients were found, expected at least "
            f"{smallest} to be left that take part; lower data.unseen")
    if isinstance(asked, int):
        return sorted(sorted(clients, key=lambda name: (seeds.integer("unseen", client=name),
            name))[:asked])
    for name in asked:
        require(name in clients, DataError,
                f"data.unseen names '{name}', which is no client; {did_you_mean(name, clients)}")
    return sorted(asked)
