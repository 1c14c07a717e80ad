"""The figures of the edge page: what the "Very Edge" study shows, in shape. Hatched bars and open
marks are modelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from aulait.reporting import numbers
from aulait.reporting.chart import (
    DASHES,
    SHAPES,
    Chart,
    ChartAxis,
    ChartBars,
    ChartLine,
    ChartRule,
    Dash,
    chart_label,
)
from aulait.reporting.dots import series_color
from aulait_benchmarks.edge.document import StudyLine

PARTS: Final = {"load": "batch load", "forward": "forward", "loss": "loss", "backward": "backward",
                "optimizer": "optimiser"}
WAYS: Final = {"lora": "LoRA", "full": "full"}
WAY_DASHES: Final[Mapping[str, Dash]] = {"lora": "solid", "full": "dotted"}


def step_parts(lines: Sequence[StudyLine]) -> Chart:
    """Stacked bars of one model's step: a group for each batch, LoRA beside full; one hatched bar
    where it is modelled."""
    shown = sorted(lines, key=lambda line: (line["batch"], line["way"] == "full"))
    across = ChartAxis(names=[WAYS[line["way"]] for line in shown],
                       groups=[f"batch {line['batch']}" for line in shown])
    measured = any(line["part_s"] for line in shown)
    bars = [_bars([line["part_s"][part] if line["part_s"] else None for line in shown], name,
                  series_color(number), "s")
            for number, (part, name) in enumerate(PARTS.items() if measured else ())]
    if any(not line["part_s"] for line in shown):
        values = [None if line["part_s"] else line["step_s"] for line in shown]
        bars.append(ChartBars("whole step, modelled", list(range(len(shown))), values, "hairline",
                              "/", _tips(values, "whole step, modelled", "s")))
    return Chart(across, ChartAxis("seconds a step", zero=True), bars=bars, legend=True)


def _bars(values: Sequence[float | None], name: str, color: str, unit: str) -> ChartBars:
    return ChartBars(name, list(range(len(values))), values, color,
                     tips=_tips(values, name, unit))


def _tips(values: Sequence[float | None], name: str, unit: str) -> list[str]:
    return [f"{name}: {numbers.significant(value)} {unit}" for value in values]


def measure_by_batch(lines: Sequence[StudyLine], machines: Sequence[str], key: str, title: str,
                     logarithmic: bool = False) -> Chart:
    """One measure by batch, a curve for each machine; measured points are filled, modelled ones
    open."""
    said = numbers.significant if logarithmic else numbers.percent
    found = []
    for number, machine in enumerate(machines):
        mine = sorted((line for line in lines if line["device"] == machine
                       and line[key] is not None), key=lambda line: line["batch"])
        if mine:
            some = any(line["basis"] == "measured" for line in mine)
            found.append(ChartLine(
                chart_label(machine), [line["batch"] for line in mine],
                [line[key] for line in mine], series_color(number), "solid" if some else "dotted",
                hollow=[line["basis"] != "measured" for line in mine],
                width=2.5 if some else 1.5, size=8,
                tips=[f"{machine}, batch {line['batch']}: {said(line[key])} ({line['basis']})"
                      for line in mine]))
    batches = sorted({float(line["batch"]) for line in lines})
    across = ChartAxis("batch, rows a step", numbers.count, logarithmic=True, ticks=batches)
    up = (
        ChartAxis(title, logarithmic=True) if logarithmic
        else ChartAxis(title, numbers.whole_percent, zero=True)
    )
    return Chart(across, up, found, legend=True)


def granularity_by_link(rounds: Sequence[StudyLine], links: Sequence[str]) -> Chart:
    """G by link on one machine: a colour for each model, LoRA solid, full dotted; a line where
    computing equals communicating."""
    lines = []
    for number, model in enumerate(dict.fromkeys(line["model"] for line in rounds)):
        for way, said in WAYS.items():
            found = {line["link"]: line for line in rounds
                     if (line["model"], line["way"]) == (model, way) and line["granularity"]}
            mine = [found[link] for link in links if link in found]
            if mine:
                lines.append(ChartLine(
                    chart_label(f"{model}, {said}"), [links.index(line["link"]) for line in mine],
                    [line["granularity"] for line in mine], series_color(number), WAY_DASHES[way],
                    marker="circle" if way == "lora" else "square",
                    hollow=[line["basis"] != "measured" for line in mine], width=1.5, size=8,
                    tips=[f"{model}, {said}, {line['link']}: "
                          f"G = {numbers.significant(line['granularity'])}, steps {line['basis']}"
                          for line in mine]))
    return Chart(ChartAxis(names=list(links)),
                 ChartAxis("G = computing / communicating", logarithmic=True), lines,
                 rules=[ChartRule(1.0, "G = 1")], legend=True)


def loss_by_round(arms: Sequence[StudyLine], base_loss: float) -> Chart:
    """Held-out loss by round, a curve for each server optimiser, all from the base's loss at round
    0."""
    lines = []
    for number, arm in enumerate(arms):
        losses = [base_loss, *arm["losses"]]
        name = f"{arm['name']}, rate {arm['rate']:g}"
        lines.append(ChartLine(
            chart_label(name), list(range(len(losses))), losses, series_color(number),
            DASHES[number % len(DASHES)], marker=SHAPES[number % len(SHAPES)],
            tips=[f"{name}, round {at}: {numbers.loss(loss)}" for at, loss in enumerate(losses)]))
    return Chart(ChartAxis("round", whole=True), ChartAxis("held-out loss, nats a token"), lines,
                 legend=True)


def energy_shares(rounds: Sequence[StudyLine]) -> Chart:
    """Where the joules of a round go, in percent: a group for each machine, LoRA beside full."""
    shown = [line for line in rounds if line["communication_share"] is not None]
    totals = [line["computing_j"] + (line["waiting_j"] or 0.0) + line["network_j"]
              for line in shown]
    series = (("computing", "computing_j", "accent"), ("waiting for the link", "waiting_j", "soft"),
              ("network", "network_j", "c1"))
    bars = [ChartBars(
        name, list(range(len(shown))),
        [(line[key] or 0.0) / total for line, total in zip(shown, totals, strict=True)], paint,
        tips=[f"{line['device']}, {line['link']}, {WAYS[line['way']]}: {name} "
              f"{numbers.energy(line[key] or 0.0)}, "
              f"{numbers.percent((line[key] or 0.0) / total)}"
              for line, total in zip(shown, totals, strict=True)])
        for name, key, paint in series]
    names = [f"{line['device']}, {line['link']}: {WAYS[line['way']]}" for line in shown]
    return Chart(ChartAxis("share of a round's energy", numbers.whole_percent, low=0, high=1),
                 ChartAxis(names=names, downwards=True), bars=bars, lying=True, legend=True)
