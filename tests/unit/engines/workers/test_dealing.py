"""Passes are dealt evenly, each site once, by a rule without chance."""

from __future__ import annotations

import pytest

from aulait.engines.workers.dealing import dealt, divided


def size(own):
    return float(len(own))


def test_a_multiple_of_the_workers_is_not_cut():
    passes = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert divided(passes, size, 2) == passes


def test_the_costliest_pass_is_halved_until_all_have_as_many():
    assert divided([[0, 1, 2, 3]], size, 2) == [[0, 1], [2, 3]]
    assert divided([[0, 1, 2, 3]], size, 4) == [[0], [1], [2], [3]]
    assert divided([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], size, 2) == [
        [0, 1],
        [2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_single_sites_stay_whole_where_there_are_more_workers():
    assert divided([[0], [1], [2]], size, 4) == [[0], [1], [2]]
    assert dealt([[0], [1], [2]], size, 4) == [[[0]], [[1]], [[2]], []]


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("sites", [1, 7, 16, 33])
def test_every_site_is_dealt_once(sites, workers):
    passes = [list(range(first, min(first + 4, sites))) for first in range(0, sites, 4)]
    shares = dealt(divided(passes, size, workers), size, workers)
    assert sorted(i for share in shares for own in share for i in own) == list(range(sites))
    loads = [sum(map(len, share)) for share in shares]
    assert max(loads) - min(loads) <= 4
    assert shares == dealt(divided(passes, size, workers), size, workers)


def test_the_costliest_goes_to_whom_has_least():
    assert dealt([[0], [1], [2]], lambda own: [1.0, 5.0, 2.0][own[0]], 2) == [[[1]], [[2], [0]]]
