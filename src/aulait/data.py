"""Who owns which texts: fields of rows become records, records become clients, each with a cap and a hold-out.

Every choice is drawn from the run's seed and from the content alone: the order of the rows in a file changes nothing.

Arrows on this floor: ``sources`` (reads rows), ``public``, ``docstrings`` (registers the built-in sources), ``partition``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from aulait import docstrings as docstrings  # files the built-in sources in the registry
from aulait import public, sources
from aulait.errors import DataError
from aulait.partition import Kind, count, deal, named, unseen
from aulait.registry import nearest, require
from aulait.seeds import Seeds
from aulait.types import Record

Clients = dict[str, list[Record]]
NAMED_ROWS = 1_000
EVERYONE = "everyone"


class DataConfig(BaseModel):
    """The ``[data]`` table of an experiment.

    Attributes:
        source: a built-in name, a path (.jsonl, .jsonl.gz, .csv, .parquet) or ``hf:<dataset or folder>[:split]``.
        client: the field that names the owner of a row; not read when there is a partition.
        text: the field that is learnt; not read when there are prompt and response.
        prompt: the field given before the response, without loss. None: plain text.
        response: the field learnt after the prompt; given together with it.
        label: a field with a public label. None: no labels.
        public: public texts: a built-in name, a path (also .txt, a text a line), ``hf:...``, or "" for none.
        public_text: the field of the public texts. Where the data have prompts and the public source has the same two
            fields, its rows are pairs of a prompt and a response instead.
        public_plain: read plain public texts although the data have prompts: proxies then learn text without a prompt.
        records_per_client: the cap m on a client's training records.
        min_records: clients with fewer distinct records are left out and counted.
        holdout: part of every client's records kept for evaluation, 0 to 0.9.
        partition: "natural" takes the clients as they are; the others deal all records to made-up clients.
        clients: how many clients a partition makes; with "natural", how many to keep. None: all.
        dirichlet_alpha: above 0; the smaller, the less alike the clients of a partition.
        pooled: all clients' records in one client "everyone": the centralised ceiling.
        unseen: how many clients, or the names of those, that neither train nor vote and serve only to evaluate new clients.
        too_long: what is done with texts longer than the model's context.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "docstrings"
    client: str = "client"
    text: str = "text"
    prompt: str | None = None
    response: str | None = None
    label: str | None = None
    public: str = "stdlib"
    public_text: str = "text"
    public_plain: bool = False
    records_per_client: int = 30
    min_records: int = 2
    holdout: float = 0.1
    partition: Literal["natural", "iid", "dirichlet", "quantity"] = "natural"
    clients: int | None = None
    dirichlet_alpha: float = 0.5
    pooled: bool = False
    unseen: int | tuple[str, ...] = 0
    too_long: Literal["error", "cut", "drop"] = "error"


@dataclass(frozen=True)
class ClientData:
    """A client's records; both parts are sensitive.

    Attributes:
        train: at most ``records_per_client`` records, in random order; the same ones during the whole run.
        holdout: records of the same client that are never in ``train``.
    """

    train: tuple[Record, ...]
    holdout: tuple[Record, ...]


@dataclass(frozen=True)
class Corpus:
    """All data of a run.

    Attributes:
        clients: by name, sorted by name.
        public: distinct public texts in a fair order; pairs where the data have prompts and the public source has too.
        malformed: "data.jsonl line 17: no field 'text'"; at most 1,000 rows, then one line with the total.
        left_out: number of clients with fewer than ``min_records`` distinct records.
        unseen: records by clients that take no part, at most ``records_per_client`` each, sorted by name; sensitive.
    """

    clients: dict[str, ClientData]
    public: tuple[str, ...] | tuple[Record, ...]
    malformed: tuple[str, ...]
    left_out: int
    unseen: dict[str, tuple[Record, ...]] = field(default_factory=dict)


