"""Plotly figures as plain tables, without colours of their own: "@name" is a colour of the style
sheet.

The page's script puts the colour of the present theme in place of "@accent" and its like, under
keys that end in "color" only. Labels that come from a run folder must go through `plot_label`:
plotly reads markup in labels.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from aulait.core.files import JsonObject

PlotlyFigure = JsonObject
"""A figure or a part of one, as plotly.js takes it."""

ROLES: Final = {"proxy": ("@accent", "solid"), "local": ("@ink", "solid"),
                "split": ("@quiet", "dash")}
"""Colour and dash of a role, the same in all figures."""


def plot_label(text: object, limit: int = 60) -> str:
    """A text from outside as a label: short, and with no markup for plotly to read."""
    short = str(text) if len(str(text)) <= limit else str(text)[: limit - 1] + "…"
    return html.escape(short.replace("\n", " "), quote=False)


def axis(title: str = "", **more: object) -> PlotlyFigure:
    """An axis in the page's manner: a hairline grid, no box."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 12, "color": "@quiet"}},
        "gridcolor": "@hairline",
        "linecolor": "@hairline",
        "zerolinecolor": "@hairline",
        "tickfont": {"color": "@quiet", "size": 11},
        "automargin": True,
        **more,
    }


def layout(x: PlotlyFigure, y: PlotlyFigure, **more: object) -> PlotlyFigure:
    """The layout that all figures share."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "@ink"},
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@hairline", "font": {"color": "@ink"}},
        "xaxis": x,
        "yaxis": y,
        "showlegend": False,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom",
                   "traceorder": "normal"},
        **more,
    }


def measure_curve(points: Sequence[tuple[float, float]], first: float | None, percent: bool = False,
          shared: float | None = None) -> PlotlyFigure:
    """One measure by round, with the base model's value as a dashed line.

    Args:
        points: (round, measure) for the rounds that were measured; at least one.
        first: the base model's value; None draws no line.
        percent: the values are fractions.
        shared: the shared adapter's value after the last round, where the points are of personal
            ones; None draws none.
    """
    rounds, values = [point[0] for point in points], [point[1] for point in points]
    style = ".1%" if percent else ".3f"
    line = {
        "type": "scatter",
        "mode": "lines+markers" if len(rounds) <= 40 else "lines",
        "x": rounds,
        "y": values,
        "line": {"color": "@accent", "width": 2.5},
        "marker": {"color": "@accent", "size": 6},
        "hovertemplate": f"round %{{x}}: %{{y:{style}}}<extra></extra>",
    }
    data = [line] if shared is None else [line, _open_circle(rounds[-1], shared, style)]
    values = values if shared is None else [*values, shared]
    marks, reach = ({}, {}) if first is None else _base_line(values, first, percent)
    y = axis(tickformat=".1%" if percent else "", **reach)
    return {"data": data, "layout": layout(axis("round", **whole_ticks(rounds)), y, **marks)}


def _base_line(values: Sequence[float], first: float,
               percent: bool) -> tuple[PlotlyFigure, PlotlyFigure]:
    """The base model's value as a dashed line with its name, and a range of the axis that has room
    for both."""
    reach = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": first, "y1": first}
    shown = f"base model {100 * first:.1f} %" if percent else f"base model {first:.3f}"
    near = {"xref": "paper", "x": 1, "xanchor": "right", "y": first, "showarrow": False,
            "text": shown}
    low = first <= sum(values) / len(values)
    marks = {
        "shapes": [{**reach, "line": {"color": "@quiet", "width": 1.5, "dash": "dash"}}],
        "annotations": [{**near, "yanchor": "top" if low else "bottom",
                         "font": {"size": 11, "color": "@quiet"}}],
    }
    least, most = min(*values, first), max(*values, first)
    room = 0.12 * (most - least)
    return marks, {"range": [least - room, most + room]} if room > 0 else {}


def marked_height(value: float, text: str) -> PlotlyFigure:
    """A dashed line across the figure at a height, with its name above it."""
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
    near = {"xref": "paper", "x": 1, "xanchor": "right", "y": value, "yanchor": "bottom",
            "showarrow": False, "text": text}
    return {
        "shapes": [{**line, "line": {"color": "@quiet", "width": 1.5, "dash": "dash"}}],
        "annotations": [{**near, "font": {"size": 11, "color": "@quiet"}}],
    }


def _open_circle(at_round: float, value: float, style: str) -> PlotlyFigure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [at_round],
        "y": [value],
        "marker": {"color": "@accent", "size": 9, "symbol": "circle-open"},
        "hovertemplate": f"shared adapter: %{{y:{style}}}<extra></extra>",
    }


def whole_ticks(values: Sequence[float]) -> PlotlyFigure:
    """Ticks at whole numbers only, and room for a single point."""
    if not values:
        return {}
    low, high = min(values), max(values)
    gap = max(1, round((high - low) / 10))
    return {"range": [low - 0.4, high + 0.4], "dtick": gap, "tick0": low, "showgrid": False}


def epsilon_steps(series: dict[str, tuple[list[float], list[float]]],
          notes: dict[str, list[str]]) -> PlotlyFigure:
    """Epsilon so far by release, a staircase for each role.

    Args:
        series: role -> (numbers of the releases, epsilon after each).
        notes: role -> what each release was, as safe labels.
    """
    data = []
    for role, (releases, values) in series.items():
        color, dash = ROLES.get(role, ("@quiet", "dot"))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plot_label(role),
                "x": releases,
                "y": values,
                "text": notes[role],
                "line": {"color": color, "width": 2, "shape": "hv", "dash": dash},
                "marker": {"color": color, "size": 5},
                "hovertemplate": "release %{x} (%{text})<br>ε = "
                                 "%{y:.3f}<extra>%{fullData.name}</extra>",
            }
        )
    everywhere = [x for releases, _ in series.values() for x in releases]
    x = axis("release", **whole_ticks(everywhere))
    return {"data": data, "layout": layout(x, axis("ε so far", rangemode="tozero"),
        showlegend=True)}


def vote_bars(histogram: Sequence[float], kept: int | None,
              noise_std: float | None) -> PlotlyFigure:
    """The noised votes of all candidates, most votes first, over the band of plus and minus one
    noise deviation.

    Args:
        histogram: the released votes, in any order.
        kept: how many of the first are set off as kept; None sets off none.
        noise_std: the deviation of the noise in votes; None or 0 draws no band.
    """
    ranked = sorted(histogram, reverse=True)
    first = kept or 0
    data = []
    for name, color, start, part in (("kept", "@accent", 1, ranked[:first]),
            ("", "@soft", first + 1, ranked[first:])):
        data.append(
            {
                "type": "bar",
                "x": list(range(start, start + len(part))),
                "y": part,
                "marker": {"color": color, "line": {"width": 0}},
                "hovertemplate": f"rank %{{x}}{', ' + name if name else ''}: %{{y:.1f}} "
                                 "votes<extra></extra>",
            }
        )
    marks: PlotlyFigure = {}
    if noise_std:
        band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -noise_std,
                "y1": noise_std, "layer": "above"}
        marks["shapes"] = [{**band, "fillcolor": "@band", "line": {"width": 1, "color": "@band",
            "dash": "dot"}}]
        text = f"noise, ± one deviation: {noise_std:,.1f} votes"
        near = {"xref": "paper", "x": 0.01, "xanchor": "left", "y": -noise_std, "yanchor": "top",
                "showarrow": False}
        marks["annotations"] = [{**near, "text": text, "font": {"size": 11, "color": "@quiet"}}]
    x = axis("candidates, most votes first", showgrid=False, range=[0.3, len(ranked) + 0.7])
    return {"data": data, "layout": layout(x, axis("votes"), bargap=0.15, barmode="overlay",
        **marks)}


def stacked_bars(stages: list[str], rounds: list[str], series: dict[str, list[float | None]],
           unit: str) -> PlotlyFigure:
    """Bars by stage and round, one colour for each series, in the given unit."""
    colors = ("@accent", "@soft", "@quiet")
    data = [
        {
            "type": "bar",
            "name": plot_label(name),
            "x": [stages, rounds],
            "y": values,
            "marker": {"color": colors[index % len(colors)], "line": {"width": 0}},
            "hovertemplate": f"%{{x}}: %{{y:,.3~g}} {unit}<extra>{plot_label(name)}</extra>",
        }
        for index, (name, values) in enumerate(series.items())
    ]
    x = axis(showgrid=False, type="multicategory", dividercolor="@hairline", tickangle=0)
    return {"data": data, "layout": layout(x, axis(unit), barmode="stack", bargap=0.25,
        showlegend=len(series) > 1)}
