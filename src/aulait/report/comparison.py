"""The page that sets several runs side by side: a table and figures over arms, each with its spread over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from aulait.report import figures, grouping, markup, numbers, story
from aulait.report.folder import Run, at, number
from aulait.report.markup import Html, Section

DASHES = ("solid", "dash", "dot", "dashdot")
COLORS = 8


def sections(runs: Sequence[Run]) -> list[Section]:
    """The sections of the page, in order."""
    groups = grouping.grouped(runs)
    rows = [grouping.row(name, members) for name, members in groups.items()]
    return [_overview(rows), _rounds(groups), _trade(rows), _folders(groups)]


def opening(runs: Sequence[Run]) -> Html:
    """A sentence about the best arm, and warnings about runs without a guarantee."""
    rows = [grouping.row(name, members) for name, members in grouping.grouped(runs).items()]
    done = sorted((row for row in rows if row["loss"] is not None), key=lambda row: float(row["loss"]))
    text = "No run has a held-out loss yet."
    if done:
        first = done[0]
        n = numbers.counted(first["n"], "run")
        spread = numbers.spread(first["loss"], first["loss_std"], numbers.loss)
        text = f"The lowest loss on held-out text is that of {first['arm']}: {spread} over {n}."
    parts = [Html(f'<div class="lead">{markup.paragraph(text)}</div>')]
    bare = [str(row["arm"]) for row in rows if row["n"] and not row["private"]]
    if bare:
        warning = f"No privacy guarantee in: {'; '.join(bare)}. What they reach is not comparable with private arms."
        parts.append(Html(f'<p class="banner remark">{markup.safe(warning)}</p>'))
    return markup.join(*parts)


def _overview(rows: Sequence[dict[str, Any]]) -> Section:
    head = [
        "arm",
        "n",
        "held-out loss",
        "perplexity",
        "accuracy",
        "worst client's loss",
        "ε, at most",
        "up",
        "down",
        "time",
    ]
    styles = (numbers.loss, numbers.perplexity, numbers.percent, numbers.loss)
    lines = []
    for row in rows:
        measures = [numbers.spread(row[m], row[f"{m}_std"], s) for m, s in zip(grouping.MEASURES, styles, strict=True)]
        pending = f" (+{row['unfinished']} unfinished)" if row["unfinished"] else ""
        spent = numbers.epsilon(row["epsilon_max"]) + (
            "" if row["private"] or row["epsilon_max"] is None else " (void)"
        )
        traffic = [numbers.size(row["up_bytes"]), numbers.size(row["down_bytes"]), numbers.duration(row["wall_s"])]
        lines.append([str(row["arm"]), f"{row['n']}{pending}", *measures, spent if row["n"] else "–", *traffic])
    remark = "Mean ± sample standard deviation over the runs of an arm, n of them; ε is the largest of any run. "
    remark += (
        "Losses are in nats per token. ∞ stands for no guarantee; “void” for a nominal ε with seeded or missing noise."
    )
    chart = markup.chart("arms", "Held-out loss by arm, mean and standard deviation", 110 + 34 * len(rows))
    return Section(
        "overview",
        "Overview",
        markup.join(markup.table(head, lines), markup.note(remark), chart),
        {"arms": _arms(rows)},
    )


def _color(index: int) -> str:
    return f"@c{index % COLORS}"


def _arms(rows: Sequence[dict[str, Any]]) -> figures.Figure:
    shown = [(i, row) for i, row in enumerate(rows) if row["loss"] is not None]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [row["loss"]],
            "y": [figures.label(row["arm"], 40)],
            "error_x": {
                "type": "data",
                "array": [row["loss_std"] or 0.0],
                "color": _color(i),
                "thickness": 1.5,
                "width": 5,
            },
            "marker": {"color": _color(i), "size": 10},
            "hovertemplate": "%{x:.3f}<extra>%{y}</extra>",
        }
        for i, row in shown
    ]
    bases = [row["base_loss"] for _, row in shown if row["base_loss"] is not None]
    marks: dict[str, Any] = {}
    if bases:
        base = fmean(bases)
        reach = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": base, "x1": base}
        marks["shapes"] = [{**reach, "line": {"color": "@quiet", "width": 1.5, "dash": "dash"}}]
        near = {"x": base, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False, "text": "base model"}
        marks["annotations"] = [{**near, "xanchor": "right", "font": {"size": 11, "color": "@quiet"}}]
        marks["margin"] = {"l": 8, "r": 12, "t": 22, "b": 8}
    y = figures.axis(autorange="reversed", type="category")
    return {"data": data, "layout": figures.layout(figures.axis("loss, nats per token"), y, **marks)}


def _rounds(groups: dict[str, list[Run]]) -> Section:
    data = []
    for index, (name, members) in enumerate(groups.items()):
        values: dict[float, list[float]] = defaultdict(list)
        for line in (line for run in members for line in run.stage("train")):
            at_round, loss = number(line.get("round")), number(at(line, "eval", "loss"))
            if at_round is not None and loss is not None:
                values[at_round].append(loss)
        if values:
            data.append(_line(name, index, values))
    title = "Round by round"
    if not data:
        return Section("rounds", title, markup.absent("Evaluation by round"))
    x = figures.axis("round", **figures.whole([x for trace in data for x in trace["x"]]))
    figure = {"data": data, "layout": figures.layout(x, figures.axis("loss, nats per token"), showlegend=True)}
    remark = "Bars show the standard deviation over runs. The simulation measures this outside the door; "
    remark += "a deployment releases none of it."
    body = markup.join(markup.chart("rounds", "Loss on held-out text", 380), markup.note(remark))
    return Section("rounds", title, body, {"rounds": figure})


def _line(name: str, index: int, values: dict[float, list[float]]) -> figures.Figure:
    rounds = sorted(values)
    deviations = [stdev(values[r]) if len(values[r]) > 1 else 0.0 for r in rounds]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": figures.label(name, 40),
        "x": rounds,
        "y": [fmean(values[r]) for r in rounds],
        "error_y": {"type": "data", "array": deviations, "color": _color(index), "thickness": 1, "width": 3},
        "line": {"color": _color(index), "width": 2, "dash": DASHES[index // COLORS % len(DASHES)]},
        "marker": {"color": _color(index), "size": 5},
        "hovertemplate": "round %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
    }


def _trade(rows: Sequence[dict[str, Any]]) -> Section:
    """What the loss was bought with: epsilon, and bytes."""
    spent = {row["arm"]: (row["epsilon_max"] if row["private"] else None) for row in rows}
    moved = {row["arm"]: _both(row) for row in rows}
    pieces, charts = [], {}
    for name, title, values in (("epsilon", "ε", spent), ("bytes", "MB up and down, a run", moved)):
        if any(value is not None for value in values.values()):
            charts[f"trade-{name}"] = _against(rows, values, title)
            pieces.append(markup.chart(f"trade-{name}", f"Held-out loss against {title}", 320))
    left = [str(row["arm"]) for row in rows if row["n"] and not row["private"]]
    remark = markup.note(f"Not in the figure over ε, for want of a guarantee: {'; '.join(left)}.") if left else Html("")
    body = markup.join(markup.columns(*pieces), remark) if pieces else markup.absent("Costs")
    return Section("trade", "What the loss was bought with", body, charts)


def _both(row: dict[str, Any]) -> float | None:
    up, down = row["up_bytes"], row["down_bytes"]
    return None if up is None or down is None else float(up + down) / 1e6


def _against(rows: Sequence[dict[str, Any]], values: dict[str, float | None], title: str) -> figures.Figure:
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": figures.label(row["arm"], 40),
            "x": [values[row["arm"]]],
            "y": [row["loss"]],
            "error_y": {
                "type": "data",
                "array": [row["loss_std"] or 0.0],
                "color": _color(i),
                "thickness": 1.5,
                "width": 4,
            },
            "marker": {"color": _color(i), "size": 10},
            "hovertemplate": f"{title} %{{x:,.3~g}}<br>loss %{{y:.3f}}<extra>%{{fullData.name}}</extra>",
        }
        for i, row in enumerate(rows)
        if row["loss"] is not None and values[row["arm"]] is not None
    ]
    axes = (figures.axis(title, rangemode="tozero"), figures.axis("loss"))
    return {"data": data, "layout": figures.layout(*axes, showlegend=True)}


def _folders(groups: dict[str, list[Run]]) -> Section:
    rows = []
    for name, members in groups.items():
        for run in members:
            seed = numbers.count(run.result.get("seed"))
            flags = "; ".join(text.split(".")[0] for _, text in story.banners(run))
            rows.append([name, run.path.name, seed, numbers.loss(at(run.result, "eval", "loss")), flags])
    head = ["arm", "folder", "seed", "held-out loss", "remarks"]
    return Section("runs", "The runs", markup.table(head, rows, words=(0, 1, 4)))
