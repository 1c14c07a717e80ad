"""The figures of the edge page: what the "Very Edge" study shows, in shape. Hatched bars and open
marks are modelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aulait.reporting import figures
from aulait.reporting.dots import series_color
from aulait.reporting.figures import PlotlyFigure, axis, layout, plot_label
from aulait_benchmarks.edge.document import StudyLine

PARTS: Final = {"load": "batch load", "forward": "forward", "loss": "loss", "backward": "backward",
                "optimizer": "optimiser"}
WAYS: Final = {"lora": "LoRA", "full": "full"}
DASHES: Final = {"lora": "solid", "full": "dot"}


def step_parts(lines: Sequence[StudyLine]) -> PlotlyFigure:
    """Stacked bars of one model's step: a group for each batch, LoRA beside full; one hatched bar
    where it is modelled."""
    shown = sorted(lines, key=lambda line: (line["batch"], line["way"] == "full"))
    x = [[f"batch {line['batch']}" for line in shown], [WAYS[line["way"]] for line in shown]]
    measured = any(line["part_s"] for line in shown)
    data: list[PlotlyFigure] = []
    for number, (part, name) in enumerate(PARTS.items() if measured else ()):
        values = [line["part_s"][part] if line["part_s"] else None for line in shown]
        data.append(_bar(x, values, name, {"color": series_color(number), "line": {"width": 0}}))
    if any(not line["part_s"] for line in shown):
        hatched = {"color": "@paper", "line": {"width": 1, "color": "@quiet"},
                   "pattern": {"shape": "/", "fgcolor": "@quiet", "size": 6}}
        data.append(_bar(x, [None if line["part_s"] else line["step_s"] for line in shown],
                         "whole step, modelled", hatched))
    across = axis(showgrid=False, type="multicategory", dividercolor="@hairline", tickangle=0)
    up = axis("seconds a step", rangemode="tozero")
    return {"data": data, "layout": layout(across, up, barmode="stack", bargap=0.25,
        showlegend=True)}


def _bar(x: list[list[str]], values: Sequence[float | None], name: str,
         marker: PlotlyFigure) -> PlotlyFigure:
    return {"type": "bar", "name": name, "x": x, "y": list(values), "marker": marker,
            "hovertemplate": f"%{{x}}: %{{y:.3~g}} s<extra>{name}</extra>"}


def measure_by_batch(lines: Sequence[StudyLine], machines: Sequence[str], key: str, title: str,
                     logarithmic: bool = False) -> PlotlyFigure:
    """One measure by batch, a curve for each machine; measured points are filled, modelled ones
    open."""
    percent = not logarithmic
    data = []
    for number, machine in enumerate(machines):
        mine = sorted((line for line in lines if line["device"] == machine
                       and line[key] is not None), key=lambda line: line["batch"])
        if mine:
            symbols = ["circle" if line["basis"] == "measured" else "circle-open" for line in mine]
            some = any(line["basis"] == "measured" for line in mine)
            data.append({
                "type": "scatter", "mode": "lines+markers", "name": plot_label(machine),
                "x": [line["batch"] for line in mine],
                "y": [line[key] for line in mine], "text": [line["basis"] for line in mine],
                "line": {"color": series_color(number), "width": 2.5 if some else 1.5,
                         "dash": "solid" if some else "dot"},
                "marker": {"color": series_color(number), "size": 8, "symbol": symbols},
                "hovertemplate": f"batch %{{x}}: %{{y:{'.1%' if percent else '.3~g'}}} "
                                 f"(%{{text}})<extra>%{{fullData.name}}</extra>"})
    batches = sorted({line["batch"] for line in lines})
    across = axis("batch, rows a step", type="log", tickvals=batches,
                  ticktext=[str(batch) for batch in batches], showgrid=False)
    up = (
        axis(title, type="log", dtick=1) if logarithmic
        else axis(title, tickformat=".0%", rangemode="tozero")
    )
    return {"data": data, "layout": layout(across, up, showlegend=True)}


def granularity_by_link(rounds: Sequence[StudyLine], links: Sequence[str]) -> PlotlyFigure:
    """G by link on one machine: a colour for each model, LoRA solid, full dotted; a line where
    computing equals communicating."""
    data = []
    for number, model in enumerate(dict.fromkeys(line["model"] for line in rounds)):
        for way, said in WAYS.items():
            found = {line["link"]: line for line in rounds
                     if (line["model"], line["way"]) == (model, way) and line["granularity"]}
            mine = [found[link] for link in links if link in found]
            if mine:
                symbols = [("circle" if way == "lora" else "square") + (""
                    if line["basis"] == "measured" else "-open") for line in mine]
                data.append({
                    "type": "scatter", "mode": "lines+markers",
                    "name": plot_label(f"{model}, {said}"),
                    "x": [line["link"] for line in mine],
                    "y": [line["granularity"] for line in mine],
                    "line": {"color": series_color(number), "width": 1.5, "dash": DASHES[way]},
                    "marker": {"color": series_color(number), "size": 8, "symbol": symbols},
                    "text": [line["basis"] for line in mine],
                    "hovertemplate": "%{x}: G = %{y:.3~g}, steps "
                                     "%{text}<extra>%{fullData.name}</extra>"})
    across = axis(showgrid=False, type="category", categoryorder="array", categoryarray=list(links))
    one = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
           "line": {"color": "@ink", "width": 1.5, "dash": "dash"}}
    note = {"xref": "paper", "x": 0, "xanchor": "left", "y": 0, "yanchor": "bottom",
            "showarrow": False,
            "text": "G = 1", "font": {"size": 11, "color": "@quiet"}}
    up = axis("G = computing / communicating", type="log", dtick=1, exponentformat="power")
    return {"data": data, "layout": layout(across, up, showlegend=True, shapes=[one],
        annotations=[note])}


def loss_by_round(arms: Sequence[StudyLine], base_loss: float) -> PlotlyFigure:
    """Held-out loss by round, a curve for each server optimiser, all from the base's loss at round
    0."""
    data = []
    for number, arm in enumerate(arms):
        losses = [base_loss, *arm["losses"]]
        data.append({
            "type": "scatter", "mode": "lines+markers",
            "name": plot_label(f"{arm['name']}, rate {arm['rate']:g}"),
            "x": list(range(len(losses))), "y": losses,
            "line": {"color": series_color(number), "width": 2,
                     "dash": ("solid", "dash", "solid", "dot")[number % 4]},
            "marker": {"color": series_color(number), "size": 6,
                       "symbol": ("circle", "square", "diamond", "cross")[number % 4]},
            "hovertemplate": "round %{x}: %{y:.3f}<extra>%{fullData.name}</extra>"})
    across = axis("round", **figures.whole_ticks([0, len(arms[0]["losses"])] if arms else []))
    return {"data": data, "layout": layout(across, axis("held-out loss, nats a token"),
        showlegend=True)}


def energy_shares(rounds: Sequence[StudyLine]) -> PlotlyFigure:
    """Where the joules of a round go, in percent: a group for each machine, LoRA beside full."""
    shown = [line for line in rounds if line["communication_share"] is not None]
    x = [[f"{plot_label(line['device'])}<br>{plot_label(line['link'])}" for line in shown],
         [WAYS[line["way"]] for line in shown]]
    totals = [line["computing_j"] + (line["waiting_j"] or 0.0) + line["network_j"]
              for line in shown]
    series = (("computing", "computing_j", "@accent"), ("waiting for the link", "waiting_j",
        "@soft"), ("network", "network_j", "@c1"))
    data = [{
        "type": "bar", "name": name, "x": x, "y": [(line[key] or 0.0) / total
            for line, total in zip(shown, totals, strict=True)],
        "marker": {"color": paint, "line": {"width": 0}},
        "customdata": [line[key] for line in shown],
        "hovertemplate": f"%{{x}}: %{{y:.1%}}, %{{customdata:,.3~g}} J<extra>{name}</extra>"}
        for name, key, paint in series]
    across = axis(showgrid=False, type="multicategory", dividercolor="@hairline", tickangle=0)
    up = axis("share of a round's energy", tickformat=".0%", range=[0, 1])
    return {"data": data, "layout": layout(across, up, barmode="stack", bargap=0.25,
        showlegend=True)}
