"""The figures of virtual time: by tier, by round, and the loss over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from aulait.reporting import figures, numbers, virtual
from aulait.reporting.chart import (
    Chart,
    ChartAxis,
    ChartBand,
    ChartBars,
    ChartRule,
    Hatch,
    chart_label,
)
from aulait.reporting.folder import RunFiles
from aulait.reporting.numbers import Style
from aulait.reporting.stage_names import STAGE_NAMES
from aulait.reporting.virtual import VirtualTime
from aulait.runfolder.schema import RoundLine, VirtualClock

STATES: Final[Mapping[str, tuple[str, Hatch]]] = {
    "everybody answered": ("soft", ""),
    "some were lost": ("c4", "/"),
    "closed when enough had answered": ("quiet", ""),
    "closed at the deadline": ("accent", ""),
    "nobody answered": ("alarm", "x"),
    "no client at work": ("hairline", ""),
}
"""How a round ended -> colour and hatching."""

REPLIES: Final[Mapping[str, tuple[str, Hatch]]] = {
    "answered": ("accent", ""), "late": ("c4", ""), "lost": ("alarm", "/"), "away": ("soft", "")}
"""How a request ended -> colour and hatching."""

BarSeries = Mapping[str, tuple[Sequence[float], str, Hatch]]


def _bars(tiers: Sequence[str], series: BarSeries, axis: ChartAxis, said: Style) -> Chart:
    """Lying stacked bars, one for each tier; series: name -> (values, colour, hatching)."""
    bars = [ChartBars(name, list(range(len(tiers))), list(values), color, hatch,
                      [f"{tier}: {name} {said(value)}"
                       for tier, value in zip(tiers, values, strict=True)])
            for name, (values, color, hatch) in series.items()]
    return Chart(axis, ChartAxis(names=list(map(chart_label, tiers)), downwards=True), bars=bars,
                 lying=True, legend=True)


def round_label(line: RoundLine) -> str:
    """The number of a round as a label of an axis; a question mark where it is missing."""
    return "?" if line.round is None else chart_label(numbers.count(line.round), 8)


def tier_time(found: VirtualTime) -> Chart | None:
    """Mean seconds of a client in a round it was asked in: at work and waiting."""
    asked = {name: own for name, own in found.tiers.items() if virtual.requests_received(own) > 0}
    if not asked:
        return None
    means = {key: [own[key] / virtual.requests_received(own) for own in asked.values()]
             for key in ("busy_s", "idle_s")}
    unit, scale = virtual.time_unit(max(map(sum, zip(*means.values(), strict=True))))
    series: BarSeries = {
        name: ([value / scale for value in means[key]], color, "")
        for name, key, color in (("at work", "busy_s", "accent"), ("waiting", "idle_s", "soft"))}
    return _bars(list(asked), series, ChartAxis(unit, zero=True),
                 lambda value: f"{numbers.significant(value)} {unit}")


def tier_replies(found: VirtualTime) -> Chart | None:
    """Shares of each tier's requests by how they ended; late ones are work in vain."""
    sums = {name: virtual.requests_received(own) + own["away"] for name, own in found.tiers.items()}
    named = {name: own for name, own in found.tiers.items() if sums[name] > 0}
    if not named:
        return None
    series: BarSeries = {
        kind: ([own[kind] / sums[name] for name, own in named.items()], *look)
        for kind, look in REPLIES.items() if any(own[kind] for own in named.values())}
    return _bars(list(named), series, ChartAxis(style=numbers.whole_percent, zero=True, high=1.02),
                 numbers.percent)


def round_time(run: RunFiles) -> Chart | None:
    """A bar for each round, coloured by how it ended, with the deadline as a line."""
    found = [(line, clock, length_s) for line, clock in virtual.timed_rounds(run)
             if (length_s := clock.round_s) is not None]
    if not found:
        return None
    limit_s = virtual.deadline_s(run)
    unit, scale = virtual.time_unit(max(length_s for *_, length_s in found))
    ended = [virtual.round_outcome(clock, limit_s) for _, clock, _ in found]
    tips = [_round_in_words(line, clock, state, f"{numbers.significant(length_s / scale)} {unit}")
            for (line, clock, length_s), state in zip(found, ended, strict=True)]
    bars = [ChartBars(name, list(range(len(found))),
                      [s / scale if own == name else None
                       for (*_, s), own in zip(found, ended, strict=True)], color, hatch, tips)
            for name, (color, hatch) in STATES.items() if name in ended]
    near = limit_s is not None and limit_s <= 1.5 * max(length_s for *_, length_s in found)
    rules = [] if limit_s is None or not near else [
        ChartRule(limit_s / scale, f"deadline {numbers.duration(limit_s)}")]
    return Chart(ChartAxis(names=[round_label(line) for line, *_ in found],
                           groups=[STAGE_NAMES[line.stage or ""] for line, *_ in found]),
                 ChartAxis(unit, zero=True), bars=bars, rules=rules, legend=True)


def _round_in_words(line: RoundLine, clock: VirtualClock, state: str, length: str) -> str:
    counts = ", ".join(f"{numbers.count(getattr(clock, key))} {key}" for key in virtual.OUTCOMES)
    return f"round {round_label(line)}: {length}; {counts}; {state}"


def loss_time(run: RunFiles) -> Chart | None:
    """Held-out loss by virtual time since the start, with the times of synthesis as bands and the
    base model as a line."""
    points = virtual.losses_over_time(run)
    if not points:
        return None
    unit, scale = virtual.time_unit(points[-1][1])
    chart = figures.measure_curve([(r, loss) for r, _, loss in points], run.result.base_eval.loss)
    seconds = [s / scale for _, s, _ in points]
    bands = [ChartBand(first / scale, last / scale, "synthesis", upright=True)
             for first, last in _synthesis_times(run)]
    line = replace(chart.lines[0], x=seconds, y=[loss for _, _, loss in points],
                   tips=[f"{numbers.significant(s)} {unit}, round {numbers.count(r)}: "
                         f"{numbers.loss(loss)}"
                         for s, (r, _, loss) in zip(seconds, points, strict=True)])
    return replace(chart, x=ChartAxis(f"virtual {unit}", low=0, high=1.04 * seconds[-1]),
                   lines=[line], bands=bands)


def _synthesis_times(run: RunFiles) -> list[tuple[float, float]]:
    """(begin, end) of every stretch of synthesis, in virtual seconds since the start."""
    found: list[tuple[float, float]] = []
    now_s, stage = 0.0, ""
    for line, clock in virtual.timed_rounds(run):
        end_s = now_s if clock.total_s is None else clock.total_s
        if line.stage == "synthesis":
            first_s = found.pop()[0] if stage == "synthesis" else now_s
            found.append((first_s, end_s))
        now_s, stage = end_s, line.stage or ""
    return [(first_s, last_s) for first_s, last_s in found if last_s > first_s]
