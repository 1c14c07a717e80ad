"""Rows to records: a text, a pair of a prompt and its response, or a conversation.

Messages never repeat a row's content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from aulait.core.parsing import parsed_json
from aulait.core.types import Record, Turn
from aulait.data import field_values
from aulait.data.row_fields import CONVERSATIONS, PAIRS, RowFields

# the names of roles and of their keys in public data sets, and ours
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user",
         "prompter": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant",
         "bot": "assistant", "chatbot": "assistant", "ai": "assistant", "chatgpt": "assistant",
         "tool": "tool", "function": "tool", "observation": "tool"}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")


def record_of(fields: Mapping[str, object], row: RowFields, label: str | None = None,
              unit: str | None = None) -> Record:
    """The record of a row, by fields that are resolved.

    Raises:
        ValueError: a field is missing or is not what it should be; without its content.
    """
    if row.format == "chat":
        return conversation(fields, row.messages or CONVERSATIONS[0], label, unit)
    if not row.answers or row.prompt is None or row.response is None:
        return Record(field_values.text_field(fields, row.text), None, label, unit)
    text = field_values.text_field(fields, row.response)
    return Record(text, _prompt(fields, row.prompt, row), label, unit)


def asked_of(fields: Mapping[str, object], row: RowFields) -> tuple[Turn, ...]:
    """The turns of a row that are to be answered: a conversation up to its last turn that is not
    the assistant's, or a question in the run's field of prompts, or in one of a usual name.

    Raises:
        ValueError: there is none.
    """
    field = next((name for name in (row.messages, *CONVERSATIONS) if name and name in fields), None)
    if field is not None:
        turns = list(_turns(fields, field))
        while turns and turns[-1].role == "assistant":
            turns.pop()
        if not turns:
            raise ValueError(f"field '{field}' has no turn to answer")
        return tuple(turns)
    names = (row.prompt, *(prompt for prompt, _, _ in PAIRS), row.text)
    prompt = next((name for name in names if name and name in fields), row.prompt or PAIRS[0][0])
    return (Turn("user", _prompt(fields, prompt, row)),)


def _prompt(fields: Mapping[str, object], field: str, row: RowFields) -> str:
    """The prompt, with the row's input where it has one."""
    prompt = field_values.text_field(fields, field)
    if row.input is None or not _filled(fields.get(row.input)):
        return prompt
    return row.join.format(prompt=prompt, input=field_values.text_field(fields, row.input))


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
            value = parsed_json(value)
        except ValueError:
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
    if not field_values.is_unicode(value):
        raise ValueError(f"{place} holds half a character (a lone surrogate)")
    return value


def _part(part: object, place: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ValueError(f"{place} has a part that is no text")
