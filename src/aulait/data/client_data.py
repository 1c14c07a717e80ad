"""Who owns which texts: fields of rows become records, records become clients, each with a cap and
a hold-out.

Every choice is drawn from the run's seed and from the content alone: the order of the rows in a
file changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from aulait.core.errors import DataError, require
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.data import config as data_settings
from aulait.data import public, sources
from aulait.data.config import AT_SITES
from aulait.data.config import DataConfig as DataConfig
from aulait.data.config import problems as problems
from aulait.data.partitions import Kind, deal, named, unseen

Clients = dict[str, list[Record]]
NAMED_ROWS = 1_000
EVERYONE = "everyone"


@dataclass(frozen=True)
class ClientData:
    """A client's records; both parts are sensitive.

    Attributes:
        train: at most ``records_per_client`` records, in random order; the same ones during the
            whole run.
        holdout: records of the same client that are never in ``train``.
    """

    train: tuple[Record, ...]
    holdout: tuple[Record, ...]


@dataclass(frozen=True)
class Corpus:
    """All data of a run.

    Attributes:
        clients: by name, sorted by name.
        public: distinct public texts in a fair order; pairs where the data have prompts and the
            public source has too.
        malformed: "data.jsonl line 17: no field 'text'"; at most 1,000 rows, then one line with the
            total.
        left_out: number of clients with fewer than ``min_records`` distinct records.
        unseen: records by clients that take no part, at most ``records_per_client`` each, sorted by
            name; sensitive.
    """

    clients: dict[str, ClientData]
    public: tuple[str, ...] | tuple[Record, ...]
    malformed: tuple[str, ...]
    left_out: int
    unseen: dict[str, tuple[Record, ...]] = field(default_factory=dict)


class Faults:
    """Malformed rows: all are counted, the first 1,000 are named."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.total = 0

    def add(self, place: str, fault: str) -> None:
        """Count one row, and name it while there is room."""
        self.total += 1
        if self.total <= NAMED_ROWS:
            self.named.append(f"{place}: {fault}")

    def lines(self) -> tuple[str, ...]:
        """What was named, and the total where that is more."""
        more = self.total - len(self.named)
        return (
            (*self.named, f"and {more} more malformed rows ({self.total} in total)") if more
            else tuple(self.named)
        )


def load_clients(config: DataConfig, seeds: Seeds) -> Corpus:
    """Read, check, deduplicate, partition, split and cap.

    Random, from ``seeds``: the made-up clients of a partition, which clients are kept and which
    unseen, hold-outs and caps. A client's records are chosen without a look at any other client, so
    a text that two clients share may be in the training records of one and the hold-out of the
    other.

    Raises:
        DataError: a problem of the settings, no usable row, too few clients, or no public text.
    """
    found = problems(config)
    require(not found, DataError, "; ".join(found))
    require(config.source != AT_SITES, DataError,
            f"data.source = '{AT_SITES}' found, the records lie at the sites; run it by 'aulait "
            "serve', or name a source here")
    faults = Faults()
    groups = gather(config, faults)
    if config.partition != "natural":
        groups = _made_up(groups[EVERYONE], config.partition, config, seeds)
    kept = {name: records for name, records in groups.items() if len(records) >= config.min_records}
    left_out = len(groups) - len(kept)
    kept = _choose(kept, left_out, config, seeds)
    apart = _apart(kept, config, seeds)
    clients = {name: split_holdout(name, kept[name], config, seeds) for name in sorted(kept)
               if name not in apart}
    if config.pooled:
        parts = [(part.train, part.holdout) for part in clients.values()]
        clients = {EVERYONE: ClientData(*(tuple(record for own in side for record in own)
            for side in zip(*parts, strict=True)))}
    return Corpus(clients, _public(config, faults), faults.lines(), left_out, apart)


def own(config: DataConfig, name: str, seeds: Seeds) -> ClientData:
    """One client's records from its own source, chosen as ``load`` would choose them from
    everybody's.

    Args:
        config: caps and fields; ``client`` names the field that must hold ``name``, "" takes every
            row.
        name: of the client.
        seeds: of the run.

    Raises:
        DataError: no usable row, or fewer than ``min_records``.
    """
    found = problems(config)
    require(not found, DataError, "; ".join(found))
    groups = gather(config, Faults())
    records = groups.get(name if data_settings.named(config) else EVERYONE, [])
    require(len(records) >= config.min_records, DataError,
            f"data.source '{config.source}' has {len(records)} distinct records of '{name}', "
            f"expected at least {config.min_records}; check data.source and data.client of the "
            "site file")
    return split_holdout(name, records, config, seeds)


