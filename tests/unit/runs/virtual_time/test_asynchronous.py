"""The asynchronous schedule: hand-made timelines, what bounds it, and that it depends on
public things alone."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from aulait.core.errors import ConfigError
from aulait.core.seeds import Seeds
from aulait.runs.virtual_time.asynchronous import Pace, schedule
from aulait.runs.virtual_time.clock import Clock, Stint

MANY = {
    f"c{i:03d}": Stint(
        "x" if i % 2 else "y", 1.0 + i % 7, 0.5, availability=0.7, dropout=0.1, spread=0.3
    )
    for i in range(60)
}


def made(stints, rounds, size, at_work, most=10**6, seed=0, server_s=0.0):
    return schedule(stints, Seeds(seed), Pace(size, at_work, most, server_s), rounds)


def test_a_slow_client_fills_a_later_buffer_and_nobody_waits_for_it():
    found = made({"fast": Stint("x", 1.0, 0.0), "slow": Stint("y", 3.25, 0.25)}, 6, 1, 2)
    assert [dict(own.filling) for own in found] == [
        {"fast": 0},
        {"fast": 0},
        {"fast": 0},
        {"slow": 3},
        {"fast": 1},
        {"fast": 0},
    ]
    assert [own.outcome.round_s for own in found] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.5, 1.0])
    assert found[0].beginning == ("fast", "slow")
    assert found[1].beginning == ("fast",)  # from the factors that its first update has made
    assert found[4].beginning == ("slow",)


def test_alone_at_work_it_is_one_after_the_other():
    found = made({name: Stint("x", 2.0, 1.0) for name in "abc"}, 4, 2, 1)
    assert all(set(own.filling.values()) == {0} for own in found)
    assert [own.outcome.round_s for own in found] == [6.0] * 4
    assert all(own.beginning == tuple(own.filling) for own in found)


def test_a_buffer_holds_a_client_once_and_a_client_no_more_than_its_contributions():
    found = made(MANY, 30, 8, 20, most=5)
    assert all(len(own.filling) == 8 for own in found)
    taken = Counter(name for own in found for name in own.filling)
    assert max(taken.values()) <= 5
    began = dict.fromkeys(MANY, 0)
    for number, own in enumerate(found, 1):
        for name, age in own.filling.items():
            assert name in found[number - age - 1].beginning
            assert number - age > began[name]  # one job at a time, each of its own request
            began[name] = number - age


def test_so_many_are_at_work_between_buffers():
    found = made({name: Stint("x", 1.0 + i, 0.0) for i, name in enumerate("abcdefghij")}, 12, 3, 5)
    at_work: set[str] = set()
    for own in found:
        at_work |= set(own.beginning)
        assert set(own.filling) <= at_work
        at_work -= set(own.filling)
        assert len(at_work) == 4  # the place of the last one is taken in the next round


def test_the_same_seed_gives_the_same_schedule_and_another_another():
    assert made(MANY, 5, 8, 20) == made(MANY, 5, 8, 20)
    assert made(MANY, 5, 8, 20) != made(MANY, 5, 8, 20, seed=1)
    assert made(MANY, 5, 8, 20) == made(MANY, 30, 8, 20)[:5]  # however long the run


def test_those_who_are_seldom_there_are_seldom_drawn_and_the_lost_come_at_their_rate():
    stints = {
        f"c{i:03d}": Stint("x", 1.0, 0.0, availability=0.9 if i % 2 else 0.3, dropout=0.25)
        for i in range(400)
    }
    found = made(stints, 40, 20, 20)
    answered, lost = (Counter() for _ in range(2))
    for own in found:
        answered.update(list(own.filling))
        lost.update(own.outcome.lost)
    often = sum(count for name, count in answered.items() if int(name[1:]) % 2) / 800
    assert often == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 800))
    share = lost.total() / (lost.total() + answered.total())
    assert share == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 1060))


def test_proxies_at_the_server_hold_up_a_buffer():
    assert (
        made({name: Stint("x", 1.0, 0.0) for name in "abcd"}, 2, 2, 2, server_s=5.0)[
            0
        ].outcome.round_s
        == 5.0
    )


@pytest.mark.parametrize(
    ("rounds", "size", "most", "text"),
    [
        (2, 5, 9, "expected at most the 8 updates that 4 clients with 2 each"),
        (9, 2, 4, "expected at most the 16 updates"),
    ],
)
def test_buffers_that_cannot_be_filled_are_refused_before_the_run(rounds, size, most, text):
    with pytest.raises(ConfigError, match=text):
        made({name: Stint("x", 1.0, 0.0) for name in "abcd"}, rounds, size, 2, most)


def test_the_last_buffers_need_clients_that_have_not_given_all():
    """Two fast ones give all of theirs while the slow one works; a buffer holds nobody twice."""
    stints = {"a": Stint("x", 1.0, 0.0), "b": Stint("x", 1.0, 0.0), "c": Stint("x", 100.0, 0.0)}
    with pytest.raises(ConfigError, match="buffer 4 cannot be filled"):
        made(stints, 4, 2, 3, most=3)


def test_the_clock_tells_staleness_and_that_nobody_waits():
    found = made({"fast": Stint("x", 1.0, 0.0), "slow": Stint("y", 3.25, 0.25)}, 6, 1, 2)
    told = Clock({"fast": Stint("x", 1.0, 0.0), "slow": Stint("y", 3.25, 0.25)}, Seeds(0)).metrics(
        found[3].outcome
    )
    assert (told["staleness"], told["stalest"], told["idle_share"]) == (3.0, 3, 0.0)
    assert told["tiers"]["y"]["busy_s"] == pytest.approx(3.5)
