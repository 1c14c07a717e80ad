"""Values of a row's fields: texts, labels, and the names of owners and of units of protection.

Messages say what was found, never its content.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral, Real

_WHOLE_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.0*)?")
_NO_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_UNSEEN = "\ufeff\u200b"  # letters without width, at the ends of a name


def text_field(fields: Mapping[str, object], field: str) -> str:
    """A text that is not empty.

    Raises:
        ValueError: anything else; the message says what was found, without its content.
    """
    if field not in fields:
        raise ValueError(f"no field '{field}'")
    value = fields[field]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"field '{field}' is empty")
    if not isinstance(value, str):
        raise ValueError(f"field '{field}' is {type(value).__name__}, expected text")
    if not is_unicode(value):
        raise ValueError(f"field '{field}' holds half a character (a lone surrogate)")
    return value


def name_field(fields: Mapping[str, object], field: str) -> str:
    """A label: a text, or a number written as text; ``ValueError`` as for ``text_field``."""
    value = fields.get(field)
    return str(value) if isinstance(value, int | float) else text_field(fields, field)


def unit_field(fields: Mapping[str, object], field: str) -> str:
    """The value that names an owner or a unit of protection, in one form however a file writes it.

    A text without outer white space, in Unicode's composed form (NFC); a whole number in digits,
    whether the file has 17, 17.0 or "17". Leading zeros stay: "017" is another owner.

    Raises:
        ValueError: as for ``text_field``; what is no number (NaN, infinity), written as one or
            spelled out, names nobody.
    """
    value = fields.get(field)
    if not isinstance(value, str):
        return _number(fields, field)
    text = text_field(fields, field)
    text = text.strip() if text.isascii() else _bare(unicodedata.normalize("NFC", text))
    if not text:
        raise ValueError(f"field '{field}' is empty")
    if _NO_NUMBER.fullmatch(text):
        raise ValueError(f"field '{field}' is empty (NaN or infinity)")
    whole = _WHOLE_NUMBER.fullmatch(text)
    if whole is None:
        return text
    sign, digits = whole.groups()
    return digits if digits == "0" else sign + digits


def _number(fields: Mapping[str, object], field: str) -> str:
    """A number that names an owner or a unit; whatever is neither number nor text is a fault."""
    value = fields.get(field)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Real) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, float | Decimal):
        return text_field(fields, field)
    if not math.isfinite(value):
        raise ValueError(f"field '{field}' is empty (NaN or infinity)")
    if value == int(value):
        return str(int(value))
    return str(value.normalize() if isinstance(value, Decimal) else value)


def _bare(text: str) -> str:
    """A name without white space and unseen letters around it; of a bare name, itself."""
    while (less := text.strip().strip(_UNSEEN)) != text:
        text = less
    return text


def is_unicode(value: str) -> bool:
    """Whether a text has no half characters (lone surrogates)."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
