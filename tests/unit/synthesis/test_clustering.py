"""Cells of public texts: the slow oracle's, found again in blocks, never empty."""

from __future__ import annotations

import pytest
import torch
from tests.oracle import spherical_kmeans

from aulait.core.errors import ConfigError
from aulait.synthesis import clustering
from aulait.synthesis.clustering import (
    TensorTable,
    _moved,
    centroid,
    cluster,
    learnt_centroids,
    nearest_centroid,
)


def points(count, width=6, seed=0):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("count", "cells"), [(40, 5), (12, 12), (30, 1)])
def test_iterations_are_those_of_the_oracle(count, cells):
    vectors = points(count)
    found = learnt_centroids(vectors, cells, torch.Generator().manual_seed(3))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    slow = spherical_kmeans.iterate(list(vectors), list(vectors[order[:cells]]), clustering.PASSES)
    assert torch.allclose(found, slow, atol=1e-5)


def test_a_cell_that_lost_all_its_vectors_takes_the_worst_fitting_one():
    vectors, centroids = points(20).abs(), points(4, seed=1).abs()
    centroids = torch.cat([centroids, -centroids[:1]])  # nearest to no vector
    closeness, labels = nearest_centroid(vectors, centroids)
    assert 4 not in labels
    moved = _moved(vectors, labels, closeness, centroids)
    assert torch.equal(moved[4], vectors[closeness.argmin()])
    for cell in range(4):
        mean = vectors[labels == cell].sum(0)
        assert torch.allclose(moved[cell], mean / mean.norm(), atol=1e-6)


def test_planted_directions_are_found_and_every_vector_is_in_the_nearest_cell():
    planted = torch.eye(6)[torch.arange(300) % 6]
    vectors = torch.nn.functional.normalize(planted + 0.05 * points(300, seed=2), dim=1)
    # drawn centroids may fall twice into one direction, so there are more cells than directions
    labels, centroids = cluster(TensorTable(vectors), 24)
    assert torch.equal(labels, (vectors @ centroids.T).argmax(1))
    for cell in range(len(centroids)):
        members = planted[labels == cell]
        assert len(members), "no cell is empty"
        assert torch.equal(members, members[:1].expand_as(members)), "of one direction alone"
    assert torch.allclose(centroids.norm(dim=1), torch.ones(len(centroids)), atol=1e-6)


def test_blocks_and_samples_change_nothing_that_they_should_not(monkeypatch):
    vectors = points(500)
    labels, centroids = cluster(TensorTable(vectors), 7)
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 13)
    again, same = cluster(TensorTable(vectors), 7)
    assert torch.equal(labels, again)
    assert torch.allclose(centroids, same, atol=1e-6)


def test_equal_vectors_are_one_cell_and_few_vectors_are_few_cells():
    labels, centroids = cluster(TensorTable(points(1).repeat(9, 1)), 4)
    assert centroids.shape[0] == 1
    assert labels.tolist() == [0] * 9
    labels, centroids = cluster(TensorTable(points(3)), 8)
    assert sorted(labels.tolist()) == [0, 1, 2]
    with pytest.raises(ConfigError, match="0 vectors for 4 cells"):
        cluster(TensorTable(points(0)), 4)


def test_the_centroid_of_a_cell_is_its_mean_direction():
    vectors = points(9)
    assert torch.allclose(centroid(vectors)[0], vectors.sum(0) / vectors.sum(0).norm())
    assert torch.equal(centroid(torch.stack([vectors[0], -vectors[0]])), vectors[:1])
