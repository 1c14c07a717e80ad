"""The page that sets several runs side by side: a table and figures over arms, each with its spread
over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from aulait.reporting import (
    arms,
    columns,
    comparability,
    dots,
    figures,
    grouping,
    markup,
    measures,
    numbers,
    pace,
    page,
    story,
)
from aulait.reporting.columns import Column
from aulait.reporting.figures import PlotlyFigure
from aulait.reporting.folder import RunFiles
from aulait.reporting.markup import Markup, PageTable, PlacedFigure, Section
from aulait.reporting.measures import ComparisonRow, Measure

NO_GUARANTEE = "what these arms reach is not comparable with private ones."


def comparison_sections(runs: Sequence[RunFiles],
                        target_loss: float | None = None) -> list[Section]:
    """The sections of the page, in order; ``target_loss`` as in ``grouping.comparison_rows``."""
    groups = arms.runs_by_arm(runs)
    rows = grouping.rows_of_arms(groups, target_loss)
    ordered = {str(row["arm"]): groups[row["arm"]] for row in rows}
    return [_overview(rows), _rounds(ordered), *_over_virtual_time(ordered, rows), _trade(rows),
            _runs(ordered)]


def comparison_opening(runs: Sequence[RunFiles], remark: str = "") -> Markup:
    """A sentence about the best arm, a remark, and warnings about runs without a guarantee."""
    rows = grouping.rows_of_arms(arms.runs_by_arm(runs))
    measure = measures.ranking_measure(rows)
    text = "No run has a held-out loss yet."
    refused = comparability.refusal(rows)
    if rows and rows[0].get(measure.key) is not None and not refused:
        first = rows[0]
        spread = numbers.spread(first[measure.key], first[f"{measure.key}_std"], measure.style)
        text = (
            f"The {'highest' if measure.rising else 'lowest'} {measure.name} on held-out text is "
            f"that of {first['arm']}: {spread} over {numbers.counted(first['n'], 'run')}."
            + comparability.ties(rows)
        )
    lead, alarms = ([], [("alarm", refused)]) if refused else ([text], [])
    bare = _without_guarantee(rows)
    if bare and len(bare) == len(rows):
        return page.opening_of(
            lead, banners=alarms, remarks=[f"No arm has a privacy guarantee: {NO_GUARANTEE}"])
    remarks = [remark] if remark else []
    warning = (
        f"No privacy guarantee in: {'; '.join(bare)}. What they reach is not comparable with "
        "private arms."
    )
    return page.opening_of(lead, banners=alarms,
                           remarks=[*remarks, *([warning] if bare else [])])


def _without_guarantee(rows: Sequence[ComparisonRow]) -> list[str]:
    """Labels of the arms with a finished run and no guarantee."""
    return [str(row["arm"]) for row in rows if row["n"] and not row["private"]]


def _arms_table(shown: Sequence[Column], words: Sequence[int] = (0,)) -> PageTable:
    return PageTable([column.title for column in shown],
                     list(zip(*(column.cells for column in shown), strict=True)), words, wide=True)


def _overview(rows: Sequence[ComparisonRow]) -> Section:
    measure, found = measures.ranking_measure(rows), columns.comparison_columns(rows, timed=False)
    chart = PlacedFigure("arms", f"Held-out {measure.name}, mean and standard deviation",
                         dots.arm_dots(rows, measure), dots.arm_dots_height(rows, measure))
    return markup.section(
        "overview", "Overview", [chart],
        arms=_arms_table(found, range(columns.leading_word_columns(found))),
        personal=", ".join(sorted({str(row["algorithm"]) for row in rows if row["personal"]})),
        unseen=any("unseen_loss" in row for row in rows))


def _rounds(groups: Mapping[str, Sequence[RunFiles]]) -> Section:
    data = []
    for index, (name, members) in enumerate(groups.items()):
        values: dict[float, list[float]] = defaultdict(list)
        for line in (line for run in members for line in run.training):
            if line.round is not None and line.eval.loss is not None:
                values[float(line.round)].append(line.eval.loss)
        if values:
            data.append(_loss_line(name, index, values))
    x = figures.axis("round", **figures.whole_ticks([x for trace in data for x in trace["x"]]))
    figure = {"data": data, "layout": figures.layout(x, figures.axis("loss, nats per token"),
        showlegend=True)}
    chart = PlacedFigure("rounds", "Loss on held-out text", figure, 320 + _legend(len(data), 3))
    return markup.section("rounds", "Round by round", [chart] if data else [])


def _over_virtual_time(groups: Mapping[str, Sequence[RunFiles]],
                       rows: Sequence[ComparisonRow]) -> list[Section]:
    """Loss over virtual time, where finished runs have it."""
    done = {name: grouping.finished_runs(members) for name, members in groups.items()}
    aim = next((row["target_loss"] for row in rows if row.get("target_loss") is not None), None)
    figure = pace.loss_over_time(done, aim)
    if figure is None:
        return []
    chart = PlacedFigure("virtual", "Loss on held-out text over virtual time", figure,
                         340 + _legend(len(figure["data"]), 3))
    shown = [columns.arm_column(rows), *columns.virtual_time_columns(rows)]
    return [markup.section("virtual", "Over virtual time", [chart], arms=_arms_table(shown),
                           target=pace.target_explained(rows))]


def _legend(names: int, side_by_side: int) -> int:
    """Pixels of a legend."""
    return 20 * -(-names // side_by_side)


def _loss_line(name: str, index: int, values: dict[float, list[float]]) -> PlotlyFigure:
    rounds, color = sorted(values), dots.series_color(index)
    deviations = [stdev(values[r]) if len(values[r]) > 1 else 0.0 for r in rounds]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": figures.plot_label(name, 40),
        "x": rounds,
        "y": [fmean(values[r]) for r in rounds],
        "error_y": {"type": "data", "array": deviations, "color": color, "thickness": 1,
                    "width": 3},
        "line": {"color": color, "width": 2,
                 "dash": pace.DASHES[index // dots.COLORS % len(pace.DASHES)]},
        "marker": {"color": color, "size": 5},
        "hovertemplate": "round %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
    }


def _trade(rows: Sequence[ComparisonRow]) -> Section:
    """What the scores were bought with: epsilon, and bytes."""
    measure = measures.ranking_measure(rows)
    spent = {row["arm"]: row["epsilon_max"] if row["private"] else None for row in rows}
    moved = {row["arm"]: _megabytes(row) for row in rows}
    charts = [
        PlacedFigure(f"trade-{name}", f"Held-out {measure.name} against {title}",
                     _scores_against(rows, values, title, measure), 280 + _legend(len(rows), 2))
        for name, title, values in (("epsilon", "ε", spent),
                                    ("bytes", "MB up and down, a run", moved))
        if any(value is not None for value in values.values())
    ]
    told = any(chart.name == "trade-epsilon" for chart in charts)
    return markup.section("trade", "What the scores were bought with", charts,
                          left_out="; ".join(_without_guarantee(rows)) if told else "")


def _megabytes(row: ComparisonRow) -> float | None:
    up, down = row["up_bytes"], row["down_bytes"]
    return None if up is None or down is None else float(up + down) / 1e6


def _scores_against(rows: Sequence[ComparisonRow], values: Mapping[str, float | None], title: str,
                    measure: Measure) -> PlotlyFigure:
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": figures.plot_label(row["arm"], 40),
            "x": [values[row["arm"]]],
            "y": [row[measure.key]],
            "error_y": {"type": "data", "array": [row[f"{measure.key}_std"] or 0.0],
                        "color": dots.series_color(i), "thickness": 1.5, "width": 4},
            "marker": {"color": dots.series_color(i), "size": 10},
            "hovertemplate": f"{title} %{{x:,.3~g}}<br>{measure.name} "
                             f"%{{y:{measure.hover_format}}}<extra>%{{fullData.name}}</extra>",
        }
        for i, row in enumerate(rows)
        if row.get(measure.key) is not None and values[row["arm"]] is not None
    ]
    axes = (figures.axis(title, rangemode="tozero"),
            figures.axis(measure.name, tickformat=measure.tick_format))
    return {"data": data, "layout": figures.layout(*axes, showlegend=True)}


def _runs(groups: Mapping[str, Sequence[RunFiles]]) -> Section:
    rows = [[name, run.path.name, numbers.count(run.result.seed),
             numbers.loss(run.result.eval.loss),
             "; ".join(text.split(".")[0] for _, text in story.warning_banners(run))]
            for name, members in groups.items() for run in members]
    head = ["arm", "folder", "seed", "held-out loss", "remarks"]
    return markup.section("runs", "The runs", runs=PageTable(head, rows, words=(0, 1, 4)))
