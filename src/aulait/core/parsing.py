"""How JSON and TOML that others wrote are read: what is wrong with a text is one kind of error.

Python's parsers raise several: a syntax error, ``RecursionError`` for lists in lists, a bare
``ValueError`` for a whole number of more than 4,300 digits, ``UnicodeDecodeError``. What they let
through may still fail a later hand: a whole number that no float holds, or a tree too deep to walk.
Here all of it is a ``ValueError`` with one line, raised before a value is handed out.
"""

from __future__ import annotations

import json
import tomllib
from typing import Any, Final, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object whose reader knows the kinds of its values."""

DEEPEST: Final = 100
"""Lists and tables within one another that a text may have."""

LARGEST_WHOLE: Final = 2**64
"""A whole number of a text lies below it, and above its negative."""


class BeyondLimitsError(ValueError):
    """A text that may be well formed and is too deep, or has too large a number, to be used."""


def parsed_json(text: str | bytes, *, finite: bool = False) -> Any:
    """What a JSON text says.

    Args:
        text: of UTF-8, where it is bytes.
        finite: take no NaN and no infinity, which are no JSON.

    Raises:
        BeyondLimitsError: it is nested too deeply, or has a whole number of too many digits.
        ValueError: it is no JSON.
    """
    try:
        tree = (json.loads(text, parse_int=_whole, parse_constant=_no_number) if finite
                else json.loads(text, parse_int=_whole))
    except RecursionError as error:
        raise _too_deep() from error
    if _marks(text) > DEEPEST:
        _check_depth(tree)
    return tree


def parsed_toml(text: str | bytes) -> JsonObject:
    """What a TOML text says.

    Raises:
        BeyondLimitsError: it is nested too deeply, or has a whole number of too many digits.
        ValueError: it is no TOML, or its bytes are not UTF-8.
    """
    try:
        tree = tomllib.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise _too_deep() from error
    except tomllib.TOMLDecodeError:
        raise
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # int() of more digits than Python turns into a number
        raise BeyondLimitsError(f"a number that cannot be held ({error})") from error
    _check_depth(tree)
    return tree


def reason(error: Exception) -> str:
    """Why something could not be read, on one line and of bounded length."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:200] or type(error).__name__


def _whole(digits: str) -> int:
    if len(digits) < 20:
        return int(digits)
    if len(digits) > 21 or abs(found := int(digits)) >= LARGEST_WHOLE:
        raise BeyondLimitsError(f"a whole number of {len(digits)} digits")
    return found


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not a finite number")


def _marks(text: str | bytes) -> int:
    """At least as many as there are lists and objects within one another."""
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{")
    return text.count("[") + text.count("{")


def _check_depth(tree: object) -> None:
    """Walk a tree layer by layer, without recursion."""
    layer = [tree]
    for _ in range(DEEPEST + 1):
        inner: list[object] = []
        for value in layer:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, int) and abs(value) >= LARGEST_WHOLE:
                raise BeyondLimitsError("a whole number of too many digits")
        layer = inner
        if not layer:
            return
    raise _too_deep()


def _too_deep() -> BeyondLimitsError:
    return BeyondLimitsError(f"lists or tables more than {DEEPEST} deep within one another")
