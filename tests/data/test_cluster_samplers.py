"""Batches by topic, by unions of clusters, by task."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.cluster_samplers import ClusterUnions, OneTaskBatches, TopicBatches
from zoo.data.text import TextPairs
from zoo.errors import ZooError


def pairs(clusters):
    n = len(clusters)
    texts = [str(i) for i in range(n)]
    return TextPairs(texts, texts, np.arange(n), np.arange(n), columns={"topic": np.array(clusters)})


def batches(sampler, clusters, size, **kwargs):
    sampler.bind(pairs(clusters), size, seed=3, **kwargs)
    return np.stack([plan.indices for plan in sampler])


def test_topic_batches_hold_one_topic_without_repeats():
    clusters = np.repeat(np.arange(5), 20)
    found = batches(TopicBatches("topic"), clusters, 8)
    assert found.shape == (12, 8)
    for batch in found:
        assert len(set(clusters[batch])) == 1 and len(set(batch)) == 8


def test_topics_are_drawn_uniformly_whatever_their_size():
    clusters = np.array([0] * 10 + [1] * 990)
    found = batches(TopicBatches("topic"), clusters, 5)
    share = (clusters[found[:, 0]] == 0).mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(found))


def test_small_topics_are_filled_up_with_another():
    clusters = np.repeat(np.arange(20), 3)
    for batch in batches(TopicBatches("topic"), clusters, 8):
        assert len(set(batch)) == 8
        assert sorted(np.bincount(clusters[batch], minlength=20).tolist(), reverse=True)[:3] == [3, 3, 2]


def test_several_topics_share_a_batch():
    clusters = np.repeat(np.arange(5), 20)
    for batch in batches(TopicBatches("topic", clusters_per_batch=2), clusters, 8):
        assert sorted(np.bincount(clusters[batch], minlength=5).tolist())[-2:] == [4, 4]


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 5))
def test_unions_pass_over_all_pairs_with_clusters_whole(size, per_cluster, seed):
    clusters = np.repeat(np.arange(12), per_cluster)
    sampler = ClusterUnions("topic")
    sampler.bind(pairs(clusters), size, seed) if len(clusters) >= size else None
    if len(clusters) < size:
        return
    order = np.concatenate([plan.indices for plan in sampler])
    assert len(set(order.tolist())) == len(order) == len(clusters) // size * size
    runs = 1 + (np.diff(clusters[order]) != 0).sum()
    assert runs == len(set(clusters[order].tolist()))


def test_without_clusters_batches_are_random_and_change_with_the_epoch():
    sampler = ClusterUnions()
    first = batches(sampler, np.zeros(64), 8)
    sampler.set_epoch(1)
    second = np.stack([plan.indices for plan in sampler])
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(64)) and (first != second).any()
    sampler.set_clusters(np.repeat(np.arange(16), 4))
    third = np.stack([plan.indices for plan in sampler])
    assert all(len(set(batch // 4)) == 2 for batch in third)


def test_one_task_per_batch_on_all_ranks():
    clusters = np.array([0] * 30 + [1] * 50)
    ranks = [batches(OneTaskBatches("topic"), clusters, 4, rank=r, world_size=2) for r in (0, 1)]
    assert ranks[0].shape == (3 + 6, 4)
    both = np.concatenate(ranks, 1)
    assert all(len(set(clusters[batch])) == 1 for batch in both)
    assert len(set(both.ravel().tolist())) == both.size


def test_missing_column():
    with pytest.raises(ZooError, match="no column 'task'"):
        OneTaskBatches().bind(pairs([0, 1]), 1, 0)
