"""Conversations that are longer than a context: whole turns are kept, the oldest go first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from aulait.core.types import Turn
from aulait.models.record_form import RecordForm

Over = Callable[[Sequence[Turn]], int]


def without_oldest(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """The conversation, then the same without its oldest exchange, and so on to the last one.

    An exchange begins with a user's turn. The system's first turns always stay.
    """
    first = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    kept, rest = list(turns[:first]), list(turns[first:])
    yield [*kept, *rest]
    for start in range(1, len(rest)):
        if rest[start].role == "user":
            yield [*kept, *rest[start:]]


def fitting(turns: Sequence[Turn], over: Over) -> list[Turn]:
    """As many of the last exchanges as are not too long; the last one alone where even that is.

    Args:
        turns: the conversation.
        over: turns -> how many tokens too many they have; 0 or less: none.
    """
    some = list(turns)
    for some in without_oldest(turns):
        if over(some) <= 0:
            break
    return some


def shortened(form: RecordForm, turns: Sequence[Turn], over: Over) -> list[Turn]:
    """The conversation with the beginning of the last user's words cut off until it is not too
    long, and without the system's turns where that is not enough."""
    some = list(turns)
    at = max((i for i, turn in enumerate(some) if turn.role == "user"), default=None)
    words = [] if at is None else form.words(some[at].content)
    excess = over(some)
    while excess > 0 and at is not None and words:
        words = words[excess:]
        some[at] = Turn("user", form.spelled(words))
        excess = over(some)
    return some if excess <= 0 else [turn for turn in some if turn.role != "system"]
