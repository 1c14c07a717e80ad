"""A first experiment file from a look at somebody's data: who owns a row, what of it is learnt, how
many clients there are, and settings that begin sensibly for that many.

What is written is plain TOML with a remark at each choice, to be read and changed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal

import tomli_w

from aulait.core.errors import DataError, did_you_mean, require
from aulait.data import row_fields, sources
from aulait.data.row_fields import RowFields
from aulait.models.named import BUILT_IN
from aulait.runs.advice import usual_batch

MOST_ROWS: Final = 20_000  # looked at; more tell nothing new about what a field is
LONGEST_NAME: Final = 80  # letters on average: longer values are texts, not owners
FEW: Final = 30  # clients below which one whole client is too much to hide among the others
OWNERS: Final = (
    "client", "user", "owner", "author", "site", "institution", "hospital", "source", "clinic",
    "customer", "person", "speaker", "client_id", "user_id", "userid", "patient")
NONE: Final = "none"


@dataclass
class SeenField:
    """A field of the rows that were looked at.

    Attributes:
        filled: rows that have it.
        letters: in all values together.
        values: how often each occurs; empty for what is no short text or number.
    """

    filled: int = 0
    letters: int = 0
    values: Counter[str] = field(default_factory=Counter)

    @property
    def mean_letters(self) -> float:
        """Letters of a value."""
        return self.letters / max(self.filled, 1)


@dataclass(frozen=True)
class Look:
    """What a data source looks like.

    Attributes:
        source: as ``data.source`` names it.
        rows: that were read, at most ``MOST_ROWS``.
        whole: whether these are all.
        malformed: of them.
        columns: by field name, in the order of their first row.
    """

    source: str
    rows: int
    whole: bool
    malformed: int
    columns: Mapping[str, SeenField]


@dataclass(frozen=True)
class Choices:
    """What the file is written from.

    Attributes:
        owner: the field that names the client; None deals the rows to made-up clients.
        row: what of a row is learnt, resolved.
        strong: share of the clients that can train; the others vote.
        unit: what is protected.
        epsilon: None for no privacy.
        model: ``model.name``.
        name: of the run.
    """

    owner: str | None
    row: RowFields
    strong: float
    unit: Literal["client", "record"]
    epsilon: float | None
    model: str
    name: str


def look(source: str) -> Look:
    """Read the first rows of a source.

    Raises:
        DataError: it is missing, cannot be read, or has no row that can be.
    """
    columns: dict[str, SeenField] = {}
    count = malformed = 0
    rows = sources.rows(source)
    for row in islice(rows, MOST_ROWS):
        count += 1
        malformed += row.fields is None
        for name, value in (row.fields or {}).items():
            _count(columns.setdefault(name, SeenField()), value)
    require(count > malformed, DataError,
            f"'{source}' has no row that can be read among the first {count}; expected fields with "
            "a text and, where there is one, its owner")
    return Look(source, count, next(iter(rows), None) is None, malformed, columns)


def _count(column: SeenField, value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    text = value if isinstance(value, str) else str(value)
    column.filled += 1
    column.letters += len(text)
    if len(text) <= 2 * LONGEST_NAME and isinstance(value, str | int | float):
        column.values[text.strip()] += 1


def owner_of(seen: Look) -> str | None:
    """The field that most likely names the owner of a row: one of the usual names, or else the one
    with the most values that each occur about twice or more; None where no field repeats."""
    apt = {name: column for name, column in seen.columns.items()
           if column.filled > seen.rows / 2 and column.mean_letters <= LONGEST_NAME
           and 2 <= len(column.values) <= column.filled / 2}
    usual = [name for wanted in OWNERS for name in apt if name.lower() == wanted]
    return usual[0] if usual else max(apt, key=lambda name: len(apt[name].values), default=None)


def learnt_of(seen: Look, owner: str | None) -> RowFields:
    """What of a row is learnt: a conversation or a pair by the usual names of their fields, or else
    the field with the longest texts."""
    found = row_fields.resolved(RowFields(), seen.columns)
    if found.format != "text" or found.text in seen.columns:
        return found
    texts = {name: column for name, column in seen.columns.items() if name != owner}
    require(bool(texts), DataError, f"'{seen.source}' has no field with a text beside its owner")
    longest = max(texts, key=lambda name: texts[name].mean_letters)
    return row_fields.resolved(RowFields(text=longest), seen.columns)


def named_field(seen: Look, key: str, name: str) -> str:
    """A field that somebody named.

    Raises:
        DataError: the rows have none of that name.
    """
    require(name in seen.columns, DataError,
            f"{key}: '{seen.source}' has no field '{name}'; {did_you_mean(name, seen.columns)}")
    return name


def clients_of(seen: Look, owner: str | None) -> Counter[str]:
    """Rows of each client; empty without a field for the owner."""
    return Counter() if owner is None else seen.columns[owner].values


def unit_for(clients: int) -> Literal["client", "record"]:
    """What to protect where nothing is said: among few clients, single records."""
    return "record" if clients < FEW else "client"


def delta_for(protected: int) -> float:
    """A power of ten at most a tenth of one over the number of what is protected, at most 1e-5."""
    return min(1e-5, 10.0 ** -math.ceil(math.log10(max(protected, 1)) + 1))


def written(seen: Look, choices: Choices) -> str:
    """The experiment file."""
    parts = [_head(seen, choices), _model(choices), _data(seen, choices), _tiers(choices)]
    if choices.strong < 1:
        parts.append(_synthesis())
    record = choices.unit == "record" and choices.epsilon is not None
    parts.append(_training_of_records(seen, choices) if record
                 else _training() if choices.epsilon is None else _training_of_clients())
    parts.append(_privacy(seen, choices))
    return "\n".join(parts)


def _head(seen: Look, choices: Choices) -> str:
    rows = f"{seen.rows:,}" if seen.whole else f"more than {seen.rows:,}"
    count = len(clients_of(seen, choices.owner))
    whose = (f"{count:,} clients by '{choices.owner}'" if choices.owner
             else "no field that names an owner")
    return f"""\
