"""The table ``[data]``: where records come from, and which fields they have."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from aulait.data.row_fields import JOIN, RowFields, RowFormat
from aulait.data.source_row import Asked

AT_SITES = "sites"  # the source of a deployment: every client's records lie at its site


class DataConfig(BaseModel):
    """The ``[data]`` table of an experiment.

    Attributes:
        source: a built-in name; a path (.jsonl or .ndjson, .json, .csv, .tsv, with .gz or
            without, or .parquet); a folder or pattern of such files, or of .txt and .md files that
            are each one text ("notes/{client}/*.txt": the owner is what stands for {client},
            without it the folder's name); or ``hf:<dataset or folder>[:split]``.
        encoding: character encoding of the source's text files.
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
            value). None: "messages", "conversations" or "conversation".
        label: a field with a public label. None: no labels.
        public: public texts: a built-in name, a path (also .txt, a text a line), ``hf:...``, or ""
            for none. Where texts are retrieved (``synthesis.source``) and none are named, "mixed".
        public_text: the field of the public texts. Where the data are pairs or conversations and
            the public source has such rows too, they are pairs of a prompt and a response instead;
            of a public conversation the first question and its answer.
        public_encoding: character encoding of the public source's text files.
        public_plain: read plain public texts although the data have prompts: proxies then learn
            text without a prompt.
        records_per_client: the cap m on a client's training records, at least 1. Where they are
            chosen by hash it bounds a client's units, and a client that has more is refused.
        min_records: clients with fewer distinct records (units, where they are chosen by hash) are
            left out and counted; at least 1. Who takes part is public.
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
        clients: how many clients a partition makes; with "natural", how many to keep; at
            least 1. None: all.
        dirichlet_alpha: above 0; the smaller, the less alike the clients of a partition.
        pooled: all clients' records in one client "everyone": the centralised ceiling.
        unseen: how many clients, or the names of those, that neither train nor vote and serve only
            to evaluate new clients.
        too_long: what is done with texts longer than the model's context.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "docstrings"
    encoding: str = "utf-8"
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
    public_encoding: str = "utf-8"
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


def fields(config: DataConfig, unit_field: str | None = None) -> dict[str, str]:
    """Key of the settings -> field, for every field that a row must have."""
    fields = {"data.client": config.client} if named(config) else {}
    label = {"data.label": config.label} if config.label is not None else {}
    unit = {"privacy.unit_field": unit_field} if unit_field is not None else {}
    return fields | config.row.needed | label | unit


def asked(config: DataConfig, unit_field: str | None = None) -> Asked:
    """What is looked at of the source's rows, by settings that are resolved."""
    named = (*fields(config, unit_field).values(), *_optional(config.row))
    return Asked(named, config.text, config.client or "client", config.encoding)


def public_asked(config: DataConfig, form: RowFields | None) -> Asked:
    """What is looked at of the public source's rows: a text, and what a row of another form has."""
    more = () if form is None else (*form.needed.values(), *_optional(form))
    return Asked((config.public_text, *more), config.public_text, encoding=config.public_encoding,
                 setting="data.public_encoding")


def _optional(row: RowFields) -> tuple[str, ...]:
    """Fields that a row may have."""
    return () if row.input is None else (row.input,)


def named(config: DataConfig) -> bool:
    """Whether rows say whose they are."""
    return config.partition == "natural" and bool(config.client)
