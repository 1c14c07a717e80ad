"""Draws a chart as SVG that needs no script: it fills the width it gets, at letters of one size.

Places are percentages of the field between the axes, so that the browser stretches the chart and
not its letters; only lines, which SVG cannot place in percent, lie in a box of 1000 by 1000 that is
stretched without its strokes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from aulait.reporting import numbers
from aulait.reporting.chart import Chart, ChartAxis, ChartBars, ChartLine, MarkerShape

MOST_TICKS = 6
MOST_NAMES = 16
"""Names along the x axis; of more, every so many-th is written."""
MANY_BARS = 160
"""More bars than these are drawn as one outline."""
LARGEST = 1e300
"""Values beyond do not settle where an axis ends."""
GAP = 0.25
"""The part of a place that its bar leaves free."""


@dataclass(frozen=True)
class Tick:
    """A tick: its place in percent from the low end of the axis, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class DrawnAxis:
    """An axis with its ends settled.

    Attributes:
        axis: as it was asked for.
        low, high: the ends, of logarithms where the axis is logarithmic.
        ticks: along it.
    """

    axis: ChartAxis
    low: float
    high: float
    ticks: tuple[Tick, ...]

    def percent(self, value: float) -> float:
        """The place of a value, in percent from the low end."""
        return percent_of(self.axis, value, self.low, self.high)


def percent_of(axis: ChartAxis, value: float, low: float, high: float) -> float:
    """The place of a value between two ends, in percent, rounded; values beyond stay near."""
    shown = _raised(axis, value)
    return round(min(200.0, max(-100.0, 100 * (shown - low) / (high - low))), 3)


def drawn_axis(axis: ChartAxis, values: Sequence[float]) -> DrawnAxis:
    """The axis for the values that are drawn along it; an empty one reaches from 0 to 1."""
    if axis.names:
        low, high = -0.5, len(axis.names) - 0.5
        return DrawnAxis(axis, low, high, tuple(
            Tick(percent_of(axis, place, low, high), name)
            for place, name in enumerate(axis.names)))
    raised = [_raised(axis, value) for value in values if abs(value) < LARGEST]
    raised += [0.0] if axis.zero and not axis.logarithmic else []
    low, high = min(raised, default=0.0), max(raised, default=1.0)
    room = 0.06 * (high - low) or 0.5 * (abs(high) or 1.0)
    room = 0.4 if axis.whole else room
    low = low if axis.zero and low >= 0 else low - room
    high = high + room
    low = low if axis.low is None else _raised(axis, axis.low)
    high = high if axis.high is None else _raised(axis, axis.high)
    high = high if high > low else low + 1.0
    return DrawnAxis(axis, low, high, tuple(
        Tick(percent_of(axis, value, low, high), axis.style(value))
        for value in _tick_values(axis, low, high)))


def _raised(axis: ChartAxis, value: float) -> float:
    """The value as the axis measures: its logarithm on a logarithmic one."""
    return math.log10(max(value, 1e-300)) if axis.logarithmic else value


def _tick_values(axis: ChartAxis, low: float, high: float) -> list[float]:
    """Where the ticks of an axis of numbers are."""
    if axis.ticks:
        return [v for v in axis.ticks if low - 1e-9 <= _raised(axis, v) <= high + 1e-9]
    if axis.logarithmic:
        first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
        every = max(1, math.ceil((last - first + 1) / MOST_TICKS))
        return [10.0**power for power in range(first, last + 1, every)]
    step = _round_step((high - low) / (MOST_TICKS - 1))
    step = max(1.0, round(step)) if axis.whole else step
    start = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - start
    return [round((start + k) * step, 12) for k in range(count + 1)]


def _round_step(least: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, at least so large."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(power * factor for factor in (1, 2, 2.5, 5, 10, 20)
                if power * factor >= least * (1 - 1e-9))


@dataclass(frozen=True)
class DrawnBar:
    """A bar in percent from the upper left corner, with what is said of it."""

    x: float
    y: float
    width: float
    height: float
    color: str
    hatch: str
    tip: str


@dataclass(frozen=True)
class DrawnPoint:
    """A marker in percent, with the ends of its bars (x, y, x, y; empty for none)."""

    x: float
    y: float
    color: str
    shape: MarkerShape
    hollow: bool
    size: float
    tip: str
    bars: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class DrawnPath:
    """A line or an outline: points of the stretched box, as SVG writes them."""

    points: str
    color: str
    width: float
    dash: str
    filled: bool = False


@dataclass(frozen=True)
class DrawnMark:
    """A rule (``size`` 0) or a band, in percent; its label hangs below where not ``above``."""

    at: float
    size: float
    upright: bool
    label: str
    above: bool