def at_sites(config: DataConfig, names: Mapping[str, int]) -> Corpus:
    """A corpus whose records lie elsewhere: of every client only how many there are, and the public
    texts.

    Args:
        config: of the public texts.
        names: client -> records that it may be known to have; 0 where that is not told.
    """
    faults = Faults()
    # each of them is a unit of its own, as far as is known here
    clients = {name: ClientData(tuple(Record("", unit=str(i)) for i in range(names[name])), ())
               for name in sorted(names)}
    return Corpus(clients, _public(config, faults), faults.lines(), 0)


def gather(config: DataConfig, faults: Faults) -> Clients:
    """Distinct records by client, sorted by content; a client without a usable row has none."""
    found: defaultdict[str, set[Record]] = defaultdict(set)
    rows = 0
    for row in sources.rows(config.source):
        rows += 1
        if row.fields is None:
            faults.add(row.place, row.fault)
            continue
        try:
            records = found[sources.name_field(row.fields, config.client)
                            if data_settings.named(config)
                            else EVERYONE]
            records.add(_record(row.fields, config))
        except ValueError as error:
            faults.add(row.place, str(error))
    first = f"; first fault: {faults.named[0]}" if faults.named else ""
    message = (
        f"data.source '{config.source}': found no usable row among {rows}{first}; check the file "
        "and the fields"
    )
    require(any(found.values()), DataError, message)
    return {name: _distinct(records) for name, records in found.items()}


def _distinct(records: set[Record]) -> list[Record]:
    """Sorted by content; of records that differ in the label only, the one with the first label."""
    first: dict[tuple[str, str], Record] = {}
    for record in sorted(records, key=lambda r: (r.prompt or "", r.text, r.label or "")):
        first.setdefault((record.prompt or "", record.text), record)
    return list(first.values())


def _record(fields: Mapping[str, object], config: DataConfig) -> Record:
    label = None if config.label is None else sources.name_field(fields, config.label)
    if config.prompt is None or config.response is None:
        return Record(sources.text_field(fields, config.text), None, label)
    return Record(sources.text_field(fields, config.response),
                  sources.text_field(fields, config.prompt), label)


def _choose(kept: Clients, left_out: int, config: DataConfig, seeds: Seeds) -> Clients:
    """The clients that take part; which ones are kept depends on their names and the seed."""
    floor = f"with at least {config.min_records} records ({left_out} left out)"
    require(bool(kept), DataError,
            f"found no client {floor}, expected at least 2; lower data.min_records")
    if len(kept) == 1 and not config.pooled:
        advice = "name another field with data.client, choose a partition, or data.pooled = true"
        raise DataError(f"found one client '{next(iter(kept))}', expected at least 2; {advice}")
    if config.clients is None or config.partition != "natural":
        return kept
    enough = config.clients <= len(kept)
    require(enough, DataError,
            f"found {len(kept)} clients {floor}, expected {config.clients}; lower data.clients")
    order = sorted(kept, key=lambda name: (name not in named(config.unseen),
        seeds.integer("clients", client=name), name))
    return {name: kept[name] for name in order[: config.clients]}


def _apart(kept: Clients, config: DataConfig, seeds: Seeds) -> dict[str, tuple[Record, ...]]:
    """The unseen clients and the records they are evaluated on."""
    whole = config.model_copy(update={"holdout": 0.0})  # the cap alone
    names = unseen(list(kept), config.unseen, 1 if config.pooled else 2, seeds)
    return {name: split_holdout(name, kept[name], whole, seeds).train for name in names}


def split_holdout(name: str, records: list[Record], config: DataConfig, seeds: Seeds) -> ClientData:
    """Hold-out first, then the cap on both parts; ``records`` are distinct and sorted."""
    cap, part = config.records_per_client, config.holdout
    held = min(max(1, round(len(records) * part)), len(records) - 1) if part > 0 else 0
    order = torch.randperm(len(records), generator=seeds.generator("holdout", client=name)).tolist()
    rest = sorted(order[held:])
    chosen = torch.randperm(len(rest), generator=seeds.generator("cap", client=name)).tolist()[:cap]
    holdout_cap = max(1, round(cap * part / (1 - part)))
    holdout = tuple(records[index] for index in order[: min(held, holdout_cap)])
    return ClientData(tuple(records[rest[index]] for index in chosen), holdout)


def _made_up(records: list[Record], kind: Kind, config: DataConfig, seeds: Seeds) -> Clients:
    """Clients "client-0", ... of a partition."""
    count = config.clients or 2
    dealt = deal(records, kind, count, config.min_records, config.dirichlet_alpha,
                 seeds.integer("partition"))
    width = len(str(count - 1))
    return {f"client-{index:0{width}d}": _distinct(set(own)) for index, own in enumerate(dealt)}


def _public(config: DataConfig, faults: Faults) -> tuple[str, ...] | tuple[Record, ...]:
    """Public texts, or pairs where the data have prompts and the public source has too."""
    if not config.public:
        return ()
    found, wrong = public.read_public(config.public, config.public_text, None if config.public_plain
                               else data_settings.pair(config))
    for place, fault in wrong:
        faults.add(place, fault)
    return found
