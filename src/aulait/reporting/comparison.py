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
    grouping,
    markup,
    measures,
    numbers,
    pace,
    page,
    story,
)
from aulait.reporting.chart import DASHES, SHAPES, Chart, ChartAxis, ChartLine, chart_label
from aulait.reporting.columns import Column
from aulait.reporting.folder import RunFiles
from aulait.reporting.front import Offer, pareto_front
from aulait.reporting.markup import Markup, PageTable, PlacedFigure, Section
from aulait.reporting.measures import ComparisonRow, Measure
from aulait.reporting.numbers import Style

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
            f"that of {arms.plain_label(first['arm'])}: {spread} over "
            f"{numbers.counted(first['n'], 'run')}."
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
    return [arms.plain_label(row["arm"]) for row in rows if row["n"] and not row["private"]]


def _arms_table(shown: Sequence[Column], words: Sequence[int] = (0,)) -> PageTable:
    return PageTable([column.title for column in shown],
                     list(zip(*(column.cells for column in shown), strict=True)), words, wide=True)


def _overview(rows: Sequence[ComparisonRow]) -> Section:
    measure, found = measures.ranking_measure(rows), columns.comparison_columns(rows, timed=False)
    chart = PlacedFigure("arms", f"Held-out {measure.name}, mean and standard deviation",
                         dots.arm_dots(rows, measure), dots.arm_dots_height(rows, measure))
    return markup.section(
        "overview", "Overview", [chart],
        arms=_arms_table(found, columns.word_columns(found)),
        personal=", ".join(sorted({str(row["algorithm"]) for row in rows if row["personal"]})),
        unseen=any("unseen_loss" in row for row in rows))


def _rounds(groups: Mapping[str, Sequence[RunFiles]]) -> Section:
    lines = []
    for index, (name, members) in enumerate(groups.items()):
        values: dict[float, list[float]] = defaultdict(list)
        for line in (line for run in members for line in run.training):
            if line.round is not None and line.eval.loss is not None:
                values[float(line.round)].append(line.eval.loss)
        if values:
            lines.append(_loss_line(name, index, values))
    chart = Chart(ChartAxis("round", whole=True), ChartAxis("loss, nats per token"), lines,
                  legend=True)
    placed = PlacedFigure("rounds", "Loss on held-out text", chart, 300)
    return markup.section("rounds", "Round by round", [placed] if lines else [])


def _over_virtual_time(groups: Mapping[str, Sequence[RunFiles]],
                       rows: Sequence[ComparisonRow]) -> list[Section]:
    """Loss over virtual time, where finished runs have it."""
    done = {name: grouping.finished_runs(members) for name, members in groups.items()}
    aim = next((row["target_loss"] for row in rows if row.get("target_loss") is not None), None)
    figure = pace.loss_over_time(done, aim)
    if figure is None:
        return []
    chart = PlacedFigure("virtual", "Loss on held-out text over virtual time", figure, 300)
    shown = [columns.arm_column(rows), *columns.virtual_time_columns(rows)]
    return [markup.section("virtual", "Over virtual time", [chart], arms=_arms_table(shown),
                           target=pace.target_explained(rows))]


