"""What a row holds: a text, a pair of a prompt and its response, or a conversation.

``data.format`` says it, or the fields of the first rows do: ``resolved`` writes the answer into the
settings, and everything after it reads it there. Messages never repeat a row's content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Literal

from aulait.core.errors import DataError
from aulait.core.types import Record, Turn
from aulait.data import sources

if TYPE_CHECKING:  # the settings import what is here
    from aulait.data.config import DataConfig

RowFormat = Literal["auto", "text", "pairs", "chat"]
LOOKED_AT = 20  # first rows whose fields tell the format
TEXT = "text"  # the default of data.text
CONVERSATIONS = ("messages", "conversations")
# fields of a prompt, its response, and what may be added to the prompt, as public data sets name
# them
PAIRS = (("prompt", "response", None), ("prompt", "completion", None),
         ("instruction", "output", "input"), ("instruction", "response", "context"),
         ("question", "answer", None))
# the names of roles and of their keys in public data sets, and ours
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user",
         "prompter": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant",
         "bot": "assistant", "chatgpt": "assistant", "tool": "tool", "function": "tool",
         "observation": "tool"}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")


def resolved(config: DataConfig, known: Iterable[str]) -> DataConfig:
    """The settings with ``format`` and the fields that belong to it written out.

    Args:
        config: the settings; with another format than "auto" only fields left open are filled in.
        known: the fields of the first rows.

    Returns:
        The settings; unchanged in what the fields do not tell.
    """
    fields, told = set(known), config.format
    if told == "auto":
        told = _told_by(config, fields)
    if told == "chat":
        return _with(config, format="chat", messages=config.messages or _conversation(fields))
    if told == "pairs" and config.prompt is None and (found := _pair(fields)) is not None:
        prompt, response, more = found
        return _with(config, format="pairs", prompt=prompt, response=response,
                     input=config.input or (more if more in fields else None))
    return _with(config, format=told)


def _told_by(config: DataConfig, fields: set[str]) -> RowFormat:
    """The format that the settings name fields for, or that the fields of the rows show."""
    if config.prompt is not None:
        return "pairs"
    if config.messages is not None:
        return "chat"
    if config.text != TEXT or TEXT in fields:
        return "text"
    if _conversation(fields) is not None:
        return "chat"
    return "text" if _pair(fields) is None else "pairs"


def _with(config: DataConfig, **changed: str | None) -> DataConfig:
    return config.model_copy(update=changed)


def _conversation(fields: set[str]) -> str | None:
    return next((name for name in CONVERSATIONS if name in fields), None)


def _pair(fields: set[str]) -> tuple[str, str, str | None] | None:
    return next((pair for pair in PAIRS if {pair[0], pair[1]} <= fields), None)


def first_fields(source: str, text_field: str = TEXT) -> list[str]:
    """The fields of the first rows of a source, in their order; none where it cannot be read (what
    reads it all says why)."""
    try:
        rows = list(islice(sources.rows(source, text_field), LOOKED_AT))
    except DataError:
        return []
    return list(dict.fromkeys(name for row in rows for name in row.fields or ()))


def learnt_fields(config: DataConfig) -> dict[str, str]:
    """Key of the settings -> field, for every field that is learnt from, of settings that are
    resolved."""
    if config.format == "chat":
        return {"data.messages": config.messages or CONVERSATIONS[0]}
    if config.format == "text" or config.prompt is None or config.response is None:
        return {"data.text": config.text}
    return {"data.prompt": config.prompt, "data.response": config.response}


def record_of(fields: Mapping[str, object], config: DataConfig, label: str | None = None,
              unit: str | None = None) -> Record:
    """The record of a row, by settings that are resolved.

    Raises:
        ValueError: a field is missing or is not what it should be; without its content.
    """
    if config.format == "chat":
        return conversation(fields, config.messages or CONVERSATIONS[0], label, unit)
    if config.format == "text" or config.prompt is None or config.response is None:
        return Record(sources.text_field(fields, config.text), None, label, unit)
    text = sources.text_field(fields, config.response)
    prompt = sources.text_field(fields, config.prompt)
    if config.input is not None and _filled(fields.get(config.input)):
        prompt = config.join.format(prompt=prompt, input=sources.text_field(fields, config.input))
    return Record(text, prompt, label, unit)


def _filled(value: object) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def conversation(fields: Mapping[str, object], field: str, label: str | None = None,
                 unit: str | None = None) -> Record:
    """The conversation in a field: a list of turns, or the same as JSON text.

    Turns after the assistant's last are left out: nothing is learnt from them.

    Raises:
        ValueError: no list of turns, a turn without words, or no assistant's turn that answers
            another.
    """
    turns = list(_turns(fields, field))
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if len(turns) < 2:
        raise ValueError(f"field '{field}' has no assistant's turn that answers another")
    text, prior = turns[-1].content, turns[:-1]
    if prior[-1].role == "user":
        return Record(text, prior[-1].content, label, unit, tuple(prior[:-1]))
    return Record(text, None, label, unit, tuple(prior))


def _turns(fields: Mapping[str, object], field: str) -> Iterator[Turn]:
    if field not in fields:
        raise ValueError(f"no field '{field}'")
    value = fields[field]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"field '{field}' is no list of turns")
    for number, turn in enumerate(value, 1):
        place = f"turn {number} of field '{field}'"
        if not isinstance(turn, Mapping):
            raise ValueError(f"{place} is {type(turn).__name__}, expected a role and its content")
        role = ROLES.get(str(_first(turn, ROLE_KEYS)).strip().lower())
        if role is None:
            raise ValueError(f"{place} has no known role ({', '.join(sorted(set(ROLES)))})")
        content = _content(_first(turn, CONTENT_KEYS), place)
        if content.strip():
            yield Turn(role, content)
        elif role != "system":  # an empty instruction says nothing
            raise ValueError(f"{place} is empty")


def _first(turn: Mapping[str, object], keys: Iterable[str]) -> object:
    """The first of these keys that is there."""
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _content(value: object, place: str) -> str:
    """The words of a turn: a text, or a list of parts that are texts."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        value = "".join(_part(part, place) for part in value)
    if not isinstance(value, str):
        raise ValueError(f"{place} is {type(value).__name__}, expected text")
    if not sources.is_unicode(value):
        raise ValueError(f"{place} holds half a character (a lone surrogate)")
    return value


def _part(part: object, place: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ValueError(f"{place} has a part that is no text")
