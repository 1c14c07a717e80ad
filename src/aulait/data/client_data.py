"""Who owns which texts: fields of rows become records, records become clients, each with a cap and
a hold-out.

Every choice is drawn from the run's seed and from the content alone: the order of the rows in a
file changes nothing. By hash (``unit_rule``) a unit is moreover chosen by its own key alone, so
that one unit more or less changes the training records and the hold-out by its own records and by
no others. What is public there, and may decide: the clients' names, and how many units each has.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from aulait.core.errors import DataError, require
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.core.units import placeholders, units
from aulait.data import config as data_settings
from aulait.data import formats, public, sources
from aulait.data.checks import problems as problems
from aulait.data.checks import public_form
from aulait.data.checks import resolved as resolved
from aulait.data.config import AT_SITES
from aulait.data.config import DataConfig as DataConfig
from aulait.data.distinct import distinct, distinct_numbers, lead
from aulait.data.partitions import Kind, deal, deal_by_hash, named, unseen
from aulait.data.record_store import RecordStore
from aulait.data.splits import ClientData as ClientData
from aulait.data.splits import refuse_full, split_by_hash, split_holdout
from aulait.data.unit_rule import UnitRule

Clients = Mapping[str, Sequence[Record]]
NAMED_ROWS = 1_000
EVERYONE = "everyone"
BY_COUNT = UnitRule()


@dataclass(frozen=True)
class Corpus:
    """All data of a run.

    Attributes:
        clients: by name, sorted by name.
        public: distinct public texts in a fair order; pairs where the data have prompts and the
            public source has too.
        malformed: "data.jsonl line 17: no field 'text'"; at most 1,000 rows, then one line with the
            total.
        left_out: number of clients with fewer than ``min_records`` distinct records (by hash:
            units, or none to train on).
        unseen: records by clients that take no part, at most ``records_per_client`` each (by hash:
            all), sorted by name; sensitive.
    """

    clients: dict[str, ClientData]
    public: tuple[str, ...] | tuple[Record, ...]
    malformed: tuple[str, ...]
    left_out: int
    unseen: dict[str, Sequence[Record]] = field(default_factory=dict)


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


def load_clients(config: DataConfig, seeds: Seeds, rule: UnitRule = BY_COUNT, *,
                 by_owner: bool = False) -> Corpus:
    """Read, check, deduplicate, partition, split and cap.

    Random, from ``seeds``: the made-up clients of a partition, which clients are kept and which
    unseen, hold-outs and caps. A client's records are chosen without a look at any other client, so
    a text that two clients share may be in the training records of one and the hold-out of the
    other.

    With ``by_owner``, clients whose records will be pooled later stay apart; one is enough.

    Raises:
        DataError: a problem of the settings, no usable row, too few clients, a cap that binds where
            units are chosen by hash, or no public text.
    """
    found = problems(config, rule.field)
    require(not found, DataError, "; ".join(found))
    config = resolved(config)
    require(config.source != AT_SITES, DataError,
            f"data.source = '{AT_SITES}' found, the records lie at the sites; run it by 'aulait "
            "serve', or name a source here")
    faults = Faults()
    groups: Clients = gather(config, faults, rule.field)
    if config.partition != "natural":
        groups = _made_up(list(groups[EVERYONE]), config.partition, config, seeds, rule)
    enough = partial(_enough_units, config, seeds) if rule.by_hash else partial(
        _enough_records, config)
    large = {name: records for name, records in groups.items() if enough(name, records)}
    left_out = len(groups) - len(large)
    kept = _choose(large, left_out, config, seeds)
    apart = _apart(kept, config, seeds, rule)
    members = {name: kept[name] for name in sorted(kept) if name not in apart}
    if rule.by_hash:
        clients = {name: split_by_hash(name, records, config, seeds)
                   for name, records in members.items()}
        refuse_full(clients, config, rule)
    else:
        clients = {name: split_holdout(name, records, config, seeds)
                   for name, records in members.items()}
    if config.pooled and not by_owner:
        parts = [(part.train, part.holdout) for part in clients.values()]
        clients = {EVERYONE: ClientData(*(tuple(record for own in side for record in own)
            for side in zip(*parts, strict=True)))}
    return Corpus(clients, _public(config, faults), faults.lines(), left_out, apart)


def own(config: DataConfig, name: str, seeds: Seeds, rule: UnitRule = BY_COUNT) -> ClientData:
    """One client's records from its own source, chosen as ``load`` would choose them from
    everybody's.

    Args:
        config: caps and fields; ``client`` names the field that must hold ``name``, "" takes every
            row.
        name: of the client.
        seeds: of the run.
        rule: by what the records are chosen.

    Raises:
        DataError: no usable row, fewer than ``min_records``, or (by hash) nothing to train on or a
            cap that binds.
    """
    found = problems(config, rule.field)
    require(not found, DataError, "; ".join(found))
    config = resolved(config)
    groups = gather(config, Faults(), rule.field)
    records = groups.get(name if data_settings.named(config) else EVERYONE, [])
    require(len(records) >= config.min_records, DataError,
            f"data.source '{config.source}' has {len(records)} distinct records of '{name}', "
            f"expected at least {config.min_records}; check data.source and data.client of the "
            "site file")
    if not rule.by_hash:
        return split_holdout(name, records, config, seeds)
    client = split_by_hash(name, records, config, seeds)
    require(bool(client.train), DataError,
            f"data.source '{config.source}' has {len(units(records))} {rule.noun} of '{name}', and "
            f"data.share = {config.share:g} and data.holdout = {config.holdout:g} leave none to "
            "train on; raise data.share, or lower data.holdout")
    refuse_full({name: client}, config, rule)
    return client


def at_sites(config: DataConfig, names: Mapping[str, int]) -> Corpus:
    """A corpus whose records lie elsewhere: of every client only how many there are, and the public
    texts.

    Args:
        config: of the public texts.
        names: client -> records (or units) that it may be known to have; 0 where that is not told.
    """
    faults = Faults()
    clients = {name: ClientData(placeholders(names[name]), ()) for name in sorted(names)}
    return Corpus(clients, _public(config, faults), faults.lines(), 0)


def gather(config: DataConfig, faults: Faults, unit_field: str | None = None) -> Clients:
    """Distinct records by client, sorted by content; a client without a usable row has none.

    Records of different units (values of ``unit_field``) are never taken for the same.
    """
    store, leads = RecordStore(), array("Q")
    found: defaultdict[str, array[int]] = defaultdict(partial(array, "I"))
    named, learnt, rows = data_settings.named(config), config.row, 0
    for row in sources.rows(config.source, data_settings.asked(config, unit_field)):
        rows += 1
        if row.fields is None:
            faults.add(row.place, row.fault)
            continue
        try:
            name = row.fields.get(config.client) if named else EVERYONE
            # a name that was found is in its one form already
            own = found.get(name) if isinstance(name, str) else None
            if own is None:
                own = found[_owner(row.fields, config.client) if named else EVERYONE]
            label = None if config.label is None else sources.name_field(row.fields, config.label)
            unit = None if unit_field is None else sources.unit_field(row.fields, unit_field)
            record = formats.record_of(row.fields, learnt, label, unit)
        except ValueError as error:
            faults.add(row.place, str(error))
            continue
        own.append(store.append(record))
        leads.append(lead(record))
    first = f"; first fault: {faults.named[0]}" if faults.named else ""
    message = (
        f"data.source '{config.source}': found no usable row among {rows}{first}; check the file "
        "and the fields"
    )
    require(any(found.values()), DataError, message)
    return {name: store.records(distinct_numbers(numbers, leads, store.__getitem__))
            for name, numbers in found.items()}


def _owner(fields: Mapping[str, object], field: str) -> str:
    """Whose a row is, in one form however the file writes it; a yes or no is a name too."""
    value = fields.get(field)
    return str(value) if isinstance(value, bool) else sources.unit_field(fields, field)


def _enough_records(config: DataConfig, name: str, records: Sequence[Record]) -> bool:
    """Whether a client takes part, by count."""
    return len(records) >= config.min_records


def _enough_units(config: DataConfig, seeds: Seeds, name: str, records: Sequence[Record]) -> bool:
    """Whether a client takes part, by hash: the number of its units decides, and whether one is
    left to train on; how many records a unit has does not."""
    return (len(units(records)) >= config.min_records
            and bool(split_by_hash(name, records, config, seeds).train))


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


def _apart(kept: Clients, config: DataConfig, seeds: Seeds,
           rule: UnitRule) -> dict[str, Sequence[Record]]:
    """The unseen clients and the records they are evaluated on."""
    whole = config.model_copy(update={"holdout": 0.0})  # the cap (or the share) alone
    split = split_by_hash if rule.by_hash else split_holdout
    names = unseen(list(kept), config.unseen, 1 if config.pooled else 2, seeds)
    return {name: split(name, kept[name], whole, seeds).train for name in names}


def _made_up(records: list[Record], kind: Kind, config: DataConfig, seeds: Seeds,
             rule: UnitRule) -> Clients:
    """Clients "client-0", ... of a partition."""
    count, floor = config.clients or 2, config.min_records
    width = len(str(count - 1))
    names = [f"client-{index:0{width}d}" for index in range(count)]
    if not rule.by_hash:
        dealt = deal(records, kind, count, floor, config.dirichlet_alpha,
                     seeds.integer("partition"))
        return {name: distinct(own) for name, own in zip(names, dealt, strict=True)}
    dealt = deal_by_hash(units(records), kind, count, config.dirichlet_alpha, seeds)
    few = [name for name, own in zip(names, dealt, strict=True) if len(units(own)) < floor]
    require(not few, DataError,
            f"data.partition = '{kind}' deals by hash and gives {len(few)} of {count} clients fewer"
            f" than data.min_records = {floor} {rule.noun}; lower data.clients or data.min_records"
            f"{'' if kind == 'iid' else ', or raise data.dirichlet_alpha'}")
    return {name: distinct(own) for name, own in zip(names, dealt, strict=True)}


def _public(config: DataConfig, faults: Faults) -> tuple[str, ...] | tuple[Record, ...]:
    """Public texts, or pairs where the data have prompts and the public source has too."""
    if not config.public:
        return ()
    form = public_form(config)
    found, wrong = public.read_public(config.public, data_settings.public_asked(config, form), form)
    for place, fault in wrong:
        faults.add(place, fault)
    return found
