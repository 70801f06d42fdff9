"""Batches by topic, by unions of clusters, by task."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.cluster_samplers import ClusterUnions, OneTaskBatches, OverlappingClusters, TopicBatches
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


def test_mixed_batches_hold_the_same_number_of_pairs_of_each_task():
    clusters = [0] * 23 + [1] * 10
    one, mixed = (batches(OneTaskBatches("topic", mixed=m), clusters, 4) for m in (False, True))
    assert one.shape == mixed.shape == (7, 4) and len(np.unique(mixed)) == 28
    tasks = np.array(clusters)
    assert [(tasks[b] == 1).sum() for b in (one, mixed)] == [8, 8]
    assert len({len(set(tasks[row])) for row in one}) == 1 and max(len(set(tasks[row])) for row in mixed) == 2


def test_missing_column():
    with pytest.raises(ZooError, match="no column 'task'"):
        OneTaskBatches().bind(pairs([0, 1]), 1, 0)


def overlapping(rows, size, n=64, epoch=0):
    sampler = OverlappingClusters()
    sampler.bind(pairs(np.zeros(n)), size, seed=3)
    sampler.set_clusters(np.array(rows))
    sampler.set_epoch(epoch)
    return np.stack([plan.indices for plan in sampler])


def test_overlapping_clusters_stay_whole_in_batches_that_are_a_multiple():
    rows = np.arange(64).reshape(16, 4)
    found = overlapping(rows, 8)
    assert found.shape == (8, 8) and sorted(found.ravel()) == list(range(64))
    assert all(len(set((batch // 4).tolist())) == 2 for batch in found)
    assert (found != overlapping(rows, 8, epoch=1)).any()


def test_shorter_clusters_follow_and_what_is_missing_is_filled_with_whole_ones():
    rows = [[0, 1, 2, 3], [4, 5, -1, -1], [6, 7, 8, 9], [6, 10, -1, -1]]
    found = overlapping(rows, 4, n=20)
    assert found.shape == (5, 4)
    whole = {tuple(sorted(batch)) for batch in found.tolist()}
    assert whole == {(0, 1, 2, 3), (6, 7, 8, 9), (4, 5, 6, 10)}
    counts = np.bincount(found.ravel(), minlength=11)
    assert counts[0] == 2 and counts[11:].sum() == 0


def test_overlapping_clusters_are_random_before_and_refused_when_empty():
    found = batches(OverlappingClusters(), np.zeros(64), 8)
    assert sorted(found.ravel()) == list(range(64))
    with pytest.raises(ZooError, match="not one cluster"):
        overlapping(np.empty((0, 3), int), 8)
