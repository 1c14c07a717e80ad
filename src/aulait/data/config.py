"""The table ``[data]``: where records come from, which fields they have, and what can be wrong with
both before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Literal

from pydantic import BaseModel, ConfigDict

from aulait.core.errors import DataError, did_you_mean
from aulait.data import row_fields, sources
from aulait.data.partitions import count
from aulait.data.row_fields import JOIN, RowFields, RowFormat

AT_SITES = "sites"  # the source of a deployment: every client's records lie at its site


class DataConfig(BaseModel):
    """The ``[data]`` table of an experiment.

    Attributes:
        source: a built-in name, a path (.jsonl, .jsonl.gz, .csv, .parquet) or ``hf:<dataset or
            folder>[:split]``.
        client: the field that names the owner of a row; not read when there is a partition.
        format: what a row holds: "text", "pairs" of a prompt and its response, "chat" (a list of
            turns), or "auto": what the named fields, or those of the first rows, show.
        text: the field that is learnt; not read when there are pairs or conversations.
        prompt: the field given before the response, without loss. None: plain text, or the fields
            that the rows have by a usual name (prompt and response or completion, instruction and
            output or response, question and answer).
        response: the field learnt after the prompt; given together with it.
        input: a field that is added to the prompt where a row has it filled.
        join: how it is added: a text with {prompt} and {input}.
        messages: the field of a conversation: a list of turns with role and content (or from and
            value). None: "messages" or "conversations".
        label: a field with a public label. None: no labels.
        public: public texts: a built-in name, a path (also .txt, a text a line), ``hf:...``, or ""
            for none.
        public_text: the field of the public texts. Where the data are pairs or conversations and
            the public source has such rows too, they are pairs of a prompt and a response instead;
            of a public conversation the first question and its answer.
        public_plain: read plain public texts although the data have prompts: proxies then learn
            text without a prompt.
        records_per_client: the cap m on a client's training records. Where they are chosen by
            hash it bounds a client's units, and a client that has more is refused.
        min_records: clients with fewer distinct records (units, where they are chosen by hash) are
            left out and counted. Who takes part is public.
        holdout: part of every client's records kept for evaluation, 0 to 0.9; by hash, the
            probability with which each unit is kept.
        choice: what decides which records train and which are held out: "count" fills exact
            numbers in a random order, "hash" looks at each unit alone, so that one more or less
            changes nothing about others. "auto": "hash" with privacy.unit = "record", else
            "count".
        share: by hash alone, the probability with which each unit of a client is used at all,
            above 0 to 1.
        partition: "natural" takes the clients as they are; the others deal all records to made-up
            clients, by hash the units one by one.
        clients: how many clients a partition makes; with "natural", how many to keep. None: all.
        dirichlet_alpha: above 0; the smaller, the less alike the clients of a partition.
        pooled: all clients' records in one client "everyone": the centralised ceiling.
        unseen: how many clients, or the names of those, that neither train nor vote and serve only
            to evaluate new clients.
        too_long: what is done with texts longer than the model's context.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "docstrings"
    client: str = "client"
    format: RowFormat = "auto"
    text: str = "text"
    prompt: str | None = None
    response: str | None = None
    input: str | None = None
    join: str = JOIN
    messages: str | None = None
    label: str | None = None
    public: str = "stdlib"
    public_text: str = "text"
    public_plain: bool = False
    records_per_client: int = 30
    min_records: int = 2
    holdout: float = 0.1
    choice: Literal["auto", "count", "hash"] = "auto"
    share: float = 1.0
    partition: Literal["natural", "iid", "dirichlet", "quantity"] = "natural"
    clients: int | None = None
    dirichlet_alpha: float = 0.5
    pooled: bool = False
    unseen: int | tuple[str, ...] = 0
    too_long: Literal["error", "cut", "drop"] = "error"

    @property
    def row(self) -> RowFields:
        """What is learnt of a row."""
        return RowFields(self.format, self.text, self.prompt, self.response, self.input, self.join,
                         self.messages)

    @property
    def answers(self) -> bool:
        """Whether a record answers a prompt: pairs and conversations, of settings that are
        resolved."""
        return self.row.answers


def resolved(config: DataConfig) -> DataConfig:
    """The settings with the format that the first rows show, where they leave it open; of data
    that lie at sites, what the settings say alone."""
    blind = config.row.settled or config.source == AT_SITES or sources.problem(config.source)
    known = [] if blind else sources.first_fields(config.source, config.text)
    return config.model_copy(update=asdict(row_fields.resolved(config.row, known)))


