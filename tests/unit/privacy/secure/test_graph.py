"""Degrees, thresholds and the ring."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.errors import PrivacyError
from aulait.privacy.secure import graph
from aulait.privacy.secure.graph import choose, neighbours, shuffled
from aulait.privacy.secure.quorum import Quorum


@settings(deadline=None)
@given(st.integers(3, 90), st.integers(1, 20))
def test_everybody_has_the_degree_and_neighbours_are_mutual(count, half):
    names = [f"c{i}" for i in range(count)]
    found = neighbours(names, 2 * half)
    for name, others in found.items():
        assert len(others) == len({*others}) == min(2 * half, count - 1)
        assert name not in others
        assert all(name in found[other] for other in others)


@settings(max_examples=8, deadline=None)
@given(st.integers(65, 400), st.floats(0, 0.4), st.floats(0, 0.2))
def test_the_degree_keeps_its_promises_by_brute_force(count, away, bad):
    """Random absences and colluders: no ring falls apart, no threshold is reached by colluders."""
    absent, colluders = int(away * count), int(bad * count)
    quorum = Quorum(count - absent, colluders)
    if not quorum.holds(count):
        with pytest.raises(PrivacyError):
            choose(count, quorum)
        return
    degree = choose(count, quorum)
    around = neighbours([str(i) for i in range(count)], degree.degree)
    draw = random.Random(count)
    for _ in range(8):
        names = [str(i) for i in range(count)]
        draw.shuffle(names)
        gone, evil = {*names[:absent]}, {*names[absent:absent + colluders]}
        for others in around.values():
            assert sum(other in evil for other in others) < degree.threshold
            assert sum(other not in gone for other in others) >= degree.threshold
        honest = {*around} - gone - evil
        seen, left = set(), [next(iter(honest))]
        while left:
            at = left.pop()
            if at in seen:
                continue
            seen.add(at)
            left += [other for other in around[at] if other in honest]
        assert seen == honest


def test_the_chance_of_a_run_is_counted_exactly():
    clients, missing, length = 9, 4, 3
    sets = list(itertools.combinations(range(clients), missing))
    exact = sum({0, 1, 2} <= {*gone} for gone in sets) / len(sets)
    assert graph._run(clients, length, missing) == pytest.approx(exact)
    assert graph._run(clients, missing + 1, missing) == 0.0


def test_the_degree_grows_as_the_logarithm():
    degrees = [choose(n, Quorum.of(n, 0.1, 0)).degree for n in (100, 1000, 10_000)]
    assert degrees[0] <= degrees[1] <= degrees[2] < 3 * math.log2(10_000) * 3
    assert choose(20, Quorum.of(20, 0.1, 0)).degree == 19


@pytest.mark.parametrize(("clients", "least", "colluders"), [
    (2, 2, 0), (4, 2, 0), (5, 3, 0), (9, 9, 8), (9, 7, 6), (9, 9, -1)])
def test_too_few_clients_are_refused(clients, least, colluders):
    with pytest.raises(PrivacyError, match=r"privacy\.dropouts"):
        choose(clients, Quorum(least, colluders))


def test_a_ring_is_drawn_from_its_seed():
    names = [f"c{i}" for i in range(30)]
    one = shuffled(names, b"\1" * 32)
    assert sorted(one) == sorted(names)
    assert one == shuffled(reversed(names), b"\1" * 32) != shuffled(names, b"\2" * 32)
