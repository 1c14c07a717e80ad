"""The sentences of the promise, and the attacker's best success against slow or closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from tests.fixture_run import write_run

from aulait.reporting import guarantee, privacy, promise, story
from aulait.reporting.folder import RunFiles, read_run
from aulait.reporting.guarantee import Bounds

NORMAL = NormalDist()


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def record_run(folder: Path, field: str | None = None, relation: str = "zero-out") -> RunFiles:
    """A run that protects records (or units of a field), as far as its words go."""
    write_run(folder, change=lambda result: result["privacy"].update(unit="record",
        relation=relation))
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    changed = [{**line, "unit": "record", "relation": relation, "mechanism": "dp-sgd"}
               for line in lines]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    if field:
        with (folder / "config.toml").open("a", encoding="utf-8") as file:
            file.write(f'unit = "record"\nunit_field = "{field}"\n')
    return read_run(folder)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.2])
def test_even_odds_are_the_best_point_of_the_detection_curve(epsilon: float, delta: float) -> None:
    """The success is the largest mean of detection and correct rejection over all alarm rates."""
    steps = 20_000
    slow = max((guarantee.detection(epsilon, delta, k / steps) + 1 - k / steps) / 2
               for k in range(steps + 1))
    assert slow <= guarantee.success(epsilon, delta) + 1e-12
    assert guarantee.success(epsilon, delta) == pytest.approx(slow,
        abs=2 * math.exp(epsilon) / steps)


@pytest.mark.parametrize("mu", [0.1, 1.0, 2.5])
def test_gaussian_even_odds_by_integration(mu: float) -> None:
    """Half of 1 plus the total variation distance of N(0, 1) and N(mu, 1), summed on a grid."""
    step = 1e-3
    points = [-10 + k * step for k in range(round(20 / step) + 1)]
    distance = sum(abs(NORMAL.pdf(x) - NORMAL.pdf(x - mu)) for x in points) * step / 2
    assert guarantee.gaussian_success(mu) == pytest.approx((1 + distance) / 2, abs=1e-6)


def test_the_smallest_bound_counts_and_no_bound_is_certainty() -> None:
    assert Bounds(((8.0, 1e-5),), 1.6).success() == guarantee.gaussian_success(1.6)
    assert Bounds(((0.5, 1e-5),), 3.0).success() == guarantee.success(0.5, 1e-5)
    assert Bounds(((8.0, 1e-5), (0.3, 0.2))).success() == guarantee.success(0.3, 0.2)
    assert Bounds(((8.0, 1e-5), (0.3, 0.2)), 1.0).detection() == guarantee.gaussian_detection(1.0)
    assert Bounds(((8.0, 1e-5), (0.3, 0.1))).detection() == guarantee.detection(0.3, 0.1)
    assert Bounds().success() == Bounds().detection() == Bounds().group_success(2) == 1.0
    assert guarantee.success(1e4, 1e-5) == 1.0


def test_groups_and_spread_units_cost_more_and_one_costs_the_same() -> None:
    one, gaussian = Bounds(((1.0, 1e-5),)), Bounds(((1.0, 1e-5),), 0.4)
    assert one.group_success(1) == one.spread_success(1) == one.success() == guarantee.success(1.0,
        1e-5)
    assert gaussian.group_success(5) == guarantee.gaussian_success(2.0)
    two = guarantee.success(2.0, 1e-5 * (1 + math.e))  # delta, and e^epsilon times delta
    assert one.group_success(2) == pytest.approx(two)
    assert Bounds(((8.0, 1e-5),)).group_success(100) == 1.0
    assert gaussian.spread_success(4) == guarantee.gaussian_success(0.8)
    assert one.spread_success(2) == guarantee.success(2.0, 2e-5)


def test_every_role_has_its_own_mu(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert guarantee.role_mu(run, "proxy") == pytest.approx(math.sqrt(5) / 3.62)
    assert guarantee.role_mu(run, "local") == pytest.approx(math.sqrt(10) / 4.9)
    assert guarantee.role_mu(run, "split") is None


def test_the_report_speaks_of_a_null_record_and_of_public_numbers(tmp_path: Path) -> None:
    body = plain(privacy.privacy_section(record_run(tmp_path / "run")).body)
    assert "a null record in its place" in body
    assert "one record of one client" in body
    assert "How many records a client trains or votes with is public" in body
    assert "Every role pays for the unit that fares worst" in body
    assert "What that means for one record" in body
    assert "none for their number" in body


def test_a_field_names_the_unit(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run", field="patient")
    body = plain(privacy.privacy_section(run).body)
    assert "all records of one value of the field “patient” at one client" in body
    assert "What that means for one unit" in body
    assert "one record of one client" not in body
    assert "whether a given unit was among the data" in " ".join(story.attack_sentences(run))
    assert story.lead_sentences(run)[2].startswith("It cost a unit at most")


def test_the_report_says_the_attackers_best_guess(tmp_path: Path) -> None:
    def eight(result: dict[str, Any]) -> None:
        result["privacy"]["epsilon"]["max"] = 8.0

    run = read_run(write_run(tmp_path / "run"))
    mu = math.sqrt(10) / 4.9
    assert f"in at most {100 * NORMAL.cdf(mu / 2):.1f} % of cases" in plain(
        story.attack_sentences(run)[-1])
    other = read_run(write_run(tmp_path / "other", change=eight))
    # 1 / (1 + e^-8)
    assert "in at most 99.97 % of cases" in plain(story.attack_sentences(other)[-1])


def test_without_a_secret_noise_no_success_is_promised(tmp_path: Path) -> None:
    for name, settings in {"off": {"off": True}, "seeded": {"seeded": True},
                           "exact": {"exact_votes": True}}.items():
        assert story.attack_sentences(read_run(write_run(tmp_path / name, **settings))) == [
            promise.no_bound()]