@dataclass(frozen=True)
class DrawnKey:
    """A line of the legend."""

    name: str
    color: str
    hatch: str
    shape: MarkerShape
    dash: str
    hollow: bool


@dataclass(frozen=True)
class Drawing:
    """All of a chart that the template writes down; places as in the classes of its parts.

    Attributes:
        gutter: letters of the longest tick of the y axis.
        groups: (from, to, name) of stretches of the x axis, in percent.
    """

    x: DrawnAxis
    y: DrawnAxis
    gutter: int
    groups: tuple[tuple[float, float, str], ...]
    bars: tuple[DrawnBar, ...]
    paths: tuple[DrawnPath, ...]
    points: tuple[DrawnPoint, ...]
    marks: tuple[DrawnMark, ...]
    keys: tuple[DrawnKey, ...]
    summary: str


ToPercent = Callable[[float, float], tuple[float, float]]
"""(x, y) of the data as percent from the upper left corner."""


def drawn(chart: Chart) -> Drawing:
    """A chart with every place settled."""
    stacked = [_stacked(chart.bars, kind) for kind in range(len(chart.bars))]
    x, y = _axes(chart, stacked)

    def place(across: float, up: float) -> tuple[float, float]:
        """From the upper left corner."""
        height = y.percent(up)
        return x.percent(across), round(height if chart.y.downwards else 100 - height, 3)

    bars, outlines = _drawn_bars(chart, stacked, place)
    return Drawing(
        x, y, max((len(tick.label) for tick in y.ticks), default=1), _groups(x), bars,
        (*outlines, *(path for line in chart.lines for path in _paths(line, place))),
        tuple(point for line in chart.lines for point in _points(line, place)),
        tuple(_marks(chart, x, y)), _keys(chart) if chart.legend else (),
        chart.summary or _summary(chart))