def problems(config: DataConfig, unit_field: str | None = None) -> list[str]:
    """What would make ``load`` fail, as far as the settings and the first 20 rows of a file tell;
    one line each.

    Args:
        config: the table.
        unit_field: the field that names the unit of protection (``privacy.unit_field``).
    """
    config = resolved(config)
    made_up, smallest = config.partition != "natural", 1 if config.pooled else 2
    checks = [
        (0 <= config.holdout <= 0.9,
         f"data.holdout is {config.holdout}; expected 0 to 0.9; write 0.1"),
        (0 < config.share <= 1,
         f"data.share is {config.share}; expected above 0 to 1; write 1 to use all"),
        (config.records_per_client >= 1,
         f"data.records_per_client is {config.records_per_client}; expected 1 or more"),
        (config.min_records >= 1, f"data.min_records is {config.min_records}; expected 1 or more"),
        (0 < config.dirichlet_alpha < math.inf,
         f"data.dirichlet_alpha is {config.dirichlet_alpha}; expected above 0"),
        (config.clients is None or config.clients >= smallest,
         f"data.clients is {config.clients}; expected {smallest} or more"),
        (count(config.unseen) >= 0,
         f"data.unseen is {config.unseen}; expected 0 or more clients, or their names"),
        (config.clients is None or config.clients < smallest
         or config.clients - count(config.unseen) >= smallest,
         f"data.unseen is {config.unseen} of data.clients = {config.clients}; expected at least "
         f"{smallest} to be left that take part"),
        ((config.prompt is None) == (config.response is None),
         "found only one of data.prompt and data.response; expected both or none; name the other "
         "field too"),
        (config.format != "pairs" or config.prompt is not None,
         "data.format is 'pairs' and the fields of a prompt and its response are not known; name "
         "them with data.prompt and data.response"),
        (_joins(config.join),
         f"data.join is {config.join!r}; expected a text with {{prompt}} and {{input}} and no "
         "other braces"),
        (not made_up or config.clients is not None,
         f"data.partition is '{config.partition}' without data.clients; expected how many clients "
         "to make"),
        (config.partition != "dirichlet" or config.label is not None,
         "data.partition is 'dirichlet' without data.label; expected the field to deal by; name "
         "it"),
    ]
    found = [text for good, text in checks if not good]
    if config.source != AT_SITES:
        found += _field_problems("data.source", config.source, sources.SUFFIXES,
                                 fields(config, unit_field))
    if config.public:
        forms = [{} if config.public_plain else public_fields(config),
                 {"data.public_text": config.public_text}]
        wrong = [_field_problems("data.public", config.public, sources.PUBLIC_SUFFIXES, form)
                 for form in forms if form]
        found += [text for some in wrong for text in some] if all(wrong) else []
    return found


def fields(config: DataConfig, unit_field: str | None = None) -> dict[str, str]:
    """Key of the settings -> field, for every field that a row must have."""
    fields = {"data.client": config.client} if named(config) else {}
    label = {"data.label": config.label} if config.label is not None else {}
    unit = {"privacy.unit_field": unit_field} if unit_field is not None else {}
    return fields | config.row.needed | label | unit


def public_fields(config: DataConfig) -> dict[str, str]:
    """Key of the settings -> field, of public rows that are of the private rows' kind; empty where
    the data are plain text."""
    return public_row(config).needed if config.answers else {}


def public_row(config: DataConfig) -> RowFields:
    """How public rows are read where the data answer prompts: by the same fields, or by those that
    the public rows have."""
    if not sources.problem(config.public, sources.PUBLIC_SUFFIXES):
        known = sources.first_fields(config.public, config.public_text)
        if not set(config.row.needed.values()) <= set(known):
            other = row_fields.resolved(RowFields(join=config.join), known)
            return other if other.answers else config.row
    return config.row


def _joins(join: str) -> bool:
    """Whether a template has its two places and no others."""
    try:
        found = join.format(prompt="\0", input="\1")
    except (ValueError, IndexError, KeyError, AttributeError):
        return False
    return "\0" in found and "\1" in found


def _field_problems(setting: str, source: str, suffixes: tuple[str, ...],
                    fields: Mapping[str, str]) -> list[str]:
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
    return [f"{key}: found no field '{name}' in '{source}'; {did_you_mean(name, known)}"
            for key, name in fields.items() if known and name not in known]


def named(config: DataConfig) -> bool:
    """Whether rows say whose they are."""
    return config.partition == "natural" and bool(config.client)
