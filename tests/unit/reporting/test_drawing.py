"""Where a chart puts what: percentages of its field, against positions worked out by hand."""

from __future__ import annotations

import pytest

from aulait.reporting import drawing, numbers
from aulait.reporting.chart import Chart, ChartAxis, ChartBand, ChartBars, ChartLine, ChartRule


def test_points_are_placed_between_the_ends_of_the_axes() -> None:
    drawn = drawing.drawn(Chart(ChartAxis(low=0, high=10), ChartAxis(low=0, high=4), [ChartLine("", [0, 5, 10], [4, 1, 0], y_bars=[(3, 4), (0, 2), (0, 0)])]))
    assert [(p.x, p.y) for p in drawn.points] == [(0.0, 0.0), (50.0, 75.0), (100.0, 100.0)]
    assert drawn.points[1].bars == ((50.0, 100.0, 50.0, 50.0),)
    assert drawn.paths[0].points == "0,0 500,750 1000,1000"


def test_steps_keep_a_value_until_the_next() -> None:
    (path,) = drawing.drawn(Chart(ChartAxis(low=0, high=10), ChartAxis(low=0, high=10), [ChartLine("", [0, 10], [0, 10], stepped=True)])).paths
    assert path.points == "0,1000 1000,1000 1000,0"


def test_bars_are_stacked_where_they_share_a_place() -> None:
    bars = [ChartBars("up", [0, 1], [1.0, None]), ChartBars("down", [0, 1], [2.0, 4.0], "soft")]
    drawn = drawing.drawn(Chart(ChartAxis(names=["a", "b"]), ChartAxis(low=0, high=4), bars=bars, legend=True))
    assert [(b.x, b.y, b.width, b.height, b.color) for b in drawn.bars] == [
        (6.25, 75.0, 37.5, 25.0, "accent"), (6.25, 25.0, 37.5, 50.0, "soft"), (56.25, 0.0, 37.5, 100.0, "soft")]
    assert [key.name for key in drawn.keys] == ["up", "down"]
    lying = drawing.drawn(Chart(ChartAxis(low=0, high=4), ChartAxis(names=["a", "b"], downwards=True), bars=bars, lying=True))
    assert (lying.bars[1].x, lying.bars[1].width, lying.bars[1].y) == (25.0, 50.0, 6.25)


def test_marks_lie_where_their_values_are() -> None:
    drawn = drawing.drawn(Chart(ChartAxis(low=0, high=10), ChartAxis(low=-10, high=10), rules=[ChartRule(5, "half", upright=True), ChartRule(0)],
                                bands=[ChartBand(-5, 5), ChartBand(0, 2, upright=True)]))
    assert [(m.at, m.size, m.upright) for m in drawn.marks] == [(25.0, 50.0, False), (0.0, 20.0, True), (50.0, 0.0, True), (50.0, 0.0, False)]


@pytest.mark.parametrize(("axis", "values", "ticks"), [
    (ChartAxis(), [0.0, 10.0], ["0", "2.5", "5", "7.5", "10"]),
    (ChartAxis(whole=True), [1.0, 4.0], ["1", "2", "3", "4"]),
    (ChartAxis(whole=True), [3.0, 3.0], ["3"]),
    (ChartAxis(zero=True), [0.2, 0.9], ["0", "0.2", "0.4", "0.6", "0.8"]),
    (ChartAxis(logarithmic=True), [0.01, 1000.0], ["0.01", "0.1", "1", "10", "100", "1,000"]),
    (ChartAxis(style=numbers.whole_percent), [0.281, 0.353], ["28\u00a0%", "30\u00a0%", "32\u00a0%", "34\u00a0%"]),
    (ChartAxis(names=["a", "b"]), [], ["a", "b"]),
    (ChartAxis(), [], ["0", "0.25", "0.5", "0.75", "1"]),
    (ChartAxis(), [1e308, -1e308], None),
    (ChartAxis(), [float("nan"), 1.0], None),
])
def test_ticks_are_round_numbers(axis: ChartAxis, values: list[float], ticks: list[str] | None) -> None:
    drawn = drawing.drawn_axis(axis, values)
    assert drawn.high > drawn.low
    assert len(drawn.ticks) <= 8
    assert ticks is None or [tick.label for tick in drawn.ticks] == ticks
    assert all(-0.01 <= tick.at <= 100.01 for tick in drawn.ticks)


def test_very_many_bars_are_one_outline() -> None:
    drawn = drawing.drawn(Chart(ChartAxis(), ChartAxis(), bars=[ChartBars("", list(range(5000)), [5000.0 - k for k in range(5000)])]))
    assert not drawn.bars
    assert len(drawn.paths[0].points) < 15_000


def test_many_names_are_thinned() -> None:
    drawn = drawing.drawn(Chart(ChartAxis(names=[str(k) for k in range(100)], groups=["a"] * 40 + ["b"] * 60), ChartAxis()))
    assert len(drawn.x.ticks) == 15
    assert drawn.groups == ((0.0, 40.0, "a"), (40.0, 100.0, "b"))
