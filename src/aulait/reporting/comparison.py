"""The page that sets several runs side by side: a table and figures over arms, each with its spread
over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from aulait.reporting import (
    arms,
    columns,
    dots,
    figures,
    grouping,
    markup,
    measures,
    numbers,
    pace,
    story,
)
from aulait.reporting.folder import Run, at, number
from aulait.reporting.markup import Html, Section
from aulait.reporting.measures import Measure

NO_GUARANTEE = "what these arms reach is not comparable with private ones."


def sections(runs: Sequence[Run], target_loss: float | None = None) -> list[Section]:
    """The sections of the page, in order; ``target_loss`` as in ``grouping.table``."""
    groups = arms.grouped(runs)
    rows = grouping.rows(groups, target_loss)
    ordered = {str(row["arm"]): groups[row["arm"]] for row in rows}
    return [_overview(rows), _rounds(ordered), *_virtual(ordered, rows), _trade(rows),
            _folders(ordered)]


def opening(runs: Sequence[Run]) -> Html:
    """A sentence about the best arm, and warnings about runs without a guarantee."""
    rows = grouping.rows(arms.grouped(runs))
    measure = measures.headline(rows)
    text = "No run has a held-out loss yet."
    if rows and rows[0].get(measure.key) is not None:
        first = rows[0]
        n = numbers.counted(first["n"], "run")
        spread = numbers.spread(first[measure.key], first[f"{measure.key}_std"], measure.style)
        best = "highest" if measure.rising else "lowest"
        text = (
            f"The {best} {measure.name} on held-out text is that of {first['arm']}: {spread} over "
            f"{n}."
        )
    parts = [Html(f'<div class="lead">{markup.paragraph(text)}</div>')]
    bare = [str(row["arm"]) for row in rows if row["n"] and not row["private"]]
    if bare and len(bare) == len(rows):
        parts.append(
            Html('<p class="banner '
                 f'remark">{markup.safe(f"No arm has a privacy guarantee: {NO_GUARANTEE}")}</p>'))
    elif bare:
        warning = (
            f"No privacy guarantee in: {'; '.join(bare)}. What they reach is not comparable with "
            "private arms."
        )
        parts.append(Html(f'<p class="banner remark">{markup.safe(warning)}</p>'))
    return markup.join(*parts)


def _overview(rows: Sequence[dict[str, Any]]) -> Section:
    measure, found = measures.headline(rows), columns.columns(rows, timed=False)
    lines = [[column.cells[i] for column in found] for i in range(len(rows))]
    remark = (
        "Mean ± sample standard deviation over the n runs of an arm; epsilon is the largest of any "
        "run. "
    )
    remark += (
        "Losses are in nats per token. ∞ stands for no guarantee; “void” for a nominal epsilon "
        "with seeded or missing noise. "
    )
    own = sorted({str(row["algorithm"]) for row in rows if row["personal"]})
    if own:
        remark += (
            f"The scores of {', '.join(own)} are those of the clients' own adapters; “shared” is "
            "the one that all have. "
        )
    if any("unseen_loss" in row for row in rows):
        remark += "“Unseen” clients took no part and are scored under the shared adapter."
    chart = markup.chart("arms", f"Held-out {measure.name}, mean and standard deviation",
                         dots.height(rows, measure))
    table = markup.table([column.title for column in found], lines,
                         words=range(columns.names(found)), wide=True)
    body = markup.join(chart, table, markup.note(remark))
    return Section("overview", "Overview", body, {"arms": dots.dots(rows, measure)})


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
    figure = {"data": data, "layout": figures.layout(x, figures.axis("loss, nats per token"),
        showlegend=True)}
    remark = (
        "Bars show the standard deviation over runs. The simulation measures this outside the "
        "door; "
    )
    remark += "a deployment releases none of it."
    body = markup.join(markup.chart("rounds", "Loss on held-out text", 320 + _legend(len(data), 3)),
                       markup.note(remark))
    return Section("rounds", title, body, {"rounds": figure})


def _virtual(groups: dict[str, list[Run]], rows: Sequence[dict[str, Any]]) -> list[Section]:
    """Loss over virtual time, where finished runs have it."""
    done = {name: grouping.finished(members) for name, members in groups.items()}
    aim = next((row["target_loss"] for row in rows if row.get("target_loss") is not None), None)
    figure = pace.figure(done, aim)
    if figure is None:
        return []
    text = (
        "Seconds that the federation would have taken by the cost model of its machines, both "
        "stages; modelled, not measured. A line is "
    )
    text += (
        "the mean over an arm's runs, round by round, in time and in loss; bars reach from the "
        "least to the most. "
    )
    chart = markup.chart("virtual", "Loss on held-out text over virtual time",
                         340 + _legend(len(figure["data"]), 3))
    shown = [columns.arm(rows), *columns.virtual(rows)]
    table = markup.table([column.title for column in shown],
                         list(zip(*(column.cells for column in shown), strict=True)), wide=True)
    body = markup.join(chart, table, markup.note(text + pace.explained(rows)))
    return [Section("virtual", "Over virtual time", body, {"virtual": figure})]


def _legend(names: int, side_by_side: int) -> int:
    """Pixels of a legend."""
    return 20 * -(-names // side_by_side)


def _line(name: str, index: int, values: dict[float, list[float]]) -> figures.Figure:
    rounds = sorted(values)
    deviations = [stdev(values[r]) if len(values[r]) > 1 else 0.0 for r in rounds]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": figures.label(name, 40),
        "x": rounds,
        "y": [fmean(values[r]) for r in rounds],
        "error_y": {"type": "data", "array": deviations, "color": dots.color(index), "thickness": 1,
                    "width": 3},
        "line": {"color": dots.color(index), "width": 2,
                 "dash": pace.DASHES[index // dots.COLORS % len(pace.DASHES)]},
        "marker": {"color": dots.color(index), "size": 5},
        "hovertemplate": "round %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
    }


def _trade(rows: Sequence[dict[str, Any]]) -> Section:
    """What the scores were bought with: epsilon, and bytes."""
    measure = measures.headline(rows)
    spent = {row["arm"]: (row["epsilon_max"] if row["private"] else None) for row in rows}
    moved = {row["arm"]: _both(row) for row in rows}
    pieces, charts = [], {}
    for name, title, values in (("epsilon", "ε", spent), ("bytes", "MB up and down, a run", moved)):
        if any(value is not None for value in values.values()):
            charts[f"trade-{name}"] = _against(rows, values, title, measure)
            pieces.append(markup.chart(f"trade-{name}", f"Held-out {measure.name} against {title}",
                                       280 + _legend(len(rows), 2)))
    left = [str(row["arm"]) for row in rows if row["n"] and not row["private"]]
    told = bool(left) and "trade-epsilon" in charts
    remark = (
        markup.note(f"Not in the figure over ε, for want of a guarantee: {'; '.join(left)}.")
        if told else Html("")
    )
    body = markup.join(markup.columns(*pieces), remark) if pieces else markup.absent("Costs")
    return Section("trade", "What the scores were bought with", body, charts)


def _both(row: dict[str, Any]) -> float | None:
    up, down = row["up_bytes"], row["down_bytes"]
    return None if up is None or down is None else float(up + down) / 1e6


def _against(rows: Sequence[dict[str, Any]], values: dict[str, float | None], title: str,
             measure: Measure) -> figures.Figure:
    style = ".1%" if measure.rising else ".3f"
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": figures.label(row["arm"], 40),
            "x": [values[row["arm"]]],
            "y": [row[measure.key]],
            "error_y": {
                "type": "data",
                "array": [row[f"{measure.key}_std"] or 0.0],
                "color": dots.color(i),
                "thickness": 1.5,
                "width": 4,
            },
            "marker": {"color": dots.color(i), "size": 10},
            "hovertemplate": f"{title} %{{x:,.3~g}}<br>{measure.name} "
                             f"%{{y:{style}}}<extra>%{{fullData.name}}</extra>",
        }
        for i, row in enumerate(rows)
        if row.get(measure.key) is not None and values[row["arm"]] is not None
    ]
    axes = (figures.axis(title, rangemode="tozero"), figures.axis(measure.name, tickformat=".0%"
        if measure.rising else ""))
    return {"data": data, "layout": figures.layout(*axes, showlegend=True)}


def _folders(groups: dict[str, list[Run]]) -> Section:
    rows = []
    for name, members in groups.items():
        for run in members:
            seed = numbers.count(run.result.get("seed"))
            flags = "; ".join(text.split(".")[0] for _, text in story.banners(run))
            rows.append([name, run.path.name, seed, numbers.loss(at(run.result, "eval", "loss")),
                         flags])
    head = ["arm", "folder", "seed", "held-out loss", "remarks"]
    return Section("runs", "The runs", markup.table(head, rows, words=(0, 1, 4)))
