"""Arms against virtual time: how soon each reaches a loss, what it takes until the end, and the
curves of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Final

from aulait.reporting import dots, figures, numbers, virtual
from aulait.reporting.figures import PlotlyFigure
from aulait.reporting.folder import RunFiles
from aulait.reporting.measures import ComparisonRow

DASHES: Final = ("solid", "dash", "dot", "dashdot")


def default_target(runs: Iterable[RunFiles]) -> float | None:
    """The loss that arms are timed to unless one is given: the largest of the runs' smallest
    losses.

    Every seed of every arm reaches it, so no mean leaves out the slow ones. None where no run has
    losses over virtual time.
    """
    smallest = [min(loss for *_, loss in points) for run in runs
                if (points := virtual.losses_over_time(run))]
    return max(smallest, default=None)


def reached_s(run: RunFiles, target_loss: float) -> float | None:
    """Virtual seconds at the end of the first measured round whose loss is at or below the target;
    None if never."""
    points = virtual.losses_over_time(run)
    return next((seconds for _, seconds, loss in points if loss <= target_loss), None)


def virtual_time_row(runs: Sequence[RunFiles], target_loss: float | None) -> ComparisonRow:
    """What the runs of one arm add to its row; empty where none of them has virtual time.

    Returns:
        target_loss, and time_to_target_s {mean, min, max over the seeds that reached it; reached;
        of: the seeds with losses over virtual time}. Means over the seeds under virtual_s,
        idle_share and energy_j (None: not recorded).
    """
    spent = [found for run in runs if (found := virtual.virtual_time_of(run)) is not None]
    if not spent:
        return {}
    timed = [run for run in runs if virtual.losses_over_time(run)]
    times = [s for run in timed if target_loss is not None
             and (s := reached_s(run, target_loss)) is not None]
    ends = (
        {"mean": fmean(times), "min": min(times), "max": max(times)} if times
        else dict.fromkeys(("mean", "min", "max"))
    )
    return {
        "target_loss": target_loss,
        "time_to_target_s": {**ends, "reached": len(times), "of": len(timed)},
        "virtual_s": _mean(found.total_s for found in spent),
        "idle_share": _mean(found.idle_share for found in spent),
        "energy_j": _mean(found.energy_j for found in spent),
    }


def target_explained(rows: Sequence[ComparisonRow]) -> str:
    """What the seconds to a loss in the rows mean; empty where there are none."""
    aim = next((row["target_loss"] for row in rows if row.get("target_loss") is not None), None)
    if aim is None:
        return ""
    told = [row["time_to_target_s"] for row in rows if "time_to_target_s" in row]
    every = all(own["reached"] == own["of"] for own in told)
    whose = "which every run reaches" if every else "which not every run reaches"
    return (
        f"Virtual seconds to loss {numbers.loss(aim)}, {whose}: at the end of the first measured "
        "round at or below it, nothing is interpolated; mean over the seeds that reached it, the "
        "least and the most in brackets."
    )


def loss_over_time(groups: Mapping[str, Sequence[RunFiles]],
                   target_loss: float | None) -> PlotlyFigure | None:
    """Loss over virtual time: one line an arm, the mean over its seeds, with bars from the least to
    the most; None without any."""
    curves = {name: found for name, runs in groups.items() if (found := _rounds(runs))}
    if not curves:
        return None
    unit, scale = virtual.time_unit(max(seconds for points in curves.values() for at_round in points
        for seconds, _ in at_round))
    data = [_line(name, index, curves[name], unit, scale) for index, name in enumerate(groups)
            if name in curves]
    marks = (
        {} if target_loss is None
        else figures.marked_height(target_loss, f"target {target_loss:.3f}")
    )
    axes = (figures.axis(f"virtual {unit}", rangemode="tozero", showgrid=False),
            figures.axis("loss, nats per token"))
    return {"data": data, "layout": figures.layout(*axes, showlegend=True, **marks)}


def _rounds(runs: Sequence[RunFiles]) -> list[list[tuple[float, float]]]:
    """(seconds, loss) of every seed, round by round; only rounds that all seeds have, so that a
    mean is over all of them."""
    seeds = [{r: (seconds, loss) for r, seconds, loss in points} for run in runs
             if (points := virtual.losses_over_time(run))]
    common = set.intersection(*map(set, seeds)) if seeds else set()
    return [[seed[r] for seed in seeds] for r in sorted(common)]


def _line(name: str, index: int, points: Sequence[Sequence[tuple[float, float]]], unit: str,
          scale: float) -> PlotlyFigure:
    color = dots.series_color(index)
    times, losses = ([[pair[i] / (scale if i == 0 else 1.0) for pair in at_round]
                      for at_round in points] for i in (0, 1))
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": figures.plot_label(name, 40),
        "x": [fmean(values) for values in times],
        "y": [fmean(values) for values in losses],
        "error_x": _range(times, color),
        "error_y": _range(losses, color),
        "line": {"color": color, "width": 2, "dash": DASHES[index // dots.COLORS % len(DASHES)]},
        "marker": {"color": color, "size": 5},
        "hovertemplate": f"%{{x:,.3~g}} {unit}: %{{y:.3f}}<extra>%{{fullData.name}}</extra>",
    }


def _range(values: Sequence[Sequence[float]], color: str) -> PlotlyFigure:
    """Bars from the least to the most of each."""
    above, below = [max(v) - fmean(v) for v in values], [fmean(v) - min(v) for v in values]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": color,
            "thickness": 1, "width": 3}


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None
