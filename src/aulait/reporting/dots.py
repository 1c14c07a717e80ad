"""Arms as dots with error bars: a line for each method and a colour for each setting, where the
arms' labels tell them apart.

An arm of the label "name=fedit preset=uniform" and the method fedit has the setting
"preset=uniform": the words of the label without the one that names the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from aulait.reporting import figures
from aulait.reporting.figures import PlotlyFigure
from aulait.reporting.measures import ComparisonRow, Measure

COLORS: Final = 8
SYMBOLS: Final = ("circle", "square", "diamond", "cross")


def series_color(index: int) -> str:
    """A colour of the style sheet, over and over."""
    return f"@c{index % COLORS}"


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


def arm_dots(rows: Sequence[ComparisonRow], measure: Measure) -> PlotlyFigure:
    """The mean of every arm in one measure, with its deviation, and the base model as a dashed
    line."""
    shown = [row for row in rows if row.get(measure.key) is not None]
    groups = rows_by_setting(shown)
    if groups:
        many = len(groups) > 1
        data = [_trace([str(row["algorithm"]) for row in group], group, measure, i,
                       name or "as it is")
                for i, (name, group) in enumerate(groups.items())]
    else:
        many = False
        data = [_trace([str(row["arm"])], [row], measure, i, str(row["arm"]))
                for i, row in enumerate(shown)]
    order = [figures.plot_label(name, 40)
             for name in dict.fromkeys(str(row["algorithm" if groups else "arm"]) for row in shown)]
    y = figures.axis(autorange="reversed", type="category", categoryorder="array",
                     categoryarray=order)
    bases = [row[f"base_{measure.key}"] for row in shown
             if row.get(f"base_{measure.key}") is not None]
    base = fmean(bases) if bases else None
    title = measure.name if measure.rising else f"{measure.name}, nats per token"
    x = figures.axis(title, tickformat=measure.tick_format,
                     **_range(shown, measure, base))
    more = {"showlegend": True, "scattermode": "group", "scattergap": 0.3} if many else {}
    return {"data": data, "layout": figures.layout(x, y, **more, **_base_line(base, many))}


def arm_dots_height(rows: Sequence[ComparisonRow], measure: Measure) -> int:
    """Pixels that the figure needs."""
    shown = [row for row in rows if row.get(measure.key) is not None]
    groups = rows_by_setting(shown)
    lines = len({row["algorithm"] for row in shown}) if groups else len(shown)
    return 120 + lines * max(34, 16 * len(groups))


def _trace(names: Sequence[str], rows: Sequence[ComparisonRow], measure: Measure, index: int,
           name: str) -> PlotlyFigure:
    errors = [row.get(f"{measure.key}_std") or 0.0 for row in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "orientation": "h",
        "offsetgroup": str(index),
        "name": figures.plot_label(name, 40),
        "x": [row[measure.key] for row in rows],
        "y": [figures.plot_label(text, 40) for text in names],
        "error_x": {"type": "data", "array": errors, "color": series_color(index), "thickness": 1.5,
                    "width": 5},
        "marker": {"color": series_color(index), "size": 10,
                   "symbol": SYMBOLS[index // COLORS % len(SYMBOLS)]},
        "hovertemplate": f"%{{y}}: %{{x:{measure.hover_format}}}<extra>%{{fullData.name}}</extra>",
    }


def _range(rows: Sequence[ComparisonRow], measure: Measure, base: float | None) -> PlotlyFigure:
    """From the least to the greatest of all values with their bars, and some room."""
    ends = [row[measure.key] + sign * (row.get(f"{measure.key}_std") or 0.0) for row in rows
            for sign in (-1, 1)]
    ends += [] if base is None else [base]
    room = 0.06 * (max(ends) - min(ends)) if ends else 0.0
    return {"range": [min(ends) - room, max(ends) + room]} if room > 0 else {}


def _base_line(base: float | None, legend: bool) -> PlotlyFigure:
    """The base model's mean over the arms; named in the legend, or above the line where there is
    none."""
    if base is None:
        return {}
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": base, "x1": base,
            "name": "base model", "showlegend": legend}
    shape = {**line, "line": {"color": "@quiet", "width": 1.5, "dash": "dash"}}
    if legend:
        return {"shapes": [shape]}
    near = {"x": base, "yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "center",
            "showarrow": False, "text": "base model"}
    return {
        "shapes": [shape],
        "annotations": [{**near, "font": {"size": 11, "color": "@quiet"}}],
        "margin": {"l": 8, "r": 36, "t": 22, "b": 8},
    }