def _loss_line(name: str, index: int, values: dict[float, list[float]]) -> ChartLine:
    rounds = sorted(values)
    means = [fmean(values[r]) for r in rounds]
    spread = [stdev(values[r]) if len(values[r]) > 1 else 0.0 for r in rounds]
    return ChartLine(
        chart_label(arms.plain_label(name)), rounds, means, dots.series_color(index),
        DASHES[index // dots.COLORS % len(DASHES)], size=5,
        y_bars=[(mean - s, mean + s) for mean, s in zip(means, spread, strict=True)],
        tips=[f"{arms.plain_label(name)}, round {numbers.count(r)}: {numbers.loss(mean)}"
              for r, mean in zip(rounds, means, strict=True)])


def _trade(rows: Sequence[ComparisonRow]) -> Section:
    """What the scores were bought with: epsilon, bytes, seconds; and which arms no other beats in
    both."""
    measure = measures.ranking_measure(rows)
    bought = [("epsilon", "ε", numbers.epsilon,
               {row["arm"]: row["epsilon_max"] if row["private"] else None for row in rows}),
              ("bytes", "MB up and down, a run", numbers.significant,
               {row["arm"]: _megabytes(row) for row in rows}),
              _seconds(rows)]
    charts, fronts = [], []
    for name, title, style, values in bought:
        offers = [Offer(str(row["arm"]), float(cost), float(row[measure.key])) for row in rows
                  if row.get(measure.key) is not None
                  and (cost := values[row["arm"]]) is not None]
        if offers:
            front = pareto_front(offers, measure.rising)
            charts.append(PlacedFigure(
                f"trade-{name}", f"Held-out {measure.name} against {title}",
                _scores_against(rows, offers, front, (title, style), measure), 240))
            fronts.append((title, ", ".join(arms.plain_label(offer.arm) for offer in front)))
    told = any(chart.name == "trade-epsilon" for chart in charts)
    return markup.section("trade", "What the scores were bought with", charts, fronts=fronts,
                          left_out="; ".join(_without_guarantee(rows)) if told else "")


def _seconds(rows: Sequence[ComparisonRow]) -> tuple[str, str, Style, dict[str, float | None]]:
    """Seconds of a client at work where machines are named, or else those of the rounds here."""
    at_work = {row["arm"]: row.get("client_s") for row in rows}
    if any(value is not None for value in at_work.values()):
        return ("client", "seconds of a client at work, modelled", numbers.duration, at_work)
    return ("seconds", "seconds of a run's rounds", numbers.duration,
            {row["arm"]: row.get("rounds_s") for row in rows})


def _megabytes(row: ComparisonRow) -> float | None:
    up, down = row["up_bytes"], row["down_bytes"]
    return None if up is None or down is None else float(up + down) / 1e6


def _scores_against(rows: Sequence[ComparisonRow], offers: Sequence[Offer], front: Sequence[Offer],
                    cost: tuple[str, Style], measure: Measure) -> Chart:
    """Arms by what they cost and reached, and a line through those that no other beats; ``cost``:
    its title and how it is written."""
    title, style = cost
    by_arm = {str(row["arm"]): (index, row) for index, row in enumerate(rows)}
    lines = [ChartLine("", [offer.cost for offer in front], [offer.score for offer in front],
                       "quiet", "dotted", stepped=True, marker="none", width=1.5)]
    for offer in offers:
        index, row = by_arm[offer.arm]
        spread = float(row[f"{measure.key}_std"] or 0.0)
        said = numbers.spread(offer.score, row[f"{measure.key}_std"], measure.style)
        lines.append(ChartLine(
            chart_label(arms.plain_label(offer.arm)), [offer.cost], [offer.score],
            dots.series_color(index), "none", size=10,
            marker=SHAPES[index // dots.COLORS % len(SHAPES)],
            y_bars=[(offer.score - spread, offer.score + spread)],
            tips=[f"{arms.plain_label(offer.arm)}: {said} at {style(offer.cost)}"]))
    return Chart(ChartAxis(title, zero=True), ChartAxis(measure.name, measure.tick_style), lines,
                 legend=True)


def _runs(groups: Mapping[str, Sequence[RunFiles]]) -> Section:
    rows = [[arms.plain_label(name), run.path.name, numbers.count(run.result.seed),
             numbers.loss(run.result.eval.loss),
             "; ".join(text.split(".")[0] for _, text in story.warning_banners(run))]
            for name, members in groups.items() for run in members]
    head = ["arm", "folder", "seed", "held-out loss", "remarks"]
    return markup.section("runs", "The runs", runs=PageTable(head, rows, words=(0, 1, 4)))
