"""Virtual time: hand-made rounds, the same time for the same seed, nobody's fate depends on who else is asked."""

from __future__ import annotations

import math

import pytest

from aulait.core.seeds import Seeds
from aulait.runs.virtual_time.clock import Clock, Stint


def clock(deadline_s=None, seed=0, **stints):
    return Clock(stints, Seeds(seed), deadline_s)


def test_a_round_lasts_as_long_as_its_slowest_client():
    out = clock(a=Stint("x", 3.0, 1.0), b=Stint("y", 10.0, 0.5)).round(["a", "b"], "train", 1)
    assert out.answered == ("a", "b")
    assert out.round_s == pytest.approx(10.5)
    assert out.busy_s == pytest.approx({"a": 4.0, "b": 10.5})


def test_a_deadline_closes_the_round_and_leaves_the_late_out():
    out = clock(5.0, a=Stint("x", 3.0, 1.0), b=Stint("y", 10.0, 0.5)).round(["a", "b"], "train", 1)
    assert (out.answered, out.late, out.round_s) == (("a",), ("b",), 5.0)
    assert out.silent == {"b"}
    assert out.busy_s["b"] == 5.0


def test_over_selection_closes_with_the_planned_number():
    stints = {f"c{i}": Stint("x", float(i + 1), 0.0) for i in range(10)}
    out = clock(**stints).round(list(stints), "train", 1, planned=7)
    assert out.answered == tuple(f"c{i}" for i in range(7))
    assert out.round_s == 7.0
    assert out.late == ("c7", "c8", "c9")


def test_the_server_works_beside_the_clients():
    out = clock(a=Stint("x", 3.0, 1.0)).round(["a"], "train", 1, server_s=9.0)
    assert out.round_s == 9.0
    assert clock(a=Stint("x", 3.0, 1.0)).round([], "train", 1, server_s=9.0).round_s == 9.0


def test_dropouts_and_absences_come_at_their_rates_and_are_told_apart():
    stints = {f"c{i:04d}": Stint("x", 1.0, 0.0, availability=0.8, dropout=0.25) for i in range(4000)}
    out = clock(**stints).round(list(stints), "train", 1)
    there = 4000 - len(out.away)
    assert there == pytest.approx(3200, abs=4 * math.sqrt(4000 * 0.16))
    assert len(out.lost) == pytest.approx(0.25 * there, abs=4 * math.sqrt(there * 0.1875))
    assert sorted((*out.answered, *out.lost, *out.late, *out.away)) == sorted(stints)
    assert not set(out.answered) & set(out.lost)


def test_slow_downs_have_mean_one_and_the_spread_that_was_asked_for():
    stints = {f"c{i:04d}": Stint("x", 1.0, 0.0, spread=0.5) for i in range(4000)}
    times = list(clock(**stints).round(list(stints), "train", 1).busy_s.values())
    assert sum(times) / 4000 == pytest.approx(1.0, abs=0.04)
    logs = [math.log(t) for t in times]
    mean = sum(logs) / 4000
    assert math.sqrt(sum((x - mean) ** 2 for x in logs) / 4000) == pytest.approx(0.5, abs=0.03)


def test_same_seed_same_times_another_seed_other_times():
    stints = {f"c{i}": Stint("x", 1.0, 0.1, spread=0.5, dropout=0.1, availability=0.9) for i in range(50)}
    runs = [[clock(seed=s, **stints).round(list(stints), "train", r) for r in (1, 2)] for s in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0][0] != runs[0][1]


def test_the_fate_of_a_client_does_not_depend_on_who_else_is_asked():
    stints = {f"c{i}": Stint("x", 1.0, 0.1, spread=0.5, dropout=0.3, availability=0.7) for i in range(40)}
    whole = clock(**stints).round(list(stints), "train", 3)
    part = clock(**stints).round([f"c{i}" for i in range(0, 40, 2)], "train", 3)
    for name in part.answered:
        assert name in whole.answered
        assert part.busy_s[name] == whole.busy_s[name]
    assert set(part.away) <= set(whole.away)


def test_what_is_told_adds_up():
    made = clock(a=Stint("x", 3.0, 1.0, energy_j=8.0, idle_w=2.0, link_j=0.5), b=Stint("y", 9.0, 1.0, energy_j=20.0, idle_w=1.0))
    told = made.metrics(made.round(["a", "b"], "train", 1))
    assert told["round_s"] == 10.0
    assert told["tiers"]["x"] == {"answered": 1, "late": 0, "lost": 0, "away": 0, "busy_s": 4.0, "idle_s": 6.0, "energy_j": 8.0 + 12.0, "link_j": 0.5}
    assert told["energy_j"] == pytest.approx(20.0 + 20.0 + 0.5)
    assert told["idle_share"] == pytest.approx(6.0 / 20.0)


def test_over_selection_does_not_wait_for_a_lost_client_when_enough_have_answered():
    stints = {"a": Stint("x", 1.0, 0.0), "b": Stint("x", 2.0, 0.0), "c": Stint("x", 1000.0, 0.0, dropout=0.999999)}
    assert clock(**stints).round(["a", "b", "c"], "train", 1, planned=2).round_s == 2.0


def test_the_server_also_works_when_the_clients_are_done():
    assert clock(a=Stint("x", 3.0, 1.0)).round(["a"], "synthesis", 1, after_s=5.0).round_s == 9.0


def test_the_fate_of_a_client_does_not_depend_on_who_else_is_in_the_federation():
    stints = {f"c{i}": Stint("x", 1.0, 0.1, spread=0.5) for i in range(6)}
    fewer = {name: stint for name, stint in stints.items() if name != "c0"}
    assert clock(**fewer).round(["c5"], "train", 1).busy_s == clock(**stints).round(["c5"], "train", 1).busy_s