# A first experiment with {seen.source}: {rows} rows, {whose}.
# aulait plan FILE shows what it would do; aulait config KEY explains a key.

[run]
name = {_toml(choices.name)}
seed = 0
# purpose = "What the model is for, in words for the person who approves the run."
"""


def _model(choices: Choices) -> str:
    few = choices.model in BUILT_IN  # whose modules have these names
    if choices.epsilon is not None:
        return f"""\
[model]
name = {_toml(choices.model)}          # "smollm2", a folder, a .gguf file, or a Hugging Face id
context = 128            # tokens of a training text

[adapter]
rank = "auto"            # as large as the noise allows (aulait plan says it)
layers = "auto"          # the last blocks alone, where even rank 1 is too large for all
alpha = "auto"           # follows the rank: then a step is as long at every rank
targets = "all-linear"
"""
    targets = '["o_proj", "down_proj"]   # few numbers learn more under noise' if few else (
        '"all-linear"')
    return f"""\
[model]
name = {_toml(choices.model)}          # "smollm2", a folder, a .gguf file, or a Hugging Face id
context = 128            # tokens of a training text

[adapter]
rank = 8
alpha = 16
targets = {targets}
"""


def _data(seen: Look, choices: Choices) -> str:
    row = choices.row
    lines = ["[data]", f"source = {_toml(seen.source)}"]
    if choices.owner is not None:
        lines.append(f"client = {_toml(choices.owner)}")
    else:
        lines += ['partition = "iid"        # no field names an owner: rows are dealt to made-up '
                  "clients", "clients = 10"]
    lines.append(f"format = {_toml(row.format)}")
    fields = ({"messages": row.messages} if row.format == "chat"
              else {"prompt": row.prompt, "response": row.response, "input": row.input}
              if row.format == "pairs" else {"text": row.text})
    lines += [f"{key} = {_toml(value)}" for key, value in fields.items() if value is not None]
    largest = max(clients_of(seen, choices.owner).values(), default=seen.rows)
    if choices.unit == "record" and choices.epsilon is not None:
        room = max(30, 2 * largest) if seen.whole else 100_000
        lines.append(f"records_per_client = {room}   # above the largest client: a cap that binds "
                     "is refused for single records")
    else:
        lines.append("records_per_client = 30   # a client's further records are left out")
    lines += ["holdout = 0.1            # part of each client's records, for the losses",
              'too_long = "cut"         # of texts longer than the context, their beginning',
              'public = "mixed"         # packaged; public text of the same kind, where you have '
              "it, pays"]
    if row.answers and choices.strong < 1:
        lines.append("public_plain = true      # remove it once public names rows with prompts")
    lines.append("")
    return "\n".join(lines)


def _tiers(choices: Choices) -> str:
    strong = f"""\
[[federation.tier]]
name = "trains"
share = {choices.strong:g}
placement = "local"      # trains on its own text
"""
    return strong if choices.strong >= 1 else strong + """
[[federation.tier]]
name = "votes"           # the rest
placement = "proxy"      # only votes on candidate texts; proxies at the server train in its stead
"""


def _synthesis() -> str:
    return """\
[synthesis]
source = "retrieve"      # the votes choose public texts; "both" also writes some like them
texts = 600
"""


def _training() -> str:
    return """\
[algorithm]
name = "ffa"             # aulait list shows the methods
local_weight = 5.0       # of a client that trains against one that is stood for

[train]
rounds = 6
steps = 4
batch = 2
lr = 1.5e-2
schedule = "linear"      # the clip bound follows it down, and the noise with it

[evaluate]
every = 2
"""


def _training_of_clients() -> str:
    return """\
[algorithm]
name = "cores"           # few numbers, in a basis from the chosen text; aulait list shows others

[train]
rounds = 6
steps = 4
batch = 2
lr = 1.25e-2
schedule = "linear"      # the clip bound follows it down, and the noise with it

[evaluate]
every = 2
"""


def _training_of_records(seen: Look, choices: Choices) -> str:
    sizes = clients_of(seen, choices.owner) or Counter(all=max(seen.rows // 10, 1))
    batch = usual_batch(max(sizes.values()))
    return f"""\
[algorithm]
name = "dplora"          # every step at a site is noised there
local_weight = 5.0

[train]
rounds = 4
steps = 2
batch = {batch}               # noise falls with the batch: about an eighth of a large client
lr = 1e-2

[evaluate]
every = 2
"""


def _privacy(seen: Look, choices: Choices) -> str:
    if choices.epsilon is None:
        return "[privacy]\noff = true               # nothing is promised to anybody\n"
    counts = clients_of(seen, choices.owner)
    if choices.unit == "client":
        protected, relation, more = len(counts) or 10, "add-remove", ""
        what = "one client with everything it holds"
    else:
        protected, relation = seen.rows, "zero-out"
        more = "clip = 0.5               # of the gradient of one record"
        what = "one record; all records of a person: unit_field names the field"
    return f"""\
[privacy]
unit = {_toml(choices.unit)}{' ' * (17 - len(choices.unit))}# {what}
epsilon = {choices.epsilon:g}
delta = {delta_for(protected):g}            # far below one over the {protected:,} protected
relation = {_toml(relation)}
{more}
""".rstrip() + "\n"


def _toml(value: object) -> str:
    return tomli_w.dumps({"v": value}).partition("=")[2].strip()
