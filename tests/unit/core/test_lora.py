"""Arithmetic on factors against the dense matrices they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.closeness import assert_near

from aulait.core import lora
from aulait.core.errors import WireError
from aulait.core.factors import FactorName, Trainable
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter

SHAPES = {"x": (5, 3), "y": (2, 7), "z": (4, 4)}


def random_adapter(rank: int, seed: int, alpha: float = 3.0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        {n: (torch.randn(rank, w, generator=generator), torch.randn(m, rank, generator=generator)) for n, (m, w) in SHAPES.items()},
        alpha)


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 5), seed=st.integers(0, 1000), alpha=st.floats(0.1, 32))
def test_norm_by_gram_matrices_is_the_norm_of_the_dense_updates(rank, seed, alpha):
    adapter = random_adapter(rank, seed, alpha)
    dense = [alpha / rank * b.double() @ a.double() for a, b in adapter.factors.values()]
    expected = math.sqrt(sum(float(d.square().sum()) for d in dense))
    assert lora.norm(adapter) == pytest.approx(expected, rel=1e-9)


def test_norm_of_a_fresh_adapter_is_zero():
    assert lora.norm(lora.initial(SHAPES, 2, 8.0, Seeds(0))) == 0.0


def test_the_dense_update_is_scaled_b_times_a():
    a, b = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0], [3.0, 0.0]])
    assert torch.equal(lora.dense(Adapter({"x": (a, b)}, 4.0))["x"], 2.0 * torch.tensor([[1.0, 3.0], [0.0, 2.0], [3.0, 6.0]]))


@pytest.mark.parametrize("rank", [2, 3, 6])
def test_padding_keeps_every_number(rank):
    a, b = random_adapter(2, 5).factors["x"]
    wide_a, wide_b = lora.pad(a, b, rank)
    assert wide_a.shape == (rank, 3)
    assert wide_b.shape == (5, rank)
    assert torch.equal(wide_a[:2], a)
    assert torch.equal(wide_b[:, :2], b)
    assert not wide_a[2:].any()
    assert not wide_b[:, 2:].any()
    # exact arithmetic of a small machine: the same products, and zeros added
    assert_near(wide_b.double() @ wide_a.double(), b.double() @ a.double(), 1e-14)


def test_initial_follows_the_published_bounds_and_the_seed():
    shapes = {"wide": (3, 400), "more": (3, 400)}
    one = lora.initial(shapes, 50, 8.0, Seeds(1))
    a, b = one.factors["wide"]
    bound = 1 / math.sqrt(400)
    assert float(a.abs().max()) <= bound
    assert float(a.abs().max()) > 0.99 * bound
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not b.any()
    assert torch.equal(a, lora.initial({"wide": (3, 400)}, 50, 8.0, Seeds(1)).factors["wide"][0])  # other layers change nothing
    assert not torch.equal(a, one.factors["more"][0])
    assert not torch.equal(a, lora.initial(shapes, 50, 8.0, Seeds(2)).factors["wide"][0])


@pytest.mark.parametrize(("trainable", "letters"), [(Trainable.A, {"A"}), (Trainable.B, {"B"}), (Trainable.AB, {"A", "B"})])
def test_flat_names_hold_only_the_trainable_factors(trainable, letters):
    tensors = lora.to_tensors(random_adapter(2, 1), trainable)
    assert {name[-1] for name in tensors} == letters
    assert len(tensors) == len(SHAPES) * len(trainable.factors)


@pytest.mark.parametrize("name", ["layer.A", "model.layers.0.q_proj.B"])
def test_a_factor_s_name_is_the_one_on_the_wire(name):
    own = FactorName.parse(name)
    assert str(own) == f"{own.layer}.{own.factor.value}" == name
    assert own.partner.partner == own
    assert str(own.partner) != name
    assert FactorName.names_one(name)


@pytest.mark.parametrize("name", ["layer", "layer.W", "layer.a", ".A", "A", ""])
def test_what_is_no_factor_s_name_is_refused(name):
    assert not FactorName.names_one(name)
    with pytest.raises(WireError, match=r"expected a name as 'layer\.A'"):
        FactorName.parse(name)


def test_tags_keep_other_tensors_beside_the_factors():
    one, two = torch.zeros(1), torch.ones(1)
    kept = {"x.A": one} | lora.tagged("m", {"x.A": two}) | lora.tagged("some/client", {"data": one})
    assert list(kept) == ["x.A", "m/x.A", "some/client/data"]
    assert lora.untagged(kept) == {"x.A": one}
    assert lora.under("m", kept) == {"x.A": two}
    assert lora.by_tag(kept) == {"": {"x.A": one}, "m": {"x.A": two}, "some/client": {"data": one}}


def test_flat_names_and_back():
    adapter = random_adapter(2, 1)
    again = lora.from_tensors(lora.to_tensors(adapter), adapter.alpha)
    assert again.alpha == adapter.alpha
    for name, (a, b) in adapter.factors.items():
        assert torch.equal(again.factors[name][0], a)
        assert torch.equal(again.factors[name][1], b)


def test_with_tensors_replaces_only_what_is_named():
    adapter, new = random_adapter(2, 1), torch.ones(5, 2)
    changed = lora.with_tensors(adapter, {"x.B": new})
    assert torch.equal(changed.factors["x"][1], new)
    assert torch.equal(changed.factors["x"][0], adapter.factors["x"][0])
    assert torch.equal(changed.factors["y"][1], adapter.factors["y"][1])


def test_weighted_sum_by_hand_and_in_double_precision():
    terms = [(2.0, {"x": torch.tensor([1.0, 2.0])}), (-0.5, {"x": torch.tensor([4.0, 0.0])})]
    assert lora.weighted_sum(terms)["x"].tolist() == [0.0, 4.0]
    small = [(1.0, {"x": torch.tensor([1e8])}), (1.0, {"x": torch.tensor([1.0])}), (1.0, {"x": torch.tensor([-1e8])})]
    assert lora.weighted_sum(small)["x"].item() == 1.0  # float32 would lose the one


def test_subtract():
    assert lora.subtract({"x": torch.tensor([3.0])}, {"x": torch.tensor([1.0])})["x"].item() == 2.0
