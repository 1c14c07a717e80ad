"""A chart as data: two axes, and what is drawn between them. ``drawing`` makes markup of it.

Colours are names of the style sheet ("accent", "quiet", "c3"), so that a chart follows the theme of
the page. Texts are plain; the drawing escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from aulait.reporting import numbers
from aulait.reporting.numbers import Style

Dash = Literal["solid", "dash", "dotted", "dashdot", "none"]
MarkerShape = Literal["none", "circle", "square", "diamond", "cross"]
Hatch = Literal["", "/", "x"]
DASHES: Final[tuple[Dash, ...]] = ("solid", "dash", "dotted", "dashdot")
SHAPES: Final[tuple[MarkerShape, ...]] = ("circle", "square", "diamond", "cross")
LABEL: Final = 40
"""Letters of a label; more are cut off."""


def chart_label(text: object, limit: int = LABEL) -> str:
    """A text from outside on one line, short enough for a label."""
    said = " ".join(str(text).split())
    return said if len(said) <= limit else said[: limit - 1].rstrip() + "…"


@dataclass(frozen=True)
class ChartAxis:
    """One direction of a chart.

    Attributes:
        title: what is measured, with its unit.
        style: how a tick is written.
        low, high: the ends; None takes them from what is drawn, with some room.
        zero: the axis begins at zero.
        whole: ticks at whole numbers alone.
        logarithmic: ticks at powers of ten, or at ``ticks``.
        ticks: where the ticks are; empty chooses them.
        names: of the places 0, 1, 2, … where the axis has names instead of numbers.
        groups: of what each name is a part; written once under a stretch of equal ones.
        downwards: the first place is on top.
    """

    title: str = ""
    style: Style = numbers.plain_tick
    low: float | None = None
    high: float | None = None
    zero: bool = False
    whole: bool = False
    logarithmic: bool = False
    ticks: Sequence[float] = ()
    names: Sequence[str] = ()
    groups: Sequence[str] = ()
    downwards: bool = False


@dataclass(frozen=True)
class ChartLine:
    """Points, joined or not.

    Attributes:
        name: in the legend; empty leaves it out there.
        x, y: the points, in order.
        color: a colour of the style sheet.
        dash: of the line; "none" joins nothing.
        stepped: the line keeps a value until the next point.
        marker: at every point.
        hollow: whether each marker is an outline; one for all, or one for each point.
        width: of the line, in pixels.
        size: of the markers, in pixels across.
        x_bars, y_bars: (low, high) of a bar through each point.
        tips: what is said of each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = "accent"
    dash: Dash = "solid"
    stepped: bool = False
    marker: MarkerShape = "circle"
    hollow: Sequence[bool] = (False,)
    width: float = 2
    size: float = 6
    x_bars: Sequence[tuple[float, float]] = ()
    y_bars: Sequence[tuple[float, float]] = ()
    tips: Sequence[str] = ()


@dataclass(frozen=True)
class ChartBars:
    """Bars of one kind; where several kinds have a bar at one place, they are stacked.

    Attributes:
        name: in the legend; empty leaves it out there.
        at: the place of each bar on the axis of places.
        values: its length; None for no bar.
        color: a colour of the style sheet.
        hatch: "/" or "x" draws lines in the bar, so that colour alone does not tell it.
        tips: what is said of each bar.
    """

    name: str
    at: Sequence[float]
    values: Sequence[float | None]
    color: str = "accent"
    hatch: Hatch = ""
    tips: Sequence[str] = ()


@dataclass(frozen=True)
class ChartRule:
    """A dashed line across the chart at a value; ``upright`` where the value is one of x. The label
    stands below it, or above where ``above``."""

    at: float
    label: str = ""
    upright: bool = False
    above: bool = True


@dataclass(frozen=True)
class ChartBand:
    """A tinted stretch between two values of y, or of x where ``upright``."""

    low: float
    high: float
    label: str = ""
    upright: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        x, y: the axes.
        lines, bars, rules, bands: what is drawn; bands lie lowest, rules above the bars.
        lying: the bars lie, their places are on the y axis.
        legend: whether the names of lines and bars stand above the chart.
        summary: what a reader who does not see the chart is told, after its title.
    """

    x: ChartAxis
    y: ChartAxis
    lines: Sequence[ChartLine] = ()
    bars: Sequence[ChartBars] = ()
    rules: Sequence[ChartRule] = ()
    bands: Sequence[ChartBand] = ()
    lying: bool = False
    legend: bool = False
    summary: str = ""