class _Faults:
    """Malformed rows: all are counted, the first 1,000 are named."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.total = 0

    def add(self, place: str, fault: str) -> None:
        self.total += 1
        if self.total <= NAMED_ROWS:
            self.named.append(f"{place}: {fault}")

    def lines(self) -> tuple[str, ...]:
        more = self.total - len(self.named)
        return (*self.named, f"and {more} more malformed rows ({self.total} in total)") if more else tuple(self.named)


def load(config: DataConfig, seeds: Seeds) -> Corpus:
    """Read, check, deduplicate, partition, split and cap.

    Random, from ``seeds``: the made-up clients of a partition, which clients are kept and which unseen, hold-outs and
    caps. A client's records are chosen without a look at any other client, so a text that two clients share may be in
    the training records of one and the hold-out of the other.

    Raises:
        DataError: a problem of the settings, no usable row, too few clients, or no public text.
    """
    found = problems(config)
    require(not found, DataError, "; ".join(found))
    faults = _Faults()
    groups = _gather(config, faults)
    if config.partition != "natural":
        groups = _made_up(groups[EVERYONE], config.partition, config, seeds)
    kept = {name: records for name, records in groups.items() if len(records) >= config.min_records}
    left_out = len(groups) - len(kept)
    kept = _choose(kept, left_out, config, seeds)
    apart = _apart(kept, config, seeds)
    clients = {name: _split(name, kept[name], config, seeds) for name in sorted(kept) if name not in apart}
    if config.pooled:
        parts = [(part.train, part.holdout) for part in clients.values()]
        clients = {EVERYONE: ClientData(*(tuple(record for own in side for record in own) for side in zip(*parts, strict=True)))}
    return Corpus(clients, _public(config, faults), faults.lines(), left_out, apart)


def problems(config: DataConfig) -> list[str]:
    """What would make ``load`` fail, as far as the settings and the first 20 rows of a file tell; one line each."""
    made_up, smallest = config.partition != "natural", 1 if config.pooled else 2
    checks = [
        (0 <= config.holdout <= 0.9, f"data.holdout is {config.holdout}; expected 0 to 0.9; write 0.1"),
        (config.records_per_client >= 1, f"data.records_per_client is {config.records_per_client}; expected 1 or more"),
        (config.min_records >= 1, f"data.min_records is {config.min_records}; expected 1 or more"),
        (0 < config.dirichlet_alpha < math.inf, f"data.dirichlet_alpha is {config.dirichlet_alpha}; expected above 0"),
        (config.clients is None or config.clients >= smallest, f"data.clients is {config.clients}; expected {smallest} or more"),
        (count(config.unseen) >= 0, f"data.unseen is {config.unseen}; expected 0 or more clients, or their names"),
        (config.clients is None or config.clients < smallest or config.clients - count(config.unseen) >= smallest,
         f"data.unseen is {config.unseen} of data.clients = {config.clients}; expected at least {smallest} to be left that take part"),
        ((config.prompt is None) == (config.response is None),
         "found only one of data.prompt and data.response; expected both or none; name the other field too"),
        (not made_up or config.clients is not None,
         f"data.partition is '{config.partition}' without data.clients; expected how many clients to make"),
        (config.partition != "dirichlet" or config.label is not None,
         "data.partition is 'dirichlet' without data.label; expected the field to deal by; name it"),
    ]
    found = [text for good, text in checks if not good]
    found += _field_problems("data.source", config.source, sources.SUFFIXES, _fields(config))
    if config.public:
        forms = [{} if config.public_plain else _pair_fields(config), {"data.public_text": config.public_text}]
        wrong = [_field_problems("data.public", config.public, sources.PUBLIC_SUFFIXES, form) for form in forms if form]
        found += [text for some in wrong for text in some] if all(wrong) else []
    return found


def _fields(config: DataConfig) -> dict[str, str]:
    """Setting -> field, for every field that a row must have."""
    fields = {"data.client": config.client} if config.partition == "natural" else {}
    label = {"data.label": config.label} if config.label is not None else {}
    return fields | (_pair_fields(config) or {"data.text": config.text}) | label


def _pair(config: DataConfig) -> tuple[str, str] | None:
    """The fields of a prompt and its response; None where the data are plain text."""
    return None if config.prompt is None or config.response is None else (config.prompt, config.response)


def _pair_fields(config: DataConfig) -> dict[str, str]:
    """Setting -> field of a prompt and its response; empty where the data are plain text."""
    return dict(zip(("data.prompt", "data.response"), _pair(config) or (), strict=False))


def _field_problems(setting: str, source: str, suffixes: tuple[str, ...], fields: Mapping[str, str]) -> list[str]:
    wrong = sources.problem(source, suffixes)
    if wrong:
        return [f"{setting}: {wrong}"]
    if not sources.is_file(source):
        return []
    try:
        first = list(islice(sources.rows(source, next(iter(fields.values()))), 20))
    except DataError as error:
        return [f"{setting}: {error}"]
    known = {name for row in first for name in row.fields or ()}
    return [f"{key}: found no field '{name}' in '{source}'; {nearest(name, known)}"
            for key, name in fields.items() if known and name not in known]


def _gather(config: DataConfig, faults: _Faults) -> Clients:
    """Distinct records by client, sorted by content; a client without a usable row has none."""
    found: defaultdict[str, set[Record]] = defaultdict(set)
    rows = 0
    for row in sources.rows(config.source):
        rows += 1
        if row.fields is None:
            faults.add(row.place, row.fault)
            continue
        try:
            records = found[EVERYONE if config.partition != "natural" else sources.name(row.fields, config.client)]
            records.add(_record(row.fields, config))
        except ValueError as error:
            faults.add(row.place, str(error))
    first = f"; first fault: {faults.named[0]}" if faults.named else ""
    message = f"data.source '{config.source}': found no usable row among {rows}{first}; check the file and the fields"
    require(any(found.values()), DataError, message)
    return {name: _distinct(records) for name, records in found.items()}


def _distinct(records: set[Record]) -> list[Record]:
    """Sorted by content; of records that differ in the label only, the one with the first label."""
    first: dict[tuple[str, str], Record] = {}
    for record in sorted(records, key=lambda r: (r.prompt or "", r.text, r.label or "")):
        first.setdefault((record.prompt or "", record.text), record)
    return list(first.values())


def _record(fields: Mapping[str, Any], config: DataConfig) -> Record:
    label = None if config.label is None else sources.name(fields, config.label)
    if config.prompt is None or config.response is None:
        return Record(sources.text(fields, config.text), None, label)
    return Record(sources.text(fields, config.response), sources.text(fields, config.prompt), label)


def _choose(kept: Clients, left_out: int, config: DataConfig, seeds: Seeds) -> Clients:
    """The clients that take part; which ones are kept depends on their names and the seed."""
    floor = f"with at least {config.min_records} records ({left_out} left out)"
    require(bool(kept), DataError, f"found no client {floor}, expected at least 2; lower data.min_records")
    if len(kept) == 1 and not config.pooled:
        advice = "name another field with data.client, choose a partition, or data.pooled = true"
        raise DataError(f"found one client '{next(iter(kept))}', expected at least 2; {advice}")
    if config.clients is None or config.partition != "natural":
        return kept
    enough = config.clients <= len(kept)
    require(enough, DataError, f"found {len(kept)} clients {floor}, expected {config.clients}; lower data.clients")
    order = sorted(kept, key=lambda name: (name not in named(config.unseen), seeds.integer("clients", client=name), name))
    return {name: kept[name] for name in order[: config.clients]}


def _apart(kept: Clients, config: DataConfig, seeds: Seeds) -> dict[str, tuple[Record, ...]]:
    """The unseen clients and the records they are evaluated on."""
    whole = config.model_copy(update={"holdout": 0.0})  # the cap alone
    names = unseen(list(kept), config.unseen, 1 if config.pooled else 2, seeds)
    return {name: _split(name, kept[name], whole, seeds).train for name in names}


def _split(name: str, records: list[Record], config: DataConfig, seeds: Seeds) -> ClientData:
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
    dealt = deal(records, kind, count, config.min_records, config.dirichlet_alpha, seeds.integer("partition"))
    width = len(str(count - 1))
    return {f"client-{index:0{width}d}": _distinct(set(own)) for index, own in enumerate(dealt)}


def _public(config: DataConfig, faults: _Faults) -> tuple[str, ...] | tuple[Record, ...]:
    """Public texts, or pairs where the data have prompts and the public source has too."""
    if not config.public:
        return ()
    found, wrong = public.read(config.public, config.public_text, None if config.public_plain else _pair(config))
    for place, fault in wrong:
        faults.add(place, fault)
    return found
