"""The comparisons that other tests rely on can fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.closeness import assert_learnt_alike, assert_near, assert_same_adapters, relative_error


def test_the_bound_is_relative_to_the_largest_value_of_each_tensor():
    wanted = {"A": torch.tensor([3.0, -500.0]), "B": np.array([1e-3, 2e-3])}
    near = {"A": torch.tensor([3.004, -500.0]), "B": np.array([1e-3, 2.00001e-3])}
    far = {"A": wanted["A"], "B": np.array([1.01e-3, 2e-3])}
    assert_near(near, wanted, 1e-5)
    with pytest.raises(AssertionError, match=r"the update B: .* 1e-05, 0\.005 of the size 0\.002"):
        assert_near(far, wanted, 1e-5, what="the update")
    assert_near(far, wanted, 1e-5, size=2.0)
    assert_near(1e-9 + 5.0, 5.0, 1e-8)


@pytest.mark.parametrize("found", [
    {"A": torch.ones(2)}, {"B": torch.ones(2), "A": torch.ones(2)}, {"B": torch.ones(1)},
    {"B": torch.tensor([1.0, math.nan])}, {"B": torch.tensor([1.0, math.inf])}])
def test_other_names_shapes_and_numbers_that_are_not_finite_are_far(found):
    for check in (assert_near, assert_learnt_alike):
        with pytest.raises(AssertionError):
            check(found, {"B": torch.ones(2)}, 1.0)


def test_zeros_have_to_be_met_exactly():
    for check in (assert_near, assert_learnt_alike):
        check(torch.zeros(2), torch.zeros(2), 1e-5)
        with pytest.raises(AssertionError):
            check(torch.full((2,), 1e-30), torch.zeros(2), 1e-5)


def test_what_was_learnt_is_measured_from_the_start():
    start, wanted = {"x": (torch.full((2,), 10.0),)}, {"x": (torch.tensor([13.0, 14.0]),)}
    found = {"x": (torch.tensor([13.0, 14.5]),)}
    assert relative_error(found, wanted, start) == pytest.approx(0.1)
    assert relative_error(found, wanted) == pytest.approx(0.5 / math.hypot(13, 14))
    assert_learnt_alike(found, wanted, 0.11, start=start)
    with pytest.raises(AssertionError, match=r"the difference is 0\.1 of the norm"):
        assert_learnt_alike(found, wanted, 0.09, start=start)


def test_adapters_are_the_same_if_their_products_and_their_factors_are():
    of_b = "x.lora_B.weight"
    one = {"x.lora_A.weight": torch.tensor([[1.0, 2.0]]), of_b: torch.tensor([[1e-3], [2e-3]])}
    assert_same_adapters(one, one, 0.0)
    assert_same_adapters(one, {name: t * (1 + 1e-5) for name, t in one.items()})
    for other in ({**one, of_b: 1.01 * one[of_b]}, {name: -t for name, t in one.items()}):
        with pytest.raises(AssertionError):
            assert_same_adapters(one, other)
