"""What the first rows of the sources tell: the form of the data where ``[data]`` leaves it open,
and what can be wrong with the table before anything is read as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace

from aulait.core.errors import DataError, did_you_mean
from aulait.data import row_fields, sources
from aulait.data.config import AT_SITES, DataConfig, asked, fields, public_asked
from aulait.data.partitions import count
from aulait.data.row_fields import USUAL, RowFields
from aulait.data.source_row import Asked
from aulait.data.text_lines import encoding_problem


def resolved(config: DataConfig) -> DataConfig:
    """The settings with the format that the first rows show, where they leave it open; of data
    that lie at sites, what the settings say alone."""
    blind = config.row.settled or config.source == AT_SITES or sources.problem(config.source)
    known = [] if blind or encoding_problem("", config.encoding) else sources.first_fields(
        config.source, replace(asked(config), fields=(*asked(config).fields, *USUAL)))
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
    encodings = {"data.encoding": config.encoding, "data.public_encoding": config.public_encoding}
    if wrong := [line for key, name in encodings.items() if (line := encoding_problem(key, name))]:
        return found + wrong
    if config.source != AT_SITES:
        found += _field_problems("data.source", config.source, fields(config, unit_field),
                                 asked(config, unit_field))
    if config.public:
        forms = [{} if config.public_plain else public_fields(config),
                 {"data.public_text": config.public_text}]
        public = public_asked(config, public_form(config))
        tried = [_field_problems("data.public", config.public, form, public)
                 for form in forms if form]
        found += [text for some in tried for text in some] if all(tried) else []
    return found


def public_fields(config: DataConfig) -> dict[str, str]:
    """Key of the settings -> field, of public rows that are of the private rows' kind; empty where
    the data are plain text."""
    return public_row(config).needed if config.answers else {}


def public_form(config: DataConfig) -> RowFields | None:
    """How public rows are read, by settings that are resolved; None: as plain texts."""
    return public_row(config) if config.answers and not config.public_plain else None


def public_row(config: DataConfig) -> RowFields:
    """How public rows are read where the data answer prompts: by the same fields, or by those that
    the public rows have."""
    if not sources.problem(config.public, sources.PUBLIC_SUFFIXES):
        own = public_asked(config, config.row)
        known = sources.first_fields(config.public, replace(own, fields=(*own.fields, *USUAL)))
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


def _field_problems(setting: str, source: str, fields: Mapping[str, str],
                    asked: Asked) -> list[str]:
    wrong = sources.problem(source, sources.PUBLIC_SUFFIXES if setting == "data.public"
                            else sources.SUFFIXES)
    if wrong:
        return [f"{setting}: {wrong}"]
    if not sources.is_file(source):
        return []
    try:
        known = sources.field_names(source, asked)
    except DataError as error:
        return [f"{setting}: {error}"]
    return [f"{key}: found no field '{name}' in '{source}'; {did_you_mean(name, known)}"
            for key, name in fields.items() if known and name not in known]
