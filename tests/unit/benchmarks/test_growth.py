"""Time against the size of the work: the exponent is that of the figures, and every kind is
measured."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from aulait import cli
from aulait.core.errors import ConfigError
from aulait_benchmarks import growth


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    points = [(size, 0.3 * size**power) for size in (3, 7, 40, 100)]
    assert growth.exponent(points) == pytest.approx(power, abs=1e-12)


def test_the_exponent_is_the_slope_that_errs_least():
    points = [(1, 1.0), (2, 3.0), (4, 2.0), (8, 9.0)]
    found = growth.exponent(points)

    def squares(slope: float) -> float:
        rest = [math.log(y) - slope * math.log(x) for x, y in points]
        return sum((r - sum(rest) / len(rest)) ** 2 for r in rest)

    assert squares(found) < min(squares(found - 1e-3), squares(found + 1e-3))


def test_one_size_has_no_exponent():
    with pytest.raises(ConfigError, match="at least two"):
        growth.exponent([(4, 1.0), (4, 2.0)])


def test_the_command_measures_every_kind_at_every_size():
    done = CliRunner().invoke(
        cli.app, ["bench", "growth", "--quick", "--repetitions", "3", "--json"]
    )
    found = json.loads(done.stdout)
    asked = growth.QUICK
    for table, sizes in zip(
        found["tables"], (asked.clients, asked.tokens, asked.ranks, asked.candidates), strict=True
    ):
        assert [row["size"] for row in table["rows"]] == list(sizes)
        assert all(row["seconds"] > 0 for row in table["rows"])
        assert table["exponent"] == pytest.approx(
            growth.exponent([(row["size"], row["seconds"]) for row in table["rows"]])
        )
    assert [table["name"] for table in found["tables"]] == [
        "clients",
        "tokens",
        "rank",
        "candidates",
    ]
    assert set(found) == {"tables", "clock", "repetitions", "peak_rss_bytes", "threads"}
