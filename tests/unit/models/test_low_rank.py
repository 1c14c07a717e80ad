"""Streamed sums of products against dense sums and full decompositions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import LinAlgError
from tests.oracle import products

from aulait.core import lora
from aulait.core.errors import ModelError
from aulait.core.types import Adapter
from aulait.models import low_rank, singular_values
from aulait.models.low_rank import Merge, ProductSum, truncated

SHAPES = [(5, 3), (7, 40), (64, 64), (96, 200), (300, 130)]
MODES = ["stacked", "dense", "gram"]


def federation(shape, ranks, seed, decay=0.0):
    """(weight, A, B) of every client; with decay, columns shrink by that power of ten from first to last."""
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for rank in ranks:
        fade = 10 ** (-decay * torch.linspace(0, 1, rank))
        a = torch.randn(rank, shape[1], generator=generator)
        b = torch.randn(shape[0], rank, generator=generator) * fade
        terms.append((float(torch.rand(1, generator=generator)) * 16 / rank, a, b))
    return terms


def summed(shape, terms, planned=None):
    total = ProductSum(shape, planned_rank=planned)
    for term in terms:
        total.add(*term)
    return total


def oracle(shape, terms):
    return products.total(shape, [(w, a.numpy(), b.numpy()) for w, a, b in terms])


def way(monkeypatch, mode):
    """Forces how a sum is held and decomposed."""
    monkeypatch.setattr(low_rank, "STACKED", 1.0 if mode == "stacked" else 0.0)
    if mode != "stacked":
        for module in (low_rank, singular_values):
            monkeypatch.setattr(module, "FULL_SVD", 0 if mode == "gram" else 10_000)
        monkeypatch.setattr(singular_values, "FULL_VALUES", 0 if mode == "gram" else 10_000)
        monkeypatch.setattr(singular_values, "FEW", 1.0)


def far(found, expected):
    """Largest difference in units of the largest entry expected."""
    return float(np.abs(np.asarray(found) - expected).max() / max(np.abs(expected).max(), 1e-30))


def product(pair):
    a, b = pair
    return (b.double() @ a.double()).numpy()


def assert_values(found, expected):
    """1e-5 of each down to 1e-4 of the largest."""
    known = expected[: len(found)]
    clear = known > 1e-4 * expected[0]
    assert np.abs(found.numpy() - known)[clear] / known[clear] == pytest.approx(0, abs=1e-5)
    assert expected[len(found) :].max(initial=0.0) <= 1e-6 * max(expected[0], 1e-30)


federations = given(
    shape=st.sampled_from(SHAPES),
    ranks=st.lists(st.integers(1, 64), min_size=2, max_size=30),
    kept=st.integers(1, 70),
    seed=st.integers(0, 2**16),
    decay=st.sampled_from([0.0, 3.0]),
)


@settings(max_examples=40, deadline=None)
@federations
def test_random_federations_agree_with_the_dense_truth(shape, ranks, kept, seed, decay):
    terms = federation(shape, ranks, seed, decay)
    total, truth = summed(shape, terms), oracle(shape, terms)
    assert total.rank_bound == min(sum(ranks), *shape)
    assert far(total.dense(), truth) < 1e-5
    assert total.norm() == pytest.approx(np.linalg.norm(truth), rel=1e-5)
    assert_values(total.singular_values(), products.values(truth))
    a, b = total.truncated(kept)
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((kept, shape[1]), (shape[0], kept), torch.float32, torch.float32)
    lost = np.linalg.norm(truth - product((a, b)))
    assert lost == pytest.approx(products.discarded(truth, kept), abs=1e-5 * np.linalg.norm(truth))
    right = torch.randn(shape[1], 3, generator=torch.Generator().manual_seed(seed))
    assert far(total.times(right), truth @ right.double().numpy()) < 1e-5


@settings(max_examples=20, deadline=None)
@given(shape=st.sampled_from(SHAPES), clients=st.integers(1, 9), kept=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_stacked_dense_and_gram_agree(shape, clients, kept, seed):
    ranks = [1 + (seed + k) % 2 for k in range(clients)]
    terms, found = federation(shape, ranks, seed), {}
    for mode in MODES:
        with pytest.MonkeyPatch.context() as patch:
            way(patch, mode)
            total = summed(shape, terms)
            assert (total._sum_MN is None) == (mode == "stacked" and sum(ranks) <= min(shape))
            found[mode] = (total.singular_values(), product(total.truncated(kept)), total.norm())
    for mode in MODES[1:]:
        assert far(found[mode][0], found["stacked"][0].numpy()) < 1e-5
        assert abs(np.linalg.norm(found[mode][1]) - np.linalg.norm(found["stacked"][1])) < 1e-5 * found["stacked"][2]
        assert found[mode][2] == pytest.approx(found["stacked"][2], rel=1e-6)
        if kept >= sum(ranks):
            assert far(found[mode][1], found["stacked"][1]) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_a_clear_spectrum_gives_the_truncation_itself(mode, shape, monkeypatch):
    way(monkeypatch, mode)
    terms = federation(shape, [6, 4, 9], 3)
    truth = oracle(shape, terms)
    total = summed(shape, terms)
    for kept in (1, 7, 18):
        assert far(product(total.truncated(kept)), products.truncation(truth, kept)) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_values_far_below_the_largest(mode, monkeypatch):
    way(monkeypatch, mode)
    terms = federation((150, 80), [12, 5], 1, decay=4.5)
    assert_values(summed((150, 80), terms).singular_values(), products.values(oracle((150, 80), terms)))


def test_a_large_float32_sum_keeps_its_values():
    shape = (1300, 900)
    terms = federation(shape, [200, 40, 64, 8], 5, decay=4.0)
    total = summed(shape, terms)
    assert total._sum_MN is not None
    assert total._sum_MN.dtype == torch.float32
    truth = oracle(shape, terms)
    expected = products.values(truth)
    assert_values(total.singular_values(), expected)
    a, b = total.truncated(50)
    assert np.linalg.norm(truth - product((a, b))) == pytest.approx(products.discarded(truth, 50), rel=1e-5)
    assert b.norm(dim=0).numpy() == pytest.approx(expected[:50], rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(50, 30), (30, 50)])
def test_where_the_singular_values_go(mode, shape, monkeypatch):
    way(monkeypatch, mode)
    terms = federation(shape, [5, 8], 2, decay=3.0)
    total, expected = summed(shape, terms), products.values(oracle(shape, terms))[:10]
    a, b = total.truncated(10)
    assert far(a @ a.T, np.eye(10)) < 1e-5
    assert b.norm(dim=0).numpy() == pytest.approx(expected, rel=1e-5)
    even_a, even_b = total.truncated(10, "symmetric")
    assert even_a.norm(dim=1).numpy() == pytest.approx(np.sqrt(expected), rel=1e-5)
    assert even_b.norm(dim=0).numpy() == pytest.approx(np.sqrt(expected), rel=1e-5)
    assert far(product((even_a, even_b)), product((a, b))) < 1e-6
    for rows in (a, even_a):
        assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_every_rank_of_one_decomposition_is_a_leading_part(mode, monkeypatch):
    way(monkeypatch, mode)
    terms = federation((40, 30), [4, 6], 8)
    small_first, large_first = summed((40, 30), terms), summed((40, 30), terms)
    small = small_first.truncated(3)
    large = large_first.truncated(9)
    assert far(small[0], large[0][:3].numpy()) < 1e-6
    assert far(small_first.truncated(9)[1], large[1].numpy()) < 1e-5
    assert torch.equal(large_first.truncated(3)[1], large[1][:, :3])


@pytest.mark.parametrize("mode", MODES)
def test_a_truncation_to_the_rank_of_the_sum_or_more_is_exact_and_padded(mode, monkeypatch):
    way(monkeypatch, mode)
    shape = (40, 30)
    terms = federation(shape, [3, 2], 4)
    twice = [*terms, *terms]  # ranks 10 together, rank 5 in truth
    truth = oracle(shape, twice)
    for rank in (5, 9, 64):
        a, b = summed(shape, twice).truncated(rank)
        assert a.shape[0] == b.shape[1] == rank
        assert far(product((a, b)), truth) < 1e-5
        assert not a[5:].any()
        assert not b[:, 5:].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_zero_updates(mode, shape, monkeypatch):
    way(monkeypatch, mode)
    terms = federation(shape, [2, 3], 6)
    truth = oracle(shape, terms)
    silent = (1.0, torch.randn(4, shape[1]), torch.zeros(shape[0], 4))
    assert far(product(summed(shape, [*terms, silent]).truncated(5)), truth) < 1e-5
    opposite = [(-w, a, b) for w, a, b in terms]
    for nothing in ([], [silent], [(0.0, *terms[0][1:])]):
        a, b = summed(shape, nothing).truncated(3)
        assert not a.any()
        assert not b.any()
        assert summed(shape, nothing).norm() == 0
        assert not summed(shape, nothing).singular_values().any()
    gone = product(summed(shape, [*terms, *opposite]).truncated(3))
    assert np.isfinite(gone).all()
    assert np.abs(gone).max() < 1e-6 * np.abs(truth).max()


@pytest.mark.parametrize("planned", [None, 1000])
def test_an_empty_sum(planned):
    empty = ProductSum((9, 4), planned_rank=planned)
    a, b = empty.truncated(2)
    assert (a.shape, b.shape) == ((2, 4), (9, 2))
    assert not a.any()
    assert not b.any()
    assert (empty.rank_bound, empty.norm(), len(empty.singular_values())) == (0, 0.0, 0)
    assert not empty.dense().any()
    assert not empty.times(torch.ones(4, 2)).any()


@settings(max_examples=15, deadline=None)
@given(ranks=st.lists(st.integers(1, 64), min_size=2, max_size=12), seed=st.integers(0, 999), data=st.data())
def test_the_order_and_the_plan_change_only_rounding(ranks, seed, data):
    shape = (120, 90)
    terms = federation(shape, ranks, seed)
    one = summed(shape, terms)
    other = summed(shape, data.draw(st.permutations(terms)), planned=data.draw(st.sampled_from([None, 1, 10_000])))
    assert far(other.dense(), one.dense().numpy()) < 1e-6
    assert far(other.singular_values(), one.singular_values().numpy()) < 1e-6
    assert far(product(other.truncated(90)), product(one.truncated(90))) < 1e-5


def test_adding_after_a_truncation_counts():
    terms = federation((30, 20), [3, 3, 12], 9)
    total = summed((30, 20), terms[:1])
    total.truncated(2)
    total.singular_values()
    for term in terms[1:]:
        total.add(*term)
        total.norm()
    truth = oracle((30, 20), terms)
    assert far(total.dense(), truth) < 1e-5
    assert far(total.singular_values(), products.values(truth)[: total.rank_bound]) < 1e-5
    assert far(product(total.truncated(20)), truth) < 1e-5


def test_what_arrives_may_be_forgotten_and_is_not_kept():
    total, terms = ProductSum((300, 300)), federation((300, 300), [16] * 40, 1)
    for weight, a, b in terms:
        total.add(weight, (kept := a.clone()), b)
        kept.zero_()
    assert far(total.dense(), oracle((300, 300), terms)) < 1e-5
    assert not total._terms


@pytest.mark.parametrize("failure", ["raises", "crooked"])
def test_a_failing_eigensolver_has_a_second(failure, monkeypatch):
    way(monkeypatch, "gram")
    real = singular_values.eigh

    def eigh(gram, **settings):
        if "subset_by_index" not in settings:
            return real(gram, **settings)
        if failure == "raises":
            raise LinAlgError("no convergence")
        values, vectors = real(gram, **settings)
        return values, vectors + 1e-3

    monkeypatch.setattr(singular_values, "eigh", eigh)
    terms = federation((40, 30), [4, 4], 2)
    assert far(product(summed((40, 30), terms).truncated(8)), oracle((40, 30), terms)) < 1e-5


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.ones(2, 4), torch.ones(9, 3), "do not fit a layer of 9 x 4"),
        (torch.ones(2, 5), torch.ones(9, 2), "do not fit a layer of 9 x 4"),
        (torch.full((2, 4), torch.nan), torch.ones(9, 2), "not finite"),
    ],
)
def test_what_does_not_belong_is_refused(a, b, words):
    with pytest.raises(ModelError, match=words):
        ProductSum((9, 4)).add(1.0, a, b)
    with pytest.raises(ModelError, match="at least 1"):
        ProductSum((9, 4)).truncated(0)


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 40), kept=st.integers(1, 45), seed=st.integers(0, 999), scale=st.floats(0.1, 30))
def test_one_pair(rank, kept, seed, scale):
    _, a, b = federation((50, 35), [rank], seed)[0]
    truth = scale * (b.double() @ a.double()).numpy()
    best = product(truncated(a, b, kept, scale=scale))
    assert np.linalg.norm(truth - best) == pytest.approx(products.discarded(truth, kept), abs=1e-5 * np.linalg.norm(truth))


@given(rank=st.integers(1, 9), extra=st.integers(0, 20), seed=st.integers(0, 99))
def test_pad_then_truncate_is_the_identity(rank, extra, seed):
    _, a, b = federation((30, 25), [rank], seed)[0]
    assert far(product(truncated(*lora.pad(a, b, rank + extra), rank)), product((a, b))) < 1e-5


def adapters(shapes, ranks_of_clients, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        Adapter(
            {n: (torch.randn(ranks[n], k, generator=generator), torch.randn(m, ranks[n], generator=generator)) for n, (m, k) in shapes.items()},
            alpha,
        )
        for ranks in ranks_of_clients
    ]


@settings(max_examples=20, deadline=None)
@given(data=st.data(), alpha=st.floats(0.5, 40), after=st.floats(0.5, 40), seed=st.integers(0, 999))
def test_merge_of_unequal_adapters(data, alpha, after, seed):
    shapes = {"attention": (24, 24), "up": (60, 24), "down": (24, 60)}
    clients = data.draw(st.lists(st.fixed_dictionaries({name: st.integers(1, 12) for name in shapes}), min_size=1, max_size=6))
    updates, weight = adapters(shapes, clients, alpha, seed), 1 / len(clients)
    merge = Merge(shapes, planned_ranks=data.draw(st.sampled_from([None, 3, 500])))
    for update in updates:
        merge.add(weight, update)
    truth = {n: oracle(shapes[n], [(weight * alpha / r.factors[n][0].shape[0], *r.factors[n]) for r in updates]) for n in shapes}
    ranks = {"attention": 24, "up": 3, "down": 30}
    merged = merge.truncated(ranks.__getitem__, after)
    assert merged.rank is None
    assert {n: a.shape[0] for n, (a, _) in merged.factors.items()} == ranks
    for name, update in lora.dense(merged).items():
        lost = np.linalg.norm(truth[name] - update.double().numpy())
        assert lost == pytest.approx(products.discarded(truth[name], ranks[name]), abs=1e-5 * np.linalg.norm(truth[name]))
    assert not lora.norm(merge.truncated(4, 0.0))
    with pytest.raises(ModelError, match="layer 'other'"):
        merge.add(1.0, Adapter({"other": (torch.ones(1, 2), torch.ones(2, 1))}, 1.0))


def test_a_nominal_rank_scales_the_reply():
    shapes = {"x": (12, 9)}
    (a, b), merge = adapters(shapes, [{"x": 2}], 6.0, 0)[0].factors["x"], Merge(shapes)
    merge.add(0.5, Adapter({"x": (a, b)}, 6.0, rank=4))
    assert far(lora.dense(merge.truncated(2, 10.0))["x"], 0.5 * 1.5 * product((a, b))) < 1e-5


@given(left=st.integers(1, 6), right=st.integers(1, 6), seed=st.integers(0, 99))
def test_scalar_products_without_dense_matrices(left, right, seed):
    shapes = {"x": (5, 8), "y": (4, 3)}
    one, other = adapters(shapes, [{"x": left, "y": left}, {"x": right, "y": right}], 3.0, seed)
    one_dense, other_dense = lora.dense(one), lora.dense(other)
    expected = sum(float((one_dense[n].double() * other_dense[n].double()).sum()) for n in shapes)
    size = lora.norm(one) * lora.norm(other)
    assert lora.inner(one, other) == pytest.approx(expected, abs=1e-5 * size)
    assert lora.inner(one, one) == pytest.approx(lora.norm(one) ** 2, rel=1e-9)
