"""Clusters, NGAME's curriculum, and what is known to be positive."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from zoo.errors import ZooError
from zoo.negatives.clusters import balanced_clusters, kmeans
from zoo.negatives.curriculum import cluster_size
from zoo.negatives.first import first_negatives
from zoo.negatives.known import known_positives


def _blobs(groups=8, each=16, dim=10, noise=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, dim, generator=generator)
    label = torch.arange(groups * each) % groups
    return normalize(centres[label] + noise * torch.randn(len(label), dim, generator=generator), dim=1), label


@settings(max_examples=30)
@given(n=st.integers(1, 70), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_sizes_differ_by_at_most_one(n, share, seed):
    k = max(1, math.ceil(share * n))
    found = balanced_clusters(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)), k, seed)
    sizes = found.bincount(minlength=k)
    assert len(sizes) == k and sizes.sum() == n and sizes.max() - sizes.min() <= 1


def test_halves_are_equal_when_sizes_are_powers_of_two():
    assert balanced_clusters(_blobs()[0], 16).bincount().tolist() == [8] * 16


def test_balanced_clusters_are_tighter_than_random_ones():
    x, _ = _blobs(noise=0.5)
    together = balanced_clusters(x, 16)
    shuffled = together[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    similarity = x @ x.T
    within = [similarity[c[:, None] == c].mean() for c in (together, shuffled)]
    assert within[0] > within[1] + 0.2


def test_two_groups_of_equal_size_are_found_by_both():
    x, label = _blobs(groups=2, each=20, noise=0.1)
    for found in (balanced_clusters(x, 2), kmeans(x, 2)):
        assert torch.equal(found == found[0], label == label[0])


@pytest.mark.parametrize("cluster", [balanced_clusters, kmeans])
def test_same_seed_same_clusters_and_the_global_generator_rests(cluster):
    x, _ = _blobs(noise=1.0)
    state = torch.get_rng_state()
    first = cluster(x, 10, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(cluster(x, 10, 3), first)
    assert not torch.equal(cluster(x, 10, 4), first)


@pytest.mark.parametrize("cluster", [balanced_clusters, kmeans])
def test_as_many_clusters_as_points_and_equal_points(cluster):
    assert sorted(cluster(_blobs()[0], 128).tolist()) == list(range(128))
    assert len(cluster(torch.ones(9, 2), 3)) == 9
    assert cluster(torch.rand(5, 2), 1).tolist() == [0] * 5
    for k in (0, 6):
        with pytest.raises(ZooError, match=f"cannot make {k} clusters of 5 points"):
            cluster(torch.rand(5, 2), k)


def test_kmeans_ends_where_every_point_is_with_its_nearest_mean(monkeypatch):
    monkeypatch.setattr("zoo.negatives.clusters._CHUNK", 50)
    x, _ = _blobs(noise=1.0)
    found = kmeans(x, 6, iterations=200)
    means = torch.stack([x[found == c].mean(0) for c in range(6)])
    assert torch.equal(torch.cdist(x, means).argmin(1), found)


def test_kmeans_fills_clusters_that_start_empty():
    x = torch.cat([torch.zeros(30, 2), torch.tensor([[5.0, 0.0], [0.0, 5.0]])])
    assert all(len(kmeans(x, 3, seed).unique()) == 3 for seed in range(5))


def test_size_doubles_at_the_given_epochs():
    assert [cluster_size(e, (2, 3, 6)) for e in range(8)] == [1, 1, 2, 4, 4, 4, 8, 8]
    assert cluster_size(100, ()) == 1


@settings(max_examples=20)
@given(b=st.integers(0, 5), p=st.integers(0, 4), m=st.integers(0, 6), seed=st.integers(0, 99))
def test_known_positives_by_key(b, p, m, seed):
    generator = torch.Generator().manual_seed(seed)
    known, keys = torch.randint(-1, 5, (b, p), generator=generator), torch.randint(-1, 5, (m,), generator=generator)
    want = [[key in set(row) - {-1} for key in keys.tolist()] for row in known.tolist()]
    assert known_positives(known, keys).tolist() == want


def test_first_negatives_skip_positives_and_repeats():
    nearest = torch.tensor([[3, 1, 4, 2], [1, 1, 4, 2], [5, 6, 7, 8], [9, -1, -1, -1]])
    positives = torch.tensor([[1, 4], [2, -1], [5, -1], [0, -1]])
    assert first_negatives(nearest, positives, 2).tolist() == [[3, -1], [1, 4], [6, 7], [9, -1]]
    assert first_negatives(nearest, positives, 5).shape == (4, 5)
