"""The figures of virtual time: by tier, by round, and the loss over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from aulait.reporting import figures, numbers, virtual
from aulait.reporting.figures import PlotlyFigure
from aulait.reporting.folder import RunFiles
from aulait.reporting.virtual import VirtualTime
from aulait.runfolder.schema import RoundLine

STATES: Final = {
    "everybody answered": ("@soft", ""),
    "some were lost": ("@c4", "/"),
    "closed when enough had answered": ("@quiet", ""),
    "closed at the deadline": ("@accent", ""),
    "nobody answered": ("@alarm", "x"),
    "no client at work": ("@hairline", ""),
}
"""How a round ended -> colour and hatching."""


BarSeries = Mapping[str, tuple[Sequence[float], str, str]]


def _bars(tiers: Sequence[str], series: BarSeries, title: str, hover: str,
          **more: object) -> PlotlyFigure:
    """Lying stacked bars, one for each tier; series: name -> (values, colour, hatching)."""
    names = [figures.plot_label(name, 40) for name in tiers]
    data = [{"type": "bar", "orientation": "h", "name": name, "x": list(values), "y": names,
             "hovertemplate": hover,
             "marker": {"color": color, "line": {"width": 0},
                        "pattern": {"shape": shape, "size": 6}}}
            for name, (values, color, shape) in series.items()]
    y = figures.axis(autorange="reversed", type="category", showgrid=False)
    x = figures.axis(title, rangemode="tozero", **more)
    return {"data": data, "layout": figures.layout(x, y, barmode="stack", bargap=0.35,
        showlegend=True)}


def round_label(line: RoundLine) -> str:
    """The number of a round as a label of an axis; a question mark where it is missing."""
    return "?" if line.round is None else figures.plot_label(line.round, 8)


def tier_time(found: VirtualTime) -> PlotlyFigure | None:
    """Mean seconds of a client in a round it was asked in: at work and waiting."""
    asked = {name: own for name, own in found.tiers.items() if virtual.requests_received(own) > 0}
    if not asked:
        return None
    means = {key: [own[key] / virtual.requests_received(own) for own in asked.values()]
             for key in ("busy_s", "idle_s")}
    unit, scale = virtual.time_unit(max(map(sum, zip(*means.values(), strict=True))))
    series = {name: ([value / scale for value in means[key]], color, "")
              for name, key, color in (("at work", "busy_s", "@accent"),
                                       ("waiting", "idle_s", "@soft"))}
    return _bars(list(asked), series, unit,
                 f"%{{y}}: %{{x:,.3~g}} {unit}<extra>%{{fullData.name}}</extra>")


def tier_replies(found: VirtualTime) -> PlotlyFigure | None:
    """Shares of each tier's requests by how they ended; late ones are work in vain."""
    sums = {name: virtual.requests_received(own) + own["away"] for name, own in found.tiers.items()}
    named = {name: own for name, own in found.tiers.items() if sums[name] > 0}
    if not named:
        return None
    looks = {"answered": ("@accent", ""), "late": ("@c4", ""), "lost": ("@alarm", "/"),
             "away": ("@soft", "")}
    series = {kind: ([own[kind] / sums[name] for name, own in named.items()], *look)
              for kind, look in looks.items()
              if any(own[kind] for own in named.values())}
    return _bars(list(named), series, "", "%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
                 tickformat=".0%", range=[0, 1.02])


def round_time(run: RunFiles) -> PlotlyFigure | None:
    """A bar for each round, coloured by how it ended, with the deadline as a line."""
    found = [(line, clock, length_s) for line, clock in virtual.timed_rounds(run)
             if (length_s := clock.round_s) is not None]
    if not found:
        return None
    limit_s, names = virtual.deadline_s(run), virtual.STAGE_NAMES
    unit, scale = virtual.time_unit(max(length_s for *_, length_s in found))
    x = [[names[line.stage or ""] for line, *_ in found],
         [round_label(line) for line, *_ in found]]
    said = [", ".join(f"{numbers.count(getattr(clock, key))} {key}" for key in virtual.OUTCOMES)
            for _, clock, _ in found]
    ended = [virtual.round_outcome(clock, limit_s) for _, clock, _ in found]
    tall = {name: [s / scale if own == name else None for (*_, s),
                   own in zip(found, ended, strict=True)] for name in STATES}
    data = [{"type": "bar", "name": name, "x": x, "y": tall[name], "text": said,
             "textposition": "none",
             "marker": {"color": color, "line": {"width": 0},
                        "pattern": {"shape": shape, "size": 6}},
             "hovertemplate": f"%{{x}}: %{{y:,.3~g}} {unit}<br>%{{text}}<extra>{name}</extra>"}
            for name, (color, shape) in STATES.items() if name in ended]
    across = figures.axis(showgrid=False, type="multicategory", dividercolor="@hairline",
                          tickangle=0)
    near = limit_s is not None and limit_s <= 1.5 * max(length_s for *_, length_s in found)
    marks = (
        {} if limit_s is None or not near else figures.marked_height(limit_s / scale,
            f"deadline {numbers.duration(limit_s)}")
    )
    up = figures.axis(unit, rangemode="tozero")
    return {"data": data, "layout": figures.layout(across, up, barmode="stack", bargap=0.25,
        showlegend=True, **marks)}


def loss_time(run: RunFiles) -> PlotlyFigure | None:
    """Held-out loss by virtual time since the start, with the time of synthesis as a band and the
    base model as a line."""
    points = virtual.losses_over_time(run)
    if not points:
        return None
    unit, scale = virtual.time_unit(points[-1][1])
    first = run.result.base_eval.loss
    before = [line.clock.total_s for line in run.synthesis if line.clock is not None]
    figure = figures.measure_curve([(seconds / scale, loss) for _, seconds, loss in points], first)
    line, layout = figure["data"][0], figure["layout"]
    line["text"] = [numbers.count(r) for r, *_ in points]
    line["hovertemplate"] = f"%{{x:,.3~g}} {unit}, round %{{text}}: %{{y:.3f}}<extra></extra>"
    layout["xaxis"] = figures.axis(f"virtual {unit}", range=[0, 1.04 * points[-1][1] / scale],
        showgrid=False)
    if before and before[-1]:
        layout["shapes"] = [*layout.get("shapes", ()), _stage_one(before[-1] / scale)]
        label = {"x": 0.01, "xref": "paper", "xanchor": "left", "y": 0.02, "yref": "paper",
                 "yanchor": "bottom", "showarrow": False}
        layout["annotations"] = [*layout.get("annotations", ()),
            {**label, "text": "synthesis", "font": {"size": 11, "color": "@quiet"}}]
    return figure


def _stage_one(until: float) -> PlotlyFigure:
    band = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": until,
            "layer": "below"}
    return {**band, "fillcolor": "@band", "line": {"width": 0}}
