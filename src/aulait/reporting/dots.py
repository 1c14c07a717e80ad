"""Arms as dots with error bars: a line for each method and a colour for each setting, where the
arms' labels tell them apart.

An arm of the label "name=fedit preset=uniform" and the method fedit has the setting
"preset=uniform": the words of the label without the one that names the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from aulait.reporting import numbers
from aulait.reporting.arms import plain_label
from aulait.reporting.chart import SHAPES, Chart, ChartAxis, ChartLine, ChartRule, chart_label
from aulait.reporting.measures import ComparisonRow, Measure

COLORS: Final = 8


def series_color(index: int) -> str:
    """A colour of the style sheet, over and over."""
    return f"c{index % COLORS}"


def arm_setting(row: ComparisonRow) -> str:
    """What the label of an arm says besides its method."""
    method = str(row["algorithm"])
    return " ".join(word for word in str(row["arm"]).split()
                    if method not in (word, word.partition("=")[2]))


def rows_by_setting(rows: Sequence[ComparisonRow]) -> dict[str, list[ComparisonRow]]:
    """Setting -> its rows, at most one a method; empty where the labels do not tell methods and
    settings apart."""
    found: dict[str, list[ComparisonRow]] = {}
    for row in rows:
        found.setdefault(arm_setting(row), []).append(row)
    common = set.intersection(*(set(name.split()) for name in found)) if len(found) > 1 else set()
    found = {" ".join(word for word in name.split() if word not in common): group
             for name, group in found.items()}
    clear = all(len({row["algorithm"] for row in group}) == len(group) for group in found.values())
    return found if clear and any(len(group) > 1 for group in found.values()) else {}


def arm_dots(rows: Sequence[ComparisonRow], measure: Measure) -> Chart:
    """The mean of every arm in one measure, with its deviation, and the base model as a dashed
    line."""
    shown = [row for row in rows if row.get(measure.key) is not None]
    groups = rows_by_setting(shown)
    column = "algorithm" if groups else "arm"
    names = list(dict.fromkeys(str(row[column]) for row in shown))
    series = (
        {name or "as it is": group for name, group in groups.items()} if groups
        else {str(row["arm"]): [row] for row in shown}
    )
    many = len(groups) > 1
    lines = []
    for index, (name, group) in enumerate(series.items()):
        beside = 0.5 * ((index + 0.5) / len(series) - 0.5) if many else 0.0
        lines.append(_dots(name if many else "", group, measure, index,
                           [names.index(str(row[column])) + beside for row in group]))
    bases = [row[f"base_{measure.key}"] for row in shown
             if row.get(f"base_{measure.key}") is not None]
    rules = [ChartRule(fmean(bases), "base model", upright=True)] if bases else []
    title = measure.name if measure.rising else f"{measure.name}, nats per token"
    places = ChartAxis(names=[chart_label(plain_label(name)) for name in names], downwards=True)
    return Chart(ChartAxis(title, measure.tick_style), places, lines, rules=rules, legend=many)


def arm_dots_height(rows: Sequence[ComparisonRow], measure: Measure) -> int:
    """Pixels that the figure needs."""
    shown = [row for row in rows if row.get(measure.key) is not None]
    groups = rows_by_setting(shown)
    lines = len({row["algorithm"] for row in shown}) if groups else len(shown)
    return 20 + lines * max(34, 16 * len(groups))


def _dots(name: str, rows: Sequence[ComparisonRow], measure: Measure, index: int,
          places: Sequence[float]) -> ChartLine:
    """The arms of one setting."""
    means = [float(row[measure.key]) for row in rows]
    spread = [float(row.get(f"{measure.key}_std") or 0.0) for row in rows]
    return ChartLine(
        chart_label(name), means, places, series_color(index), "none", size=10,
        marker=SHAPES[index // COLORS % len(SHAPES)],
        x_bars=[(mean - s, mean + s) for mean, s in zip(means, spread, strict=True)],
        tips=[f"{plain_label(row['arm'])}: {_told(row, measure)}" for row in rows])


def _told(row: ComparisonRow, measure: Measure) -> str:
    return numbers.spread(row[measure.key], row.get(f"{measure.key}_std"), measure.style)
