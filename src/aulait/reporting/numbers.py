"""How numbers look: the one place where figures become text. None becomes "not recorded" unless
said otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from aulait.reporting.values import number

Style = Callable[[object], str]

NOT_RECORDED: Final = "not recorded"
INFINITE: Final = "∞"
SPACE: Final = "\u00a0"
"""Stands between a figure and its unit, so that no line breaks there."""
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SIZES: Final = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_ENERGIES: Final = (("GJ", 1e9), ("MJ", 1e6), ("kJ", 1e3))


def count(value: object) -> str:
    """A whole number with thousands separators."""
    found = number(value)
    return NOT_RECORDED if found is None else f"{round(found):,}"


def counted(value: object, one: str) -> str:
    """A whole number with its noun: "1 client", "2 clients"."""
    return f"{count(value)} {one}" if number(value) == 1 else f"{count(value)} {one}s"


def significant(value: object, digits: int = 3) -> str:
    """A number with at least `digits` significant digits, separators above a thousand, a power of
    ten when tiny."""
    found = number(value)
    if found is None:
        return NOT_RECORDED
    if found == 0:
        return "0"
    order = int(f"{found:.{digits - 1}e}".split("e")[1])
    if order < -4 or order > 8:
        return power(found, digits)
    return f"{found:,.{max(0, digits - 1 - order)}f}"


def power(value: object, digits: int = 2) -> str:
    """A number as a power of ten: 1e-5 is "10⁻⁵", 2.5e-6 is "2.5 × 10⁻⁶"."""
    found = number(value)
    if found is None:
        return NOT_RECORDED
    if found == 0:
        return "0"
    mantissa, exponent = f"{found:.{digits - 1}e}".split("e")
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return ten if mantissa == "1" else f"{mantissa} × {ten}"


def loss(value: object) -> str:
    """A loss in nats per token, three decimals."""
    found = number(value)
    return NOT_RECORDED if found is None else f"{found:.3f}"


def perplexity(value: object) -> str:
    """A perplexity, one decimal."""
    found = number(value)
    return NOT_RECORDED if found is None else f"{found:,.1f}"


def percent(value: object, digits: int = 1) -> str:
    """A fraction as a percentage."""
    found = number(value)
    return NOT_RECORDED if found is None else f"{100 * found:.{digits}f}{SPACE}%"


def size(value: object) -> str:
    """A number of bytes in decimal units, three significant digits."""
    found = number(value)
    if found is None:
        return NOT_RECORDED
    return _scaled(found, _SIZES) or f"{found:,.0f}{SPACE}B"


def energy(value: object) -> str:
    """An energy in joules, three significant digits."""
    found = number(value)
    return (
        NOT_RECORDED if found is None else _scaled(found, _ENERGIES)
        or f"{significant(found)}{SPACE}J"
    )


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """The value in the first unit that it fills, the largest first; empty where it fills none."""
    return next((f"{significant(value / scale)}{SPACE}{unit}" for unit, scale in units
                 if abs(value) >= 0.9995 * scale), "")


def duration(value: object) -> str:
    """A time in seconds, told in the two largest units that matter."""
    found = number(value)
    if found is None:
        return NOT_RECORDED
    if abs(found) < 1:
        return f"{1000 * found:.0f}{SPACE}ms"
    if abs(found) < 59.95:
        return f"{found:.1f}{SPACE}s"
    seconds = round(found)
    if seconds < 3600:
        return f"{seconds // 60}{SPACE}min {seconds % 60}{SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{SPACE}h {minutes % 60}{SPACE}min"


def epsilon(value: object) -> str:
    """An epsilon: None and infinity are "∞", what is no number is "not recorded"."""
    if value is None or value == math.inf:
        return INFINITE
    found = number(value)
    return (
        NOT_RECORDED if found is None else f"{found:,.2f}" if found >= 0.1 or found == 0
        else significant(found)
    )


def delta(value: object) -> str:
    """A delta as a power of ten."""
    return power(value)


def plain_tick(value: object) -> str:
    """A tick with no more digits than it needs."""
    found = number(value)
    if found is None or found == 0:
        return "0"
    return f"{found:,.6g}" if 1e-3 <= abs(found) < 1e6 else power(found)


def whole_percent(value: object) -> str:
    """A share as a tick: in percent, with a decimal where it is small."""
    return percent(value, 0 if abs(100 * (number(value) or 0)) % 1 < 1e-9 else 1)


def or_dash(value: object, style: Style) -> str:
    """A value in its style; a dash where it is no number."""
    return "–" if number(value) is None else style(value)


def spread(mean: object, deviation: object, style: Style) -> str:
    """A mean and its standard deviation, each in the given style; the mean alone when there is no
    deviation."""
    return style(mean) if number(deviation) is None else f"{style(mean)} ± {style(deviation)}"
