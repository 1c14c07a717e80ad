"""Projection and shrinkage against dense linear algebra and the James-Stein formula."""

import math

import pytest
import torch
from tests.closeness import assert_near

from aulait.core.errors import DataError
from aulait.privacy.postprocessing import basis, flatten, project, shrink, unflatten


def shares(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"b": torch.randn(4, 3, generator=generator), "a": torch.randn(5, generator=generator)} for _ in range(count)
    ]


def test_flatten_and_back():
    share = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3.0, dtype=torch.float64), "c": torch.zeros(0)}
    vector = flatten(share)
    assert vector.tolist() == [3.0, 1.0, 2.0]
    assert vector.dtype == torch.float64
    back = unflatten(vector, share)
    assert all(back[k].dtype == share[k].dtype and torch.equal(back[k], share[k]) for k in share)
    assert flatten({}).shape == (0,)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_basis_is_the_leading_singular_space(k):
    updates = shares(6)
    q = basis(updates, k)
    u = torch.linalg.svd(torch.stack([flatten(s) for s in updates], dim=1), full_matrices=False).U[:, :k]
    assert q.shape == (17, k)
    torch.testing.assert_close(q.T @ q, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(q @ q.T, u @ u.T)


def test_basis_has_no_more_directions_than_there_are():
    one, two = shares(2)
    both = {name: 2 * one[name] - two[name] for name in one}
    assert basis([one, two, both, one], 4).shape == (17, 2)
    assert basis([one] * 30, 25).shape == (17, 1)
    assert basis([{"a": torch.zeros(5)}], 2).shape == (5, 0)
    for wrong in (([], 2), ([one], 0)):
        with pytest.raises(DataError):
            basis(*wrong)


def test_projection():
    updates = shares(3)
    q = basis(updates, 3)
    inside = project(updates[1], q)
    assert_near(inside, updates[1], 1e-5)
    other = shares(1, seed=9)[0]
    expected = q @ (q.T @ flatten(other))
    assert_near(flatten(project(other, q)), expected, 1e-5)
    assert flatten(project(other, basis([{k: 0 * v for k, v in other.items()}], 2))).abs().sum() == 0


def factor(y, d, std):
    return max(0.0, 1 - d * std**2 / float((y**2).sum()))


@pytest.mark.parametrize("std", [0.3, 0.8])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("with_basis", [False, True])
def test_shrinkage_formula(std, blocks, with_basis):
    total = shares(1, seed=4)[0]
    y, q = flatten(total), basis(shares(2, seed=5), 2) if with_basis else torch.zeros(17, 0, dtype=torch.float64)
    inside = q @ (q.T @ y)
    outside = y - inside
    rest = torch.eye(17, dtype=torch.float64) - q @ q.T  # covariance of the noise outside
    expected = inside * factor(inside, q.shape[1], std) if with_basis else inside
    for part in ([slice(0, 5), slice(5, 17)] if blocks else [slice(0, 17)]):
        expected[part] += outside[part] * factor(outside[part], float(rest.diagonal()[part].sum()), std)
    got = flatten(shrink(total, std, blocks, q if with_basis else None))
    assert_near(got, expected, 1e-5)


def test_shrinkage_edges():
    total = shares(1)[0]
    assert all(torch.equal(shrink(total, 0.0, True)[k], total[k]) for k in total)
    assert flatten(shrink(total, 1e3, False)).abs().sum() == 0
    assert flatten(shrink({"a": torch.zeros(3)}, 1.0, True)).tolist() == [0.0] * 3
    assert shrink({}, 1.0, True) == {}


def test_shrinkage_lowers_the_error():
    signal = torch.full((4000,), 0.5, dtype=torch.float64)
    noised = signal + torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shrunk = shrink({"x": noised}, 1.0, False)["x"]
    error = float(((shrunk - signal) ** 2).mean())
    assert error == pytest.approx(0.25 / 1.25, rel=0.1)  # signal energy s and noise energy 1 leave s / (1 + s)
    assert error < 0.3 * float(((noised - signal) ** 2).mean())
    assert math.isfinite(error)
