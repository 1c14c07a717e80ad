"""The charts of a run's page, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from aulait.reporting import numbers
from aulait.reporting.chart import (
    Chart,
    ChartAxis,
    ChartBand,
    ChartBars,
    ChartLine,
    ChartRule,
    Dash,
    chart_label,
)
from aulait.reporting.numbers import Style

ROLES: Final[Mapping[str, tuple[str, Dash]]] = {
    "proxy": ("accent", "solid"), "local": ("ink", "solid"), "split": ("quiet", "dash")}
"""Colour and dash of a role, the same in all figures."""


def measure_curve(points: Sequence[tuple[float, float]], first: float | None, percent: bool = False,
                  shared: float | None = None) -> Chart:
    """One measure by round, with the base model's value as a dashed line.

    Args:
        points: (round, measure) for the rounds that were measured; at least one.
        first: the base model's value; None draws no line.
        percent: the values are fractions.
        shared: the shared adapter's value after the last round, where the points are of personal
            ones; None draws none.
    """
    if len(points) == 1 and first is not None:  # a line from the base says more than a dot
        points = [(0.0, first), *points]
    rounds, values = [point[0] for point in points], [point[1] for point in points]
    said: Style = numbers.percent if percent else numbers.loss
    lines = [ChartLine("", rounds, values, width=2.5,
                       marker="circle" if len(rounds) <= 40 else "none",
                       tips=[f"round {numbers.count(r)}: {said(v)}" for r, v in points])]
    if shared is not None:
        lines.append(ChartLine("", [rounds[-1]], [shared], dash="none", hollow=(True,), size=9,
                               tips=[f"shared adapter: {said(shared)}"]))
    low = first is not None and first <= sum(values) / len(values)
    rules = [] if first is None else [ChartRule(first, f"base model {said(first)}", above=not low)]
    return Chart(ChartAxis("round", whole=True),
                 ChartAxis(style=numbers.whole_percent if percent else numbers.plain_tick), lines,
                 rules=rules)


def epsilon_steps(series: dict[str, tuple[list[float], list[float]]],
                  notes: dict[str, list[str]]) -> Chart:
    """Epsilon so far by release, a staircase for each role.

    Args:
        series: role -> (numbers of the releases, epsilon after each).
        notes: role -> what each release was.
    """
    lines = []
    for role, (releases, values) in series.items():
        color, dash = ROLES.get(role, ("quiet", "dotted"))
        tips = [f"release {numbers.count(at)} ({note}): ε = {numbers.epsilon(value)}"
                for at, value, note in zip(releases, values, notes[role], strict=True)]
        lines.append(ChartLine(chart_label(role), releases, values, color, dash, stepped=True,
                               marker="circle" if len(releases) <= 60 else "none", size=5,
                               tips=tips))
    return Chart(ChartAxis("release", whole=True), ChartAxis("ε so far", zero=True), lines,
                 legend=True)


def vote_bars(histogram: Sequence[float], kept: int | None, noise_std: float | None) -> Chart:
    """The noised votes of all candidates, most votes first, over the band of plus and minus one
    noise deviation.

    Args:
        histogram: the released votes, in any order.
        kept: how many of the first are set off as kept; None sets off none.
        noise_std: the deviation of the noise in votes; None or 0 draws no band.
    """
    ranked = sorted(histogram, reverse=True)
    first = kept or 0
    bars = []
    for name, color, start, part in (("kept", "accent", 1, ranked[:first]),
                                     ("not kept" if first else "", "soft", first + 1,
                                      ranked[first:])):
        said = f", {name}" if name else ""
        bars.append(ChartBars(
            name, list(range(start, start + len(part))), part, color,
            tips=[f"rank {at}{said}: {votes:,.1f} votes" for at, votes in enumerate(part, start)]))
    bands = [] if not noise_std else [ChartBand(
        -noise_std, noise_std, f"noise, ± one deviation: {noise_std:,.1f} votes")]
    x = ChartAxis("candidates, most votes first", low=0.3, high=len(ranked) + 0.7, whole=True)
    return Chart(x, ChartAxis("votes"), bars=bars, bands=bands, legend=bool(first))


def stacked_bars(stages: list[str], rounds: list[str], series: dict[str, list[float | None]],
                 unit: str) -> Chart:
    """Bars by stage and round, one colour for each series, in the given unit."""
    colors = ("accent", "soft", "quiet")
    bars = [ChartBars(name if len(series) > 1 else "", list(range(len(rounds))), values,
                      colors[index % len(colors)],
                      tips=[f"{stage}, round {number}: {name} {numbers.significant(value)} {unit}"
                            for stage, number, value in zip(stages, rounds, values, strict=True)])
            for index, (name, values) in enumerate(series.items())]
    return Chart(ChartAxis(names=rounds, groups=stages), ChartAxis(unit, zero=True), bars=bars,
                 legend=len(series) > 1)