def _axes(chart: Chart, stacked: Sequence[Sequence[tuple[float, float]]],
          ) -> tuple[DrawnAxis, DrawnAxis]:
    """Both axes, for everything that is drawn."""
    ends = [end for kind in stacked for pair in kind for end in pair]
    places = [place + side for kind in chart.bars for place in kind.at for side in (-0.5, 0.5)]
    values: dict[bool, list[float]] = {False: [], True: []}  # by: whether along x
    values[chart.lying] += ends
    values[not chart.lying] += places
    for line in chart.lines:
        values[True] += [*line.x, *(end for pair in line.x_bars for end in pair)]
        values[False] += [*line.y, *(end for pair in line.y_bars for end in pair)]
    for rule in chart.rules:
        values[rule.upright].append(rule.at)
    for band in chart.bands:
        values[band.upright] += [band.low, band.high]
    x = drawn_axis(chart.x, values[True])
    step = -(-len(x.ticks) // MOST_NAMES) if chart.x.names else 1
    return replace(x, ticks=x.ticks[::step]), drawn_axis(chart.y, values[False])


def _stacked(kinds: Sequence[ChartBars], kind: int) -> list[tuple[float, float]]:
    """(from, to) of the bars of a kind, on those of the kinds before it at the same place."""
    below: dict[float, float] = defaultdict(float)
    for other in kinds[:kind]:
        for place, value in zip(other.at, other.values, strict=True):
            below[place] += value or 0.0
    own = kinds[kind]
    return [(below[place], below[place] + (value or 0.0))
            for place, value in zip(own.at, own.values, strict=True)]


def _drawn_bars(chart: Chart, stacked: Sequence[Sequence[tuple[float, float]]], place: ToPercent,
                ) -> tuple[tuple[DrawnBar, ...], tuple[DrawnPath, ...]]:
    """The bars; as outlines where they are too many to be told apart."""
    if sum(len(kind.at) for kind in chart.bars) > MANY_BARS and not chart.lying:
        outlines = (_outline(kind, place) for kind in chart.bars if kind.at)
        return (), tuple(outlines)
    half, found = (1 - GAP) / 2, []
    for kind, ends in zip(chart.bars, stacked, strict=True):
        tips = kind.tips or [""] * len(kind.at)
        for at, (low, high), value, tip in zip(kind.at, ends, kind.values, tips, strict=True):
            if value is None:
                continue
            corners = ((low, at - half), (high, at + half)) if chart.lying else (
                (at - half, low), (at + half, high))
            (left, top), (right, bottom) = (place(*corner) for corner in corners)
            found.append(DrawnBar(min(left, right), min(top, bottom),
                                  round(abs(right - left), 3), round(abs(bottom - top), 3),
                                  kind.color, kind.hatch, tip))
    return tuple(found), ()


def _outline(kind: ChartBars, place: ToPercent) -> DrawnPath:
    """Standing bars side by side as one filled outline; of very many, every so many-th."""
    step = max(1, len(kind.at) // (2 * MANY_BARS))
    chosen = list(zip(kind.at, kind.values, strict=True))[::step]
    corners = [(chosen[0][0] - 0.5, 0.0)]
    for at, value in chosen:
        corners += [(at - 0.5, value or 0.0), (at - 0.5 + step, value or 0.0)]
    last = kind.at[-1] + 0.5
    corners = [(min(at, last), value) for at, value in [*corners, (last, 0.0)]]
    return DrawnPath(_written([place(*corner) for corner in corners]), kind.color, 0, "", True)


def _paths(line: ChartLine, place: ToPercent) -> list[DrawnPath]:
    """The line through the points."""
    if line.dash == "none" or len(line.x) < 2:
        return []
    found = [(across, up) for across, up in zip(line.x, line.y, strict=True)]
    if line.stepped:
        found = [found[0], *(corner for before, after in pairwise(found)
                             for corner in ((after[0], before[1]), after))]
    return [DrawnPath(_written([place(*point) for point in found]), line.color, line.width,
                      line.dash)]


def _written(points: Sequence[tuple[float, float]]) -> str:
    """Points in percent as SVG writes them, in the box of 1000 by 1000."""
    return " ".join(f"{10 * x:.0f},{10 * y:.0f}" for x, y in points)


def _points(line: ChartLine, place: ToPercent) -> list[DrawnPoint]:
    """The markers; where there are none, points that are seen under the pointer alone."""
    found = []
    for index, (across, up) in enumerate(zip(line.x, line.y, strict=True)):
        ends = [((line.x_bars[index][side], up) for side in (0, 1))] if line.x_bars else []
        ends += [((across, line.y_bars[index][side]) for side in (0, 1))] if line.y_bars else []
        bars = tuple((*place(*first), *place(*last)) for first, last in ends)
        x, y = place(across, up)
        found.append(DrawnPoint(
            x, y, line.color, line.marker, line.hollow[index % len(line.hollow)], line.size,
            line.tips[index] if line.tips else "", bars))
    return found


def _marks(chart: Chart, x: DrawnAxis, y: DrawnAxis) -> list[DrawnMark]:
    """Bands, then rules, in percent from the left, or from the top."""
    found = []
    for band in chart.bands:
        axis = x if band.upright else y
        low, high = sorted((axis.percent(band.low), axis.percent(band.high)))
        start = low if band.upright or chart.y.downwards else 100 - high
        found.append(DrawnMark(round(start, 3), round(high - low, 3), band.upright, band.label,
                               False))
    for rule in chart.rules:
        at = (x if rule.upright else y).percent(rule.at)
        at = at if rule.upright or chart.y.downwards else 100 - at
        found.append(DrawnMark(round(at, 3), 0.0, rule.upright, rule.label, rule.above))
    return found


def _groups(x: DrawnAxis) -> tuple[tuple[float, float, str], ...]:
    """Stretches of places of one group."""
    found: list[tuple[float, float, str]] = []
    start = 0
    for name, members in groupby(x.axis.groups):
        end = start + len(list(members))
        found.append((x.percent(start - 0.5), x.percent(end - 0.5), name))
        start = end
    return tuple(found)


def _keys(chart: Chart) -> tuple[DrawnKey, ...]:
    bars = [DrawnKey(kind.name, kind.color, kind.hatch, "square", "none", False)
            for kind in chart.bars if kind.name]
    lines = [DrawnKey(line.name, line.color, "", line.marker, line.dash, line.hollow[0])
             for line in chart.lines if line.name]
    return (*bars, *lines)


def _summary(chart: Chart) -> str:
    """The ends of the lines and the longest bars, or the points of named places, in words."""
    said = []
    for line in chart.lines[:8]:
        if line.y and chart.y.names:
            said += [f"{chart.y.names[round(place)]} {chart.x.style(value)}"
                     for value, place in zip(line.x, line.y, strict=True)]
        elif line.y:
            ends = [chart.y.style(value) for value in (line.y[0], line.y[-1])]
            named = f"{line.name}: " if line.name else ""
            said.append(f"{named}{ends[0]}" + (f" to {ends[1]}" if len(line.y) > 1 else ""))
    for kind in chart.bars[:8]:
        heights = [value for value in kind.values if value is not None]
        if heights:
            named = f"{kind.name}: " if kind.name else ""
            said.append(f"{named}{numbers.counted(len(heights), 'bar')}, largest "
                        f"{(chart.x if chart.lying else chart.y).style(max(heights))}")
    return "; ".join(said)
