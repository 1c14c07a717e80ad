"""The privacy curve of sampled releases, against the total variation distance that a sum on a grid
gives."""

from __future__ import annotations

from statistics import NormalDist

import pytest

from aulait.privacy.accounting import Event
from aulait.privacy.curve import DELTAS, privacy_curve
from aulait.reporting.guarantee import Bounds, success

NORMAL = NormalDist()


def test_without_sampling_there_is_a_closed_form_and_no_curve() -> None:
    assert privacy_curve({Event(1.0): 3}) == []
    assert privacy_curve({}) == []


@pytest.mark.parametrize(("z", "rate"), [(0.8, 0.3), (2.0, 0.05)])
def test_one_sampled_release_is_told_apart_no_better_than_it_can_be(z: float, rate: float) -> None:
    """Total variation of N(0, z) and its mixture with N(1, z): rate times that of the two
    Gaussians."""
    exact = (1 + rate * (2 * NORMAL.cdf(0.5 / z) - 1)) / 2
    curve = privacy_curve({Event(z, rate): 1})
    assert [delta for _, delta in curve] == list(DELTAS)
    found = Bounds(curve).success()
    assert exact <= found + 1e-9
    assert found == pytest.approx(exact, abs=0.01)


def test_many_steps_are_far_from_what_one_pair_says() -> None:
    """DP-SGD at epsilon 8: its pair at delta 1e-5 says next to nothing, the curve much."""
    from aulait.privacy.accounting import epsilon

    event = Event(0.6, 0.01, 100)
    pair = (epsilon([event], 1e-5), 1e-5)
    assert success(*pair) > 0.95
    assert Bounds([pair, *privacy_curve({event: 1})]).success() < 0.75
