"""Arms against virtual time: how soon each reaches a loss, what it takes until the end, and the
curves of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from aulait.reporting import dots, numbers, virtual
from aulait.reporting.arms import plain_label
from aulait.reporting.chart import DASHES, Chart, ChartAxis, ChartLine, ChartRule, chart_label
from aulait.reporting.folder import RunFiles
from aulait.reporting.measures import ComparisonRow
from aulait.reporting.virtual import VirtualTime


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
        client_s (seconds of a client at work), idle_share and energy_j (None: not recorded).
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
        "client_s": _mean(_client_s(run, found) for run, found in
                          ((run, virtual.virtual_time_of(run)) for run in runs)
                          if found is not None),
        "idle_share": _mean(found.idle_share for found in spent),
        "energy_j": _mean(found.energy_j for found in spent),
    }


def _client_s(run: RunFiles, found: VirtualTime) -> float | None:
    """Seconds that a client of the run is at work, on average over all."""
    busy, clients = sum(own["busy_s"] for own in found.tiers.values()), run.result.clients
    return busy / clients if clients else None


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
                   target_loss: float | None) -> Chart | None:
    """Loss over virtual time: one line an arm, the mean over its seeds, with bars from the least to
    the most; None without any."""
    curves = {name: found for name, runs in groups.items() if (found := _rounds(runs))}
    if not curves:
        return None
    unit, scale = virtual.time_unit(max(seconds for points in curves.values() for at_round in points
        for seconds, _ in at_round))
    lines = [_line(name, index, curves[name], unit, scale) for index, name in enumerate(groups)
             if name in curves]
    rules = [] if target_loss is None else [ChartRule(target_loss, f"target {target_loss:.3f}")]
    return Chart(ChartAxis(f"virtual {unit}", zero=True), ChartAxis("loss, nats per token"), lines,
                 rules=rules, legend=True)


def _rounds(runs: Sequence[RunFiles]) -> list[list[tuple[float, float]]]:
    """(seconds, loss) of every seed, round by round; only rounds that all seeds have, so that a
    mean is over all of them."""
    seeds = [{r: (seconds, loss) for r, seconds, loss in points} for run in runs
             if (points := virtual.losses_over_time(run))]
    common = set.intersection(*map(set, seeds)) if seeds else set()
    return [[seed[r] for seed in seeds] for r in sorted(common)]


def _line(name: str, index: int, points: Sequence[Sequence[tuple[float, float]]], unit: str,
          scale: float) -> ChartLine:
    times, losses = ([[pair[i] / (scale if i == 0 else 1.0) for pair in at_round]
                      for at_round in points] for i in (0, 1))
    x, y = [fmean(values) for values in times], [fmean(values) for values in losses]
    return ChartLine(
        chart_label(plain_label(name)), x, y, dots.series_color(index),
        DASHES[index // dots.COLORS % len(DASHES)], size=5,
        x_bars=[(min(values), max(values)) for values in times],
        y_bars=[(min(values), max(values)) for values in losses],
        tips=[f"{plain_label(name)}: {numbers.significant(time)} {unit}: {numbers.loss(loss)}"
              for time, loss in zip(x, y, strict=True)])


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None
