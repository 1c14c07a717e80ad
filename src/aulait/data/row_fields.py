"""Which fields of a row are learnt, and what a row holds: a text, a pair of a prompt and its
response, or a conversation.

``data.format`` says it, or the fields of the first rows do: ``resolved`` writes the answer out, and
everything after it reads it there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

JOIN = "{prompt}\n\n{input}"  # how a row's input is added to its prompt
RowFormat = Literal["auto", "text", "pairs", "chat"]
TEXT = "text"  # the default of data.text
CONVERSATIONS = ("messages", "conversations", "conversation")
# fields of a prompt, its response, and what may be added to the prompt, as public data sets name
# them
PAIRS = (("prompt", "response", None), ("prompt", "completion", None),
         ("instruction", "output", "input"), ("instruction", "response", "context"),
         ("question", "answer", None))
USUAL = (TEXT, *CONVERSATIONS, *(name for pair in PAIRS for name in pair if name is not None))


@dataclass(frozen=True)
class RowFields:
    """The fields of a row that are learnt; the attributes mean what they mean in ``[data]``."""

    format: RowFormat = "auto"
    text: str = TEXT
    prompt: str | None = None
    response: str | None = None
    input: str | None = None
    join: str = JOIN
    messages: str | None = None

    @property
    def settled(self) -> bool:
        """Whether no row need be looked at to know them."""
        named = {"auto": self.prompt, "pairs": self.prompt, "chat": self.messages,
                 "text": self.text}
        return named[self.format] is not None

    @property
    def answers(self) -> bool:
        """Whether a record answers a prompt: pairs and conversations, of fields that are
        resolved."""
        return self.format == "chat" or (self.format != "text" and self.prompt is not None)

    @property
    def needed(self) -> dict[str, str]:
        """Key of the settings -> field, for every field that a row must have."""
        if self.format == "chat":
            return {"data.messages": self.messages or CONVERSATIONS[0]}
        if not self.answers or self.prompt is None or self.response is None:
            return {"data.text": self.text}
        return {"data.prompt": self.prompt, "data.response": self.response}


def resolved(row: RowFields, known: Iterable[str]) -> RowFields:
    """The format and the fields that belong to it, written out.

    Args:
        row: what the settings say; with another format than "auto" only fields left open are filled
            in.
        known: the fields of the first rows.
    """
    fields = set(known)
    told = _told_by(row, fields) if row.format == "auto" else row.format
    if told == "chat":
        return replace(row, format=told, messages=row.messages or _conversation(fields))
    if told == "pairs" and row.prompt is None and (found := _pair(fields)) is not None:
        prompt, response, more = found
        return replace(row, format=told, prompt=prompt, response=response,
                       input=row.input or (more if more in fields else None))
    return replace(row, format=told)


def _told_by(row: RowFields, fields: set[str]) -> RowFormat:
    """The format that the settings name fields for, or that the fields of the rows show."""
    if row.prompt is not None:
        return "pairs"
    if row.messages is not None:
        return "chat"
    if row.text != TEXT or TEXT in fields:
        return "text"
    if _conversation(fields) is not None:
        return "chat"
    return "text" if _pair(fields) is None else "pairs"


def _conversation(fields: set[str]) -> str | None:
    return next((name for name in CONVERSATIONS if name in fields), None)


def _pair(fields: set[str]) -> tuple[str, str, str | None] | None:
    return next((pair for pair in PAIRS if {pair[0], pair[1]} <= fields), None)
